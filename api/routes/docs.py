"""The documentation page: our own files only, so that it works without a network."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, RedirectResponse, Response

STATIC = Path(__file__).parents[1] / "static"
OWN_FILES_ONLY = "default-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'"

router = APIRouter(include_in_schema=False)


@router.get("/")
async def root() -> Response:
    return RedirectResponse("/docs")


@router.get("/docs")
async def docs() -> Response:
    headers = {"Content-Security-Policy": OWN_FILES_ONLY}
    return FileResponse(STATIC / "docs.html", media_type="text/html", headers=headers)
