#!/usr/bin/env python
"""Speak one text through a running API, and save the audio. Nothing but SpeechClient.

python scripts/test_voice_api.py "Hello there." --temperature 0.9 --top-k 40 -o out.wav
"""

from __future__ import annotations

import argparse
import os
import sys

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
    parser.add_argument("-o", "--output", default="out.wav", help="the WAV file that is written")
    url = os.environ.get("ECHOFORGE_URL", "http://127.0.0.1:8000")
    parser.add_argument("--url", default=url, help="where the API is")
    return parser.parse_args()


def main() -> int:
    asked = arguments()
    options = {
        name: getattr(asked, name)
        for name in ("speaker_id", "temperature", "top_k", "device", "style")
    }
    try:
        with SpeechClient(asked.url) as client:
            job = client.say(asked.text, asked.output, on_progress=show, **options)
    except SpeechApiError as error:
        print(f"failed: {error.message} ({error.code})", file=sys.stderr)
        return 1
    made = job["output"]
    print(f"{asked.output}: {made['duration_s']:.2f} s, {job['model']} on {job['device']}")
    if job.get("device_fallback"):
        print(f"note: {job['device_fallback']}")
    return 0


def show(job: dict[str, object]) -> None:
    print(f"{job['status']} {job.get('progress') or ''}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
