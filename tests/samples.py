"""Small real objects for tests: a clock to turn, requests, outputs, workers."""

from __future__ import annotations

from typing import Any

from shared.jobs import Output, SpeechRequest
from shared.store import Claim
from shared.workers import WorkerInfo


class Clock:
    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class FakeDoorbell:
    def __init__(self) -> None:
        self.rings: list[tuple[str, int]] = []

    def ring(self, queue: str, times: int = 1) -> bool:
        self.rings.append((queue, times))
        return True


def a_request(text: str = "Hello.", **fields: Any) -> SpeechRequest:
    return SpeechRequest(text=text, **fields)


def an_output(claim: Claim, **fields: Any) -> Output:
    return Output.model_validate(
        {
            "name": f"{claim.job_id}.{claim.token[:12]}.wav",
            "format": "wav",
            "content_type": "audio/wav",
            "bytes": 4,
            "sample_rate": 24_000,
            "duration_s": 1.5,
            "sha256": "ab" * 32,
            "seed": 1,
            "finish_reason": "eos",
            **fields,
        }
    )


def a_worker(id: str = "w1", device: str = "cpu", **fields: Any) -> WorkerInfo:
    return WorkerInfo.model_validate(
        {
            "id": id,
            "host": "here",
            "pid": 1,
            "device": device,
            "model": "csm-tiny",
            "slots": 4,
            "started_at": 0.0,
            **fields,
        }
    )
