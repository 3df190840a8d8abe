"""`python -m worker`: serves jobs; `--describe` says which model it would serve, and ends."""

from __future__ import annotations

import json
import logging
import os
import sys

# Bounded spinning: an OpenMP pool that spins for ever starves the threads beside it (17x measured).
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

EXIT_CONFIG = 78  # EX_CONFIG: a restart would fail in the same way


def main() -> int:
    from pydantic import ValidationError

    from shared.logs import configure_logging
    from shared.settings import Settings

    try:
        settings = Settings()
    except ValidationError as e:
        print(f"error: the environment is not right: {e}", file=sys.stderr)
        return EXIT_CONFIG
    configure_logging(settings)
    if "--describe" in sys.argv[1:]:
        return _describe(settings)
    return _work(settings)


def _work(settings: Settings) -> int:  # noqa: F821 - imported late, so that SPINCOUNT comes first
    from worker.app import make_worker
    from worker.engine.errors import EngineError

    try:
        worker = make_worker(settings)
    except EngineError as e:
        logging.getLogger(__name__).error("cannot load the model: %s", e)
        return EXIT_CONFIG
    return worker.run()


def _describe(settings: Settings) -> int:  # noqa: F821
    from worker.describe import describe

    print(json.dumps(describe(settings)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
