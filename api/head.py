"""HeadAsGet: every GET route answers HEAD, with the same status and headers and no body."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATHSEND = "http.response.pathsend"  # ASGI: the file's path in place of its bytes


class HeadAsGet:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        extensions = scope.get("extensions", {}) | {PATHSEND: {}}  # so that no file is read
        as_get = {**scope, "method": "GET", "extensions": extensions}
        await self._app(as_get, receive, _without_body(send))


def _without_body(send: Send) -> Send:
    async def without_body(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
        elif not message.get("more_body", False):
            await send({"type": "http.response.body", "body": b""})

    return without_body
