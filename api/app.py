"""The HTTP front end: how its parts are joined, started and stopped. Each part knows its work."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.staticfiles import StaticFiles

from api.body_limit import BodyLimit
from api.errors import add_error_handlers
from api.head import HeadAsGet
from api.known_hosts import KnownHosts, is_loopback
from api.parts import Parts
from api.routes import docs, jobs, status
from shared.audio_store import AudioStore
from shared.doorbell import Doorbell, make_celery
from shared.settings import Settings
from shared.store import JobStore
from shared.ticker import Ticker
from shared.upkeep import Upkeep

GRACE_S = 10  # for requests under way, when the server is told to end

log = logging.getLogger(__name__)


def create_app(
    settings: Settings, store: JobStore | None = None, doorbell: Doorbell | None = None
) -> FastAPI:
    """Opens nothing but the audio directory; Redis may come up later."""
    parts = Parts(
        store or JobStore.connect(settings),
        doorbell or Doorbell(make_celery(settings)),
        AudioStore(settings.audio_dir),
        settings.max_audio_s,
    )
    app = FastAPI(
        title="EchoForge",
        description="Text to speech as durable jobs.",
        version=_version(),
        docs_url=None,  # FastAPI's page is fetched from a CDN; ours is in routes/docs.py
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_with_upkeep(parts, settings),
    )
    app.state.parts = parts
    add_error_handlers(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    if is_loopback(settings.host):
        app.add_middleware(KnownHosts)
    app.add_middleware(HeadAsGet)
    for route in (jobs, status, docs):
        app.include_router(route.router)
    app.mount("/static", StaticFiles(directory=docs.STATIC))
    return app


def serve(settings: Settings) -> None:
    """Until SIGTERM or SIGINT; requests under way are answered first."""
    if not is_loopback(settings.host):
        log.warning(
            "listening on %s: whoever reaches it may submit, read and delete jobs", settings.host
        )
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,  # the root logger's shape
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    _Server(config, app.state.parts.closing).run()


class _Server(uvicorn.Server):
    """Tells the long polls that it closes, and leaves with 0 when asked to go."""

    def __init__(self, config: uvicorn.Config, closing: threading.Event) -> None:
        super().__init__(config)
        self._closing = closing

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT  # the second Ctrl-C
        self.should_exit = True
        self._closing.set()


def _with_upkeep(
    parts: Parts, settings: Settings
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    upkeep = Upkeep(parts.store, parts.doorbell, parts.audio, sweep_s=settings.sweep_s)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        ticker = Ticker("upkeep", settings.tick_s, upkeep.tick)
        ticker.start()
        yield
        await run_in_threadpool(ticker.stop)

    return lifespan


def _version() -> str:
    try:
        return version("echoforge")
    except PackageNotFoundError:  # run from a checkout
        return "0"
