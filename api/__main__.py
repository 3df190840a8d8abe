"""`python -m api`: serves HTTP until SIGTERM."""

from __future__ import annotations

import sys

from pydantic import ValidationError

from api.app import serve
from shared.logs import configure_logging
from shared.settings import Settings

EXIT_CONFIG = 78  # EX_CONFIG: a restart would fail in the same way


def main() -> int:
    try:
        settings = Settings()
    except ValidationError as error:
        print(f"error: the environment is not right: {error}", file=sys.stderr)
        return EXIT_CONFIG
    configure_logging(settings)
    serve(settings)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
