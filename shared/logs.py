"""One shape for the log lines of every process: console or JSON, to stderr.

Knows formatting only. Callers log ids, states and numbers, and never a job's text, a key or a
signed URL: nothing here could take them out again.
"""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor

from shared.settings import Settings

# They log whole URLs at INFO, and a presigned URL is a secret.
URL_LOGGERS = ("httpx", "httpx2", "httpcore", "httpcore2", "urllib3")


def configure_logging(settings: Settings) -> None:
    """Once, when a process starts. The standard library's loggers come out in the same shape."""
    shared_steps: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _without_colours,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared_steps,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared_steps,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(settings.log_format),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for name in URL_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def _without_colours(_: object, __: str, event: EventDict) -> EventDict:
    """uvicorn says each line twice, once in colours."""
    event.pop("color_message", None)
    return event


def _renderers(log_format: str) -> list[Processor]:
    if log_format == "json":
        return [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ]
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,  # rich ones show variables: texts
        )
    ]
