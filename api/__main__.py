"""`python -m api`: serves HTTP until SIGTERM."""

from __future__ import annotations

import sys

from pydantic import ValidationError

from api.app import serve
from api.known_hosts import is_loopback
from shared.logs import configure_logging
from shared.settings import Settings, settings_problem

EXIT_CONFIG = 78  # EX_CONFIG: a restart would fail in the same way


def main() -> int:
    try:
        settings = Settings()
    except ValidationError as error:
        return _refused(f"the environment is not right: {settings_problem(error)}")
    if not settings.allow_remote and not is_loopback(settings.host):
        return _refused(
            f"ECHOFORGE_HOST={settings.host} is not loopback, and there are no API keys yet; set"
            " ECHOFORGE_ALLOW_REMOTE=true if whoever reaches it may submit, read and delete jobs"
        )
    configure_logging(settings)
    serve(settings)
    return 0


def _refused(why: str) -> int:
    print(f"error: {why}", file=sys.stderr)
    return EXIT_CONFIG


if __name__ == "__main__":
    raise SystemExit(main())
