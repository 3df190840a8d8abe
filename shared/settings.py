"""Settings: the one reader of the environment.

Read once when a process starts, then passed down. Knows names, defaults and limits; opens nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

REDIS_SCHEMES = ("redis", "rediss", "redis+socket")


class Settings(BaseSettings):
    """Every variable carries the prefix `ECHOFORGE_`; `.env.example` lists them all."""

    model_config = SettingsConfigDict(env_prefix="ECHOFORGE_", extra="ignore")

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

    model: str = Field(
        "csm-1b", description="csm-1b, csm-tiny (untrained: noise), or a checkpoint directory."
    )
    model_dir: Path = Field(
        Path("~/.cache/echoforge/csm-1b"), description="Where a checkpoint is looked for first."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto takes CUDA where it works, else the CPU."
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

    @model_validator(mode="after")
    def _renewed_in_time(self) -> Settings:
        if self.renew_s * 2 > self.lease_s:
            raise ValueError("renew_s must be at most half of lease_s, or leases run out")
        return self

    @property
    def audio_dir(self) -> Path:
        return self.data_dir.expanduser() / "audio"
