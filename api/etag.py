"""Entity tags (RFC 9110): what a client already has need not be sent again."""

from __future__ import annotations


def etag_of(digest: str) -> str:
    return f'"{digest}"'


def is_known(etag: str, if_none_match: str | None) -> bool:
    """Whether an If-None-Match header names this tag; the comparison is the weak one."""
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or tags == ["*"]
