"""AudioResponse: a file with ranges, whose refusals have the same shape as all others."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send


class AudioResponse(FileResponse):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def checked(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                raise _refusal(message)
            await send(message)

        await super().__call__(scope, receive, checked)


def _refusal(message: Message) -> HTTPException:
    """Starlette answers a bad Range as plain text."""
    sent = Headers(raw=message["headers"])
    kept = {name: sent[name] for name in ("content-range",) if name in sent}
    return HTTPException(message["status"], "The Range header cannot be satisfied.", kept)
