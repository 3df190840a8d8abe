"""The options that commands share, with help and defaults taken from the contracts themselves.

Knows flags; what an option does is the command's business.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.jobs import AudioFormat, Device, SpeechRequest
from shared.settings import Settings

SHOWN_DEFAULTS = {
    "format": "by the file's extension, else wav",
    "seed": "random",
    "max_audio_seconds": "from the text's length",
}
SETTING, JOB, SERVER = "Settings", "Speech", "Server"


def _default(model: type[SpeechRequest] | type[Settings], name: str) -> str:
    return str(model.model_fields[name].default)


def asked(name: str, *flags: str) -> Any:
    """An option that fills a field of the request; left out, the server's default holds."""
    field = SpeechRequest.model_fields[name]
    shown = SHOWN_DEFAULTS.get(name) or _default(SpeechRequest, name)
    described = (field.description or "How the audio is stored.").replace("[", r"\[")  # no markup
    return typer.Option(*flags, help=described, show_default=shown, rich_help_panel=JOB)


def setting(name: str, *flags: str, default: str | None = None) -> Any:
    """An option that overrides a setting, which else comes from the environment."""
    shown = default or _default(Settings, name)
    return typer.Option(
        *flags,
        help=Settings.model_fields[name].description,
        show_default=f"ECHOFORGE_{name.upper()} or {shown}",
        rich_help_panel=SETTING,
    )


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        print(f"echoforge {_version()}")
        raise typer.Exit


def _version() -> str:
    try:
        return importlib.metadata.version("echoforge")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version: a checkout that is not installed"


Version = Annotated[
    bool,
    typer.Option(
        "--version",
        callback=_tell_version,
        is_eager=True,
        expose_value=False,
        help="Print the version and end.",
    ),
]
Url = Annotated[
    str,
    typer.Option("--url", envvar="ECHOFORGE_URL", help="Where the API is.", rich_help_panel=SERVER),
]
Text = Annotated[str, typer.Argument(help="What is spoken; `-` reads standard input.")]
JobId = Annotated[str, typer.Argument(help="The job's id, as `echoforge submit` printed it.")]
Format = Annotated[AudioFormat | None, asked("format", "--format")]
SpeakerId = Annotated[int | None, asked("speaker_id", "--speaker-id")]
Temperature = Annotated[float | None, asked("temperature", "--temperature")]
TopK = Annotated[int | None, asked("top_k", "--top-k")]
Seed = Annotated[int | None, asked("seed", "--seed")]
JobDevice = Annotated[Device | None, asked("device", "--device")]
MaxAudioSeconds = Annotated[float | None, asked("max_audio_seconds", "--max-audio-seconds")]
AsJson = Annotated[bool, typer.Option("--json", help="The API's JSON, unchanged.")]

DataDir = Annotated[Path | None, setting("data_dir", "--data")]
RedisUrl = Annotated[str | None, setting("redis_url", "--redis-url")]
OwnRedisUrl = Annotated[str | None, setting("redis_url", "--redis-url", default="its own")]
Host = Annotated[str | None, setting("host", "--host")]
Port = Annotated[int | None, setting("port", "--port")]
AllowRemote = Annotated[bool | None, setting("allow_remote", "--allow-remote")]
Model = Annotated[str | None, setting("model", "--model")]
WorkerDevice = Annotated[Device | None, setting("device", "--device")]
Slots = Annotated[int | None, setting("slots", "--slots")]
