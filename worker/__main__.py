"""`python -m worker`: serves jobs; `--describe` says which model it would serve, and ends."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable

from pydantic import ValidationError

from shared.logs import configure_logging
from shared.settings import Settings, settings_problem

EXIT_CONFIG = 78  # EX_CONFIG: a restart would fail in the same way

# Bounded spinning, set before torch is imported: an OpenMP pool that spins for ever starves the
# threads beside it (17 times slower was measured).
os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def main(arguments: list[str]) -> int:
    try:
        settings = Settings()
    except ValidationError as e:
        print(f"error: {settings_problem(e)}", file=sys.stderr)
        return EXIT_CONFIG
    configure_logging(settings)
    run: Callable[[Settings], int] = _describe if "--describe" in arguments else _work
    return run(settings)


def _work(settings: Settings) -> int:
    from worker.app import make_worker
    from worker.engine.errors import EngineError

    try:
        worker = make_worker(settings)
    except EngineError as e:
        logging.getLogger("worker").error("cannot load the model: %s", e)
        return EXIT_CONFIG
    except OSError as e:
        logging.getLogger("worker").error("cannot use the data directory: %s", e)
        return EXIT_CONFIG
    return worker.run()


def _describe(settings: Settings) -> int:
    from worker.describe import describe

    print(json.dumps(describe(settings)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
