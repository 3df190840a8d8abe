"""KnownHosts: on loopback, only requests that name loopback are answered.

A page on the web can point its own name at 127.0.0.1 and then read what is there (DNS rebinding);
its requests still carry that name. Knows names and addresses; knows no routes.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import problem

HOST = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::[0-9]*)?")  # of a Host header, RFC 9110


def is_loopback(host: str) -> bool:
    """Of a name or a bare address, as a server is told to listen on. An empty one is everywhere."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class KnownHosts:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _names_loopback(Headers(scope=scope).getlist("host")):
            refusal = problem(
                400,
                "unknown_host",
                "This server answers requests to 127.0.0.1, localhost or [::1] only; use one of"
                " these, or set ECHOFORGE_HOST.",
            )
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _names_loopback(sent: list[str]) -> bool:
    found = HOST.fullmatch(sent[0]) if len(sent) == 1 else None
    return found is not None and is_loopback(found["host"].strip("[]"))
