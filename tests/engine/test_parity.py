"""The engine against transformers, on random weights written by one and read by the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CsmForConditionalGeneration

from tests.checkpoints import LLAMA3, random_model, tiny_config, write_original, write_transformers
from worker.engine.backends import Backend
from worker.engine.checkpoint import Checkpoint, load_checkpoint
from worker.engine.csm import Csm
from worker.engine.engine import Engine, EngineConfig
from worker.engine.sampling import Sampling
from worker.engine.torch_runner import torch_model
from worker.engine.utterance import Segment, Utterance

RESERVED = [2048, 2049, 2050]  # codes that the codec does not have; the engine never says them
NUM_FRAMES = 25
ON_BOTH = pytest.mark.parametrize("backend", ["torch", "openvino"])


@pytest.fixture(scope="module", params=["default", "llama3"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CsmForConditionalGeneration, Checkpoint]:
    rope = LLAMA3 if request.param == "llama3" else None
    model = random_model(tiny_config(rope))
    path = write_transformers(model, tmp_path_factory.mktemp("hf"))
    return model, load_checkpoint(path)


def backbone_hidden(csm: Csm[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """All rows at once, without a cache: (1, T, W)."""
    num_rows = rows.shape[1]
    mask = torch.ones(num_rows, num_rows, dtype=torch.bool).tril()
    positions = torch.arange(num_rows)[None]
    return csm.read(rows, positions, lambda _, q, k, v: csm.ops.attend(q, k, v, mask))


@torch.no_grad()
def test_backbone_logits_are_transformers(
    pair: tuple[CsmForConditionalGeneration, Checkpoint],
) -> None:
    model, checkpoint = pair
    ids = torch.randint(0, 256, (1, 100))
    csm = torch_model(checkpoint.spec, checkpoint.weights)
    hidden = backbone_hidden(csm, csm.w["text_embedding"][ids])
    ours = csm.ops.linear(hidden, csm.w["first_head"])
    theirs = model(input_ids=ids).logits
    assert (ours - theirs).abs().max() < 1e-4
    assert theirs.std() > 0.1


@torch.no_grad()
def test_logits_of_every_depth_step_are_transformers(
    pair: tuple[CsmForConditionalGeneration, Checkpoint],
) -> None:
    model, checkpoint = pair
    csm = torch_model(checkpoint.spec, checkpoint.weights)
    hidden = torch.randn(3, checkpoint.spec.backbone.width)
    codes = torch.randint(0, 2048, (3, 32))
    seen: list[torch.Tensor] = []

    def follow(logits: torch.Tensor, codebook: int) -> torch.Tensor:
        seen.append(logits)
        return codes[:, codebook]

    csm.speak_frame(hidden, follow)
    placeholder = torch.nn.functional.pad(codes[:, :-1], (1, 0))
    theirs = model.depth_decoder(placeholder, backbone_last_hidden_state=hidden).logits
    ours = torch.stack(seen[1:], dim=1)
    assert ours.shape == theirs.shape == (3, 31, 2051)
    assert (ours - theirs).abs().max() < 1e-4
    assert theirs.std() > 0.1


@torch.no_grad()
def greedy_of_transformers(
    model: CsmForConditionalGeneration, ids: list[int], frames: int, audio: np.ndarray | None = None
) -> np.ndarray:
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
    if audio is not None:
        inputs["input_values"] = torch.from_numpy(audio)[None, None]
        inputs["input_values_cutoffs"] = torch.tensor([[len(audio)]])
    model.generation_config.suppress_tokens = RESERVED
    model.depth_decoder.generation_config.suppress_tokens = RESERVED
    codes = model.generate(
        **inputs, do_sample=False, depth_decoder_do_sample=False, max_new_tokens=frames
    )
    return codes[0].numpy()


def greedy_of_engine(checkpoint: Checkpoint, utterance: Utterance, backend: Backend) -> np.ndarray:
    num_slots = 2 if backend == "torch" else 1  # every number of speakers is a graph to compile
    config = EngineConfig(num_slots, max_positions=256, prefill_rows=16, backend=backend)
    engine = Engine(checkpoint, config).start()
    try:
        return engine.submit(utterance).result(timeout_s=120).codes
    finally:
        engine.stop()


@ON_BOTH
def test_greedy_codes_are_transformers(
    pair: tuple[CsmForConditionalGeneration, Checkpoint], backend: Backend
) -> None:
    model, checkpoint = pair
    ids = checkpoint.tokenizer.encode("The parity of codes.", 3)
    said = Utterance("The parity of codes.", 3, Sampling(temperature=0), max_frames=NUM_FRAMES)
    ours = greedy_of_engine(checkpoint, said, backend)
    assert np.array_equal(ours, greedy_of_transformers(model, ids, NUM_FRAMES))
    assert len(np.unique(ours)) > 50


@ON_BOTH
def test_greedy_codes_with_audio_context_are_transformers(
    pair: tuple[CsmForConditionalGeneration, Checkpoint], backend: Backend
) -> None:
    model, checkpoint = pair
    audio = np.random.default_rng(0).normal(0, 0.3, 1920 * 9 + 700).astype(np.float32)
    said_before = checkpoint.tokenizer.encode("Said before.", 1)
    num_frames = -(-len(audio) // 1920)
    ids = [*said_before, *[258] * num_frames, 259, *checkpoint.tokenizer.encode("And now.", 2)]
    context = (Segment(1, "Said before.", audio=audio),)
    said = Utterance("And now.", 2, Sampling(temperature=0), context, max_frames=NUM_FRAMES)
    theirs = greedy_of_transformers(model, ids, NUM_FRAMES, audio)
    assert np.array_equal(greedy_of_engine(checkpoint, said, backend), theirs)


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "ckpt.pt"])
def test_the_original_layout_gives_exactly_the_same_weights(
    pair: tuple[CsmForConditionalGeneration, Checkpoint], tmp_path: Path, pickled: bool
) -> None:
    model, checkpoint = pair
    again = load_checkpoint(write_original(model, tmp_path / "original", pickled=pickled))
    assert set(again.weights) == set(checkpoint.weights)
    for name, tensor in checkpoint.weights.items():
        assert torch.equal(again.weights[name], tensor), name
    for name, tensor in checkpoint.codec_weights.items():
        assert torch.equal(again.codec_weights[name], tensor), name


def test_a_sharded_checkpoint_gives_exactly_the_same_weights(
    pair: tuple[CsmForConditionalGeneration, Checkpoint], tmp_path: Path
) -> None:
    model, checkpoint = pair
    path = write_transformers(model, tmp_path / "shards", shard_size="3MB")
    assert len(list(path.glob("*.safetensors"))) > 2
    again = load_checkpoint(path)
    for name, tensor in checkpoint.weights.items():
        assert torch.equal(again.weights[name], tensor), name
