"""How the service is: for supervisors, for people, for Prometheus. Reads; changes nothing."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from api.errors import problems
from api.metrics import metrics_text
from api.parts import PartsOf
from shared.errors import NoReadyWorker
from shared.jobs import JobStatus
from shared.store import JobStore

router = APIRouter(tags=["status"])


@router.get("/healthz", summary="Whether this process answers")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get(
    "/readyz", responses=problems(503), summary="Whether a job submitted now would be spoken"
)
def readyz(parts: PartsOf) -> dict[str, Any]:
    """503 while Redis is away or no worker is ready. Without workers jobs still wait."""
    ready = [worker for worker in parts.store.workers() if worker.state == "ready"]
    if not ready:
        raise NoReadyWorker("No worker is ready; start one with `echoforge worker`.")
    return {"status": "ready", "workers": len(ready)}


@router.get("/api/status", responses=problems(503), summary="Workers, devices, models, queue")
def status(parts: PartsOf) -> dict[str, Any]:
    counts = parts.store.counts()
    return {
        "workers": [worker.model_dump() for worker in parts.store.workers()],
        "queue": {
            "queued": counts[JobStatus.QUEUED],
            "in_progress": counts[JobStatus.IN_PROGRESS],
            "wait_s": _wait_s(parts.store),
        },
    }


@router.get("/metrics", include_in_schema=False)
def metrics(parts: PartsOf) -> Response:
    return Response(metrics_text(parts.store), media_type="text/plain; version=0.0.4")


def _wait_s(store: JobStore) -> float | None:
    """What the newest waiting job can expect; None when nobody can tell."""
    newest, _ = store.list(status=JobStatus.QUEUED, limit=1)
    if newest:
        return newest[0].estimated_start_s
    return 0.0 if store.workers() else None
