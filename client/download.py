"""Fetches a CSM checkpoint from the Hugging Face Hub into a directory, whole or not at all.

Knows which files make a checkpoint and what can go wrong on the way; loads no model. Files gather
in `<target>.partial`, which is renamed at the end, so that a torn download is never taken for a
checkpoint and the next try resumes it.
"""

from __future__ import annotations

import errno
import fnmatch
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from client.setup_error import SetupError

DEFAULT_REPO, DEFAULT_REVISION = "sesame/csm-1b", "main"
OPEN_MIRROR = "unsloth/csm-1b"
RECORD = "echoforge.json"
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "preprocessor_config.json",
)
ORIGINAL_WEIGHTS = ("model.safetensors", "ckpt.pt")  # the first that is there
CODEC_REPO, CODEC_DIR = "kyutai/mimi", "mimi"
CODEC_FILES = ("config.json", "model.safetensors")


class DownloadError(SetupError):
    """Nothing was put at the target."""


@dataclass(frozen=True)
class Snapshot:
    """What a revision names: the exact commit, and each file's size in bytes (None: not told)."""

    commit: str
    files: Mapping[str, int | None]


class Hub(Protocol):
    def resolve(self, repo: str, revision: str) -> Snapshot: ...

    def fetch(self, repo: str, commit: str, files: Sequence[str], directory: Path) -> None:
        """Resume what `directory` already holds."""
        ...


class HuggingFaceHub:
    """The real one. Token, endpoint and offline mode are the library's own settings."""

    def resolve(self, repo: str, revision: str) -> Snapshot:
        from huggingface_hub import HfApi

        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        files = {s.rfilename: s.size for s in info.siblings or []}
        return Snapshot(info.sha or revision, files)

    def fetch(self, repo: str, commit: str, files: Sequence[str], directory: Path) -> None:
        from huggingface_hub import snapshot_download

        snapshot_download(repo, revision=commit, local_dir=directory, allow_patterns=list(files))


def download(
    target: Path,
    repo: str = DEFAULT_REPO,
    revision: str = DEFAULT_REVISION,
    *,
    original: bool = False,
    hub: Hub | None = None,
) -> Path:
    """`target` holding the checkpoint and its record; DownloadError says what went wrong."""
    target = target.expanduser().absolute()
    with _explained(repo, revision, target):
        return _download(target, repo, revision, original, hub or HuggingFaceHub())


def checkpoint_files(names: Sequence[str], *, original: bool) -> list[str]:
    """Those of a repository's files that make one checkpoint, in one of its two layouts."""
    top = [name for name in names if "/" not in name]
    small = [name for name in top if any(fnmatch.fnmatch(name, p) for p in SMALL_FILES)]
    if original:
        return small + [name for name in ORIGINAL_WEIGHTS if name in top][:1]
    stem = "transformers" if fnmatch.filter(top, "transformers*.safetensors") else "model"
    weights = fnmatch.filter(top, f"{stem}*.safetensors")
    return small + fnmatch.filter(top, "*.index.json") + weights if weights else small


def explain(error: BaseException, repo: str, revision: str, target: Path) -> str:
    """The line for a failure of the hub, the network or the disk."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repo} is gated: accept the licence at https://huggingface.co/{repo}, then "
            "`hf auth login` (or set HF_TOKEN) and try again; or take the open mirror with "
            f"`echoforge download {OPEN_MIRROR}`"
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return f"there is no repository {repo} on the Hub, or it is private; check the name"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}; name a branch, tag or commit it has"
    if isinstance(error, errors.HfHubHTTPError):
        return f"the Hub answered HTTP {error.response.status_code} for {repo}; try again later"
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"no space left for {target}; make room or choose another disk with --to, run again"
    if isinstance(error, _network_errors()):
        return f"cannot reach the Hub ({type(error).__name__}); check the network and run again"
    return f"cannot download {repo}: {error}; run again to resume"


@contextmanager
def _explained(repo: str, revision: str, target: Path) -> Iterator[None]:
    expected: tuple[type[Exception], ...] = (OSError, ValueError, *_hub_errors())
    try:
        yield
    except expected as error:
        raise DownloadError(explain(error, repo, revision, target)) from error


def _download(target: Path, repo: str, revision: str, original: bool, hub: Hub) -> Path:
    snapshot = hub.resolve(repo, revision)
    source = {"repo": repo, "commit": snapshot.commit, "layout": _layout(original)}
    if _is_from(target, source):
        return target
    _refuse_foreign(target)
    names = checkpoint_files(list(snapshot.files), original=original)
    _refuse_weightless(names, repo, original)
    partial = target.with_name(target.name + ".partial")
    if not _is_from(partial, source):
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    _write_record(partial, source)
    _fetch(hub, repo, snapshot, names, partial)
    if original:
        _fetch_codec(hub, partial / CODEC_DIR)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    _write_record(partial, {**source, "revision": revision, "downloaded_at": now})
    _publish(partial, target)
    return target


def _fetch(hub: Hub, repo: str, snapshot: Snapshot, names: Sequence[str], into: Path) -> None:
    sizes = {name: snapshot.files.get(name) for name in names}
    _require_space(into, sizes)
    hub.fetch(repo, snapshot.commit, names, into)
    _require_whole(into, sizes)


def _fetch_codec(hub: Hub, into: Path) -> None:
    """The original layout holds no codec."""
    with _explained(CODEC_REPO, DEFAULT_REVISION, into):
        snapshot = hub.resolve(CODEC_REPO, DEFAULT_REVISION)
        into.mkdir(exist_ok=True)
        _fetch(hub, CODEC_REPO, snapshot, CODEC_FILES, into)


def _layout(original: bool) -> str:
    return "original" if original else "transformers"


def _refuse_weightless(names: Sequence[str], repo: str, original: bool) -> None:
    if any(name.endswith((".safetensors", ".pt")) for name in names) and "config.json" in names:
        return
    raise DownloadError(
        f"{repo} holds no CSM checkpoint in the {_layout(original)} layout; "
        f"try {DEFAULT_REPO} or {OPEN_MIRROR}"
    )


def _refuse_foreign(target: Path) -> None:
    """What we did not put there is not ours to replace."""
    if not target.exists() or _record(target) or (target.is_dir() and not any(target.iterdir())):
        return
    raise DownloadError(
        f"{target} exists and was not made by `echoforge download`; "
        "move it away, or choose another directory with --to"
    )


def _require_space(partial: Path, sizes: Mapping[str, int | None]) -> None:
    there = sum(f.stat().st_size for f in partial.rglob("*") if f.is_file())
    missing = sum(size or 0 for size in sizes.values()) - there
    free = shutil.disk_usage(partial).free
    if missing > free:
        raise DownloadError(
            f"{partial} needs {missing / 1e9:.1f} GB more and its disk has {free / 1e9:.1f} GB; "
            "make room, or choose another disk with --to"
        )


def _require_whole(partial: Path, sizes: Mapping[str, int | None]) -> None:
    for name, size in sizes.items():
        file = partial / name
        if not file.is_file() or (size is not None and file.stat().st_size != size):
            raise DownloadError(f"{name} did not arrive whole; run again to resume")


def _publish(partial: Path, target: Path) -> None:
    """The rename; an earlier checkpoint of ours steps aside for it."""
    for place in (partial, partial / CODEC_DIR):
        shutil.rmtree(place / ".cache", ignore_errors=True)  # the hub's notes for resuming
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _is_from(directory: Path, source: Mapping[str, str]) -> bool:
    return source.items() <= _record(directory).items()


def _record(directory: Path) -> dict[str, Any]:
    try:
        record = json.loads((directory / RECORD).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(directory: Path, record: Mapping[str, str]) -> None:
    (directory / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _hub_errors() -> tuple[type[Exception], ...]:
    """What the library raises beside OSError and ValueError; DownloadError when it is missing."""
    try:
        from huggingface_hub import errors
    except ModuleNotFoundError as error:
        raise DownloadError(
            "downloading needs huggingface_hub: pip install 'echoforge[worker]'"
        ) from error
    transfer_error: type[Exception] = getattr(errors, "XetDownloadError", OSError)  # not in 1.0
    return (errors.EntryNotFoundError, transfer_error, *_network_errors())


def _network_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub import errors

    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]  # httpx's or httpx2's
    return (http_error, ConnectionError, TimeoutError, errors.LocalEntryNotFoundError)
