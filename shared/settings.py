"""Settings: the one reader of the environment.

Read once when a process starts, then passed down. Knows names, defaults and limits; opens nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ENV_PREFIX = "ECHOFORGE_"
REDIS_SCHEMES = ("redis", "rediss", "redis+socket")


class Settings(BaseSettings):
    """Every variable carries the prefix `ECHOFORGE_`; `.env.example` lists them all."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="ignore",
        hide_input_in_errors=True,  # a URL may hold a password
    )

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="Redis or Valkey; `redis+socket:///path` for a unix socket.",
    )
    data_dir: Path = Field(
        Path("~/.local/share/echoforge"),
        description="Audio, the embedded Redis and generated models.",
    )
    host: str = Field("127.0.0.1", description="Address the API listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port the API listens on.")
    allow_remote: bool = Field(
        False,
        description=(
            "Listen beyond loopback although there are no API keys yet:"
            " whoever reaches it may submit, read and delete jobs."
        ),
    )

    model: str = Field(
        "csm-1b", description="csm-1b, csm-tiny (untrained: noise), or a checkpoint directory."
    )
    model_dir: Path = Field(
        Path("~/.cache/echoforge/csm-1b"), description="Where a checkpoint is looked for first."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto takes CUDA where it works, else the CPU."
    )
    precision: Literal["auto", "fp32", "bf16", "int8", "int4"] = Field(
        "auto", description="Of the language model; auto is bf16 on CUDA, int8 on the CPU."
    )
    slots: int = Field(4, ge=1, le=64, description="Utterances spoken at once by one worker.")
    max_positions: int = Field(
        2048, ge=64, description="Rows of context a slot holds; fewer need less memory."
    )
    threads: int = Field(0, ge=0, description="Threads for the model; 0 is one a core.")
    max_audio_s: float = Field(
        90.0, gt=0, le=600, description="Longest audio of one job, in seconds."
    )

    max_queued: int = Field(
        1000, ge=1, description="Jobs waiting before new ones are refused (503)."
    )
    max_body_bytes: int = Field(
        1_048_576, ge=1024, description="Largest request body (413 beyond)."
    )
    lease_s: float = Field(15.0, gt=0, description="A worker silent for so long loses its jobs.")
    renew_s: float = Field(1.0, gt=0, description="How often leases are renewed and progress told.")
    tick_s: float = Field(
        3.0, gt=0, description="How often lost jobs and doorbells are looked for."
    )
    sweep_s: float = Field(60.0, gt=0, description="How often audio past its time is deleted.")
    drain_s: float = Field(25.0, ge=0, description="On SIGTERM, time for running jobs to end.")
    watchdog_s: float = Field(60.0, gt=0, description="An engine silent for so long is given up.")

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least level."
    )
    log_format: Literal["console", "json"] = Field("console", description="console or json lines.")

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        if url.partition("://")[0] not in REDIS_SCHEMES:
            raise ValueError(f"must begin with one of {', '.join(REDIS_SCHEMES)}")
        return url

    @field_validator("redis_url")
    @classmethod
    def _readable(cls, url: str) -> str:
        """urlsplit's own message would repeat a part of the URL, which may be a password."""
        try:
            urlsplit(url).port  # noqa: B018
        except ValueError:
            raise ValueError(
                "has no readable host and port; the port is a number up to 65535, and a password's"
                " special characters are written as %2F and the like"
            ) from None
        return url

    @model_validator(mode="after")
    def _renewed_in_time(self) -> Settings:
        if self.renew_s * 2 > self.lease_s:
            raise ValueError("renew_s must be at most half of lease_s, or leases run out")
        return self

    @property
    def audio_dir(self) -> Path:
        return self.data_dir.expanduser() / "audio"


def settings_problem(error: ValidationError) -> str:
    """What is wrong with the environment, in one line that repeats no value."""
    return "; ".join(map(_complaint, error.errors(include_input=False, include_url=False)))


def _complaint(one: Mapping[str, Any]) -> str:
    message = " ".join(str(one["msg"]).removeprefix("Value error, ").split())
    return f"{ENV_PREFIX}{str(one['loc'][0]).upper()}: {message}" if one["loc"] else message
