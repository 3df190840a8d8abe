"""Speaks a text with DirectCSM, without a queue: `python scripts/direct_csm_test.py "Hello."`"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from worker.direct_csm import DirectCSM
from worker.engine.errors import EngineError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", help="what to say")
    parser.add_argument("--model", default="csm-1b", help="csm-1b, csm-tiny or a directory")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--speaker-id", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--seed", type=int)
    parser.add_argument("-o", "--output", type=Path, default=Path("out/direct_csm.wav"))
    args = parser.parse_args()
    csm = DirectCSM(args.model, args.device)
    began = time.monotonic()
    try:
        audio, sample_rate = csm.generate_speech(
            args.text, args.speaker_id, args.temperature, args.top_k, seed=args.seed
        )
    except EngineError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    finally:
        csm.close()
    path = csm.save_audio(audio, sample_rate, args.output)
    seconds = len(audio) / sample_rate
    print(f"{path}: {seconds:.2f} s of audio in {time.monotonic() - began:.2f} s, loading included")
    for notice in filter(None, (csm.notice, csm.fallback)):
        print(f"note: {notice}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
