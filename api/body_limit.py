"""BodyLimit: no request body beyond a size. Counts the bytes as they arrive; knows no routes."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import HTTP_CODES, problem

TOO_LARGE = 413


class BodyLimit:
    """Plain ASGI, so that a body is never held twice. Content-Length is a hint, not trusted."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif _declared_bytes(scope) > self._max_bytes:
            refusal = problem(TOO_LARGE, HTTP_CODES[TOO_LARGE], self._detail)
            await refusal(scope, receive, send)
        else:
            await self._app(scope, self._counted(receive), send)

    def _counted(self, receive: Receive) -> Receive:
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise HTTPException(TOO_LARGE, self._detail)
            return message

        return counted

    @property
    def _detail(self) -> str:
        return f"The body is larger than {self._max_bytes} bytes; send less."


def _declared_bytes(scope: Scope) -> int:
    length = Headers(scope=scope).get("content-length", "")
    return int(length) if length.isdecimal() else 0
