#!/usr/bin/env python
"""Speak one text through a running API, and save the audio. Nothing but SpeechClient.

python scripts/test_voice_api.py "Hello there." --temperature 0.9 --top-k 40 -o out.wav
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from client import SpeechApiError, SpeechClient


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Speak one text through a running EchoForge API.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("text", help="what is spoken")
    parser.add_argument("--speaker-id", type=int, default=1, help="0 to 99")
    parser.add_argument("--temperature", type=float, default=0.9, help="0 (greedy) to 1.5")
    parser.add_argument("--top-k", type=int, default=50, help="1 to 2048")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--style", default="default", help="a style of the voice")
    parser.add_argument("-o", "--output", type=Path, default="out.wav", help="the WAV file")
    url = os.environ.get("ECHOFORGE_URL", "http://127.0.0.1:8000")
    parser.add_argument("--url", default=url, help="where the API is")
    return parser.parse_args()


def main() -> int:
    asked = arguments()
    options = {
        name: getattr(asked, name)
        for name in ("speaker_id", "temperature", "top_k", "device", "style")
    }
    if asked.output.is_dir() or not os.access(asked.output.parent, os.W_OK):
        return failed(f"cannot write {asked.output}")  # before it is spoken, not after
    try:
        with SpeechClient(asked.url) as client:
            job = client.say(asked.text, asked.output, on_progress=show, **options)
    except SpeechApiError as error:
        return failed(f"{error.message} ({error.code})")
    except OSError as error:
        return failed(f"cannot write {asked.output}: {error.strerror}")
    made = job["output"]
    print(f"{asked.output}: {made['duration_s']:.2f} s, {job['model']} on {job['device']}")
    for notice in filter(None, (job.get("model_notice"), job.get("device_fallback"))):
        print(f"note: {notice}")
    return 0


def failed(reason: str) -> int:
    print(f"failed: {reason}", file=sys.stderr)
    return 1


def show(job: dict[str, Any]) -> None:
    percent = (job.get("progress") or {}).get("percent") or 0
    print(f"{job['id']}: {job['status']}, {percent} %", file=sys.stderr)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; a job that was accepted goes on without us", file=sys.stderr)
        sys.exit(130)
