"""AudioResponse: a file with ranges, whose refusals have the same shape as all others.

A Range that is no byte range is ignored (RFC 9110, section 14.2): the file is sent whole.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from shared.errors import AudioExpired

ONE_RANGE = re.compile(r"(?P<first>[0-9]{1,99})-(?P<last>[0-9]{0,99})|-[0-9]{1,99}")
UNIT = "bytes="


class AudioResponse(FileResponse):
    """Raises AudioExpired when the file has gone since it was named."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held: list[Message] = []  # the start, until the file is open: a 200 cannot be taken back

        async def checked(message: Message) -> None:
            if message["type"] != "http.response.start":
                while held:
                    await send(held.pop())
                await send(message)
            elif message["status"] >= 400:
                raise _refusal(message)
            else:
                held.append(message)

        try:
            await super().__call__(_with_valid_range(scope), receive, checked)
        except FileNotFoundError as error:
            raise gone() from error


def gone() -> AudioExpired:
    return AudioExpired("The audio was kept for its time and is gone; submit the text again.")


def _with_valid_range(scope: Scope) -> Scope:
    if _is_valid(Headers(scope=scope).get("range", UNIT)):
        return scope
    kept = [(name, value) for name, value in scope["headers"] if name != b"range"]
    return {**scope, "headers": kept}


def _is_valid(asked: str) -> bool:
    if not asked.lower().startswith(UNIT):
        return False
    return all(_is_range(part.strip()) for part in asked[len(UNIT) :].split(","))


def _is_range(part: str) -> bool:
    found = ONE_RANGE.fullmatch(part)
    if found is None:
        return False
    return not found["last"] or int(found["first"]) <= int(found["last"])


def _refusal(message: Message) -> HTTPException:
    """Starlette answers a Range past the end as plain text."""
    sent = Headers(raw=message["headers"])
    kept = {name: sent[name] for name in ("content-range",) if name in sent}
    return HTTPException(message["status"], "The Range header cannot be satisfied.", kept)
