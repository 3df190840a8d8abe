"""Which methods a path answers: what a 405 must say in its Allow header (RFC 9110)."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Match, Mount

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def methods_of(app: Starlette, path: str) -> list[str]:
    """Asks each route, since the router's own answer names the first that matches only."""
    found = [m for m in METHODS if any(_answers(route, m, path) for route in app.routes)]
    return ["GET", "HEAD", *found[1:]] if "GET" in found else found


def _answers(route: BaseRoute, method: str, path: str) -> bool:
    if isinstance(route, Mount) and method != "GET":  # static files
        return False
    scope = {"type": "http", "path": path, "root_path": "", "method": method, "headers": []}
    return route.matches(scope)[0] is Match.FULL
