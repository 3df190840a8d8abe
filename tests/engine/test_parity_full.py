"""CSM-1B's exact shape against transformers, on random weights: `make parity`, minutes, 9 GB."""

from __future__ import annotations

import gc
import resource
from pathlib import Path

import numpy as np
import pytest
from transformers import CsmConfig

from tests.checkpoints import LLAMA3, random_model, write_transformers
from tests.engine.test_parity import greedy_of_transformers
from worker.engine.backends import Backend
from worker.engine.checkpoint import Checkpoint, load_checkpoint
from worker.engine.engine import Engine, EngineConfig
from worker.engine.sampling import Sampling
from worker.engine.utterance import Utterance

NUM_FRAMES = 4
TEXT = "Four frames of the whole model."


def full_config() -> CsmConfig:
    rope = LLAMA3 | {"original_max_position_embeddings": 1024}
    return CsmConfig(
        rope_parameters=rope,
        depth_decoder_config={"rope_parameters": rope | {"original_max_position_embeddings": 16}},
    )


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_greedy_codes_of_the_full_shape_are_transformers(tmp_path: Path) -> None:
    model = random_model(full_config())
    num = sum(p.numel() for n, p in model.named_parameters() if "codec_model" not in n)
    assert 1.5e9 < num < 1.7e9
    path = write_transformers(model, tmp_path / "full", shard_size="2GB")
    checkpoint = load_checkpoint(path)
    ids = checkpoint.tokenizer.encode(TEXT, 1)
    theirs = greedy_of_transformers(model, ids, NUM_FRAMES)
    del model
    gc.collect()
    assert len(np.unique(theirs)) > 60
    for backend in ("torch", "openvino"):
        ours = greedy_codes(checkpoint, backend)
        print(f"\n{backend}: peak memory, transformers included: {peak_gb():.1f} GB")
        assert np.array_equal(ours, theirs), backend


def greedy_codes(checkpoint: Checkpoint, backend: Backend) -> np.ndarray:
    config = EngineConfig(num_slots=1, max_positions=256, backend=backend, precision="fp32")
    engine = Engine(checkpoint, config).start()
    said = Utterance(TEXT, 1, Sampling(temperature=0), max_frames=NUM_FRAMES)
    codes = engine.submit(said).result(900).codes
    engine.stop()
    gc.collect()
    return codes
