"""Mimi against transformers' MimiModel on random weights, and streams against whole clips."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import MimiConfig, MimiModel

from worker.engine.mimi import STREAM_CHUNK, Mimi
from worker.engine.mimi_spec import MimiSpec, mimi_shapes

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_filters": 4,
    "codebook_size": 64,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "num_quantizers": 8,
    "upsample_groups": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "sliding_window": 10,
}
VARIATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped heads, deeper residuals": {
        "num_key_value_heads": 2,
        "num_residual_layers": 2,
        "num_semantic_quantizers": 2,
        "sliding_window": 7,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
    "other strides, no projections": {
        "upsampling_ratios": [5, 3, 2],
        "codebook_dim": 32,
        "vector_quantization_hidden_dimension": 32,
        "upsample_groups": 8,
        "head_dim": 12,
        "num_key_value_heads": 1,
        "kernel_size": 5,
        "residual_kernel_size": 5,
        "last_kernel_size": 5,
    },
}
FRAMES = 23  # 46 positions: every ring below wraps


@dataclass
class Codec:
    """The same weights twice: transformers' model and ours."""

    theirs: MimiModel
    ours: Mimi
    config: dict[str, Any]
    weights: dict[str, Tensor]

    def random_codes(self, batch: int, frames: int) -> Tensor:
        spec = self.ours.spec
        return torch.randint(spec.codebook_size, (batch, spec.num_quantizers, frames))


@pytest.fixture(autouse=True)
def _quiet_and_repeatable() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(min(2, threads))
    torch.manual_seed(0)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=VARIATIONS.values(), ids=VARIATIONS.keys())
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return build_codec(MimiConfig(**(TINY | request.param)), tmp_path_factory.mktemp("mimi"))


def build_codec(config: MimiConfig, directory: Path) -> Codec:
    torch.manual_seed(1)
    theirs = MimiModel(config).eval()
    randomise(theirs)
    level_like_speech(theirs)
    theirs.save_pretrained(directory)
    saved = json.loads((directory / "config.json").read_text())
    weights = load_file(directory / "model.safetensors")
    return Codec(theirs, Mimi(MimiSpec.from_config(saved), weights), saved, weights)


def randomise(model: MimiModel) -> None:
    """Replaces the initial values that would hide a fault: zeros, ones and tiny scales."""
    for name, tensor in model.state_dict().items():
        if name.endswith("embed_sum"):
            tensor.normal_()
        elif name.endswith(("cluster_usage", "layernorm.weight")):
            tensor.uniform_(0.5, 2.0)
        elif name.endswith("layer_scale.scale"):
            tensor.normal_(0.5, 0.1)
        elif name.endswith("layernorm.bias"):
            tensor.normal_(0.0, 0.3)


def level_like_speech(model: MimiModel) -> None:
    """Random weights are loud; the tolerances are meant for audio within -1..1."""
    codes = torch.randint(model.config.codebook_size, (1, model.config.num_quantizers, 4))
    last = model.decoder.decoder_seanet.layers[-1].conv
    with torch.no_grad():
        gain = 0.2 / model.decode(codes).audio_values.std()
        last.weight *= gain
        last.bias *= gain


def worst(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, after making sure that there is a signal to differ from."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05
    return (ours - theirs).abs().max().item()


def stream(mimi: Mimi, codes: Tensor, chunks: list[int]) -> Tensor:
    assert sum(chunks) == codes.shape[2]
    state, rows = mimi.new_state(len(codes)), torch.arange(len(codes))
    pieces = [mimi.decode_step(piece, state, rows) for piece in codes.split(chunks, dim=2)]
    return torch.cat(pieces, dim=1)


def test_names_and_shapes_are_exactly_those_transformers_writes(codec: Codec) -> None:
    written = {name: tuple(tensor.shape) for name, tensor in codec.weights.items()}
    assert mimi_shapes(codec.ours.spec) == written


def test_frame_size_and_rates_are_those_of_transformers(codec: Codec) -> None:
    spec, config = codec.ours.spec, codec.theirs.config
    ours = (spec.frame_size, spec.frame_rate, spec.latent_stride)
    assert ours == (config.frame_size, config.frame_rate, config.latent_stride)


@pytest.mark.parametrize("excess", [0, 1, 7, -1, -3])
def test_codes_of_a_clip_of_any_length_are_those_of_transformers(codec: Codec, excess: int) -> None:
    audio = torch.randn(2, FRAMES * codec.ours.spec.frame_size + excess) * 0.3
    codes = codec.ours.encode(audio)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, codec.theirs.encode(audio[:, None]).audio_codes)


@pytest.mark.parametrize("num_samples", [1, 2, 29, 31])
def test_a_clip_shorter_than_a_frame_has_the_codes_of_transformers(
    codec: Codec, num_samples: int
) -> None:
    audio = torch.randn(1, num_samples)
    theirs = codec.theirs.encode(audio[:, None]).audio_codes
    assert torch.equal(codec.ours.encode(audio), theirs)


def test_a_decoded_clip_is_that_of_transformers(codec: Codec) -> None:
    codes = codec.random_codes(2, FRAMES)
    assert worst(codec.ours.decode(codes), codec.theirs.decode(codes).audio_values[:, 0]) < 1e-4


def test_a_clip_longer_than_a_chunk_is_that_of_transformers(codec: Codec) -> None:
    codes = codec.random_codes(1, 150)
    assert worst(codec.ours.decode(codes), codec.theirs.decode(codes).audio_values[:, 0]) < 1e-4


def test_streaming_frame_by_frame_is_the_whole_clip(codec: Codec) -> None:
    codes = codec.random_codes(2, FRAMES)
    assert worst(stream(codec.ours, codes, [1] * FRAMES), codec.ours.decode(codes)) < 1e-5


def test_streaming_in_mixed_chunks_is_the_whole_clip(codec: Codec) -> None:
    codes = codec.random_codes(2, FRAMES)
    assert worst(stream(codec.ours, codes, [1, 2, 4, 8, 1, 4, 3]), codec.ours.decode(codes)) < 1e-5


def test_a_step_longer_than_the_largest_chunk_is_cut_and_stays_exact(codec: Codec) -> None:
    codes = codec.random_codes(1, 2 * STREAM_CHUNK + 6)
    audio = stream(codec.ours, codes, [3, 2 * STREAM_CHUNK + 1, 2])
    assert worst(audio, codec.ours.decode(codes)) < 1e-5


def test_slots_at_different_positions_in_one_call_are_each_as_if_alone(codec: Codec) -> None:
    mimi, codes = codec.ours, codec.random_codes(4, FRAMES)
    state, seen = mimi.new_state(4), [0, 0, 0, 0]
    heard: list[list[Tensor]] = [[], [], [], []]
    turns = [([2], 3), ([0, 2], 1), ([3, 0], 2), ([3, 1, 2], 4), ([1], 1), ([2, 3, 0, 1], 7)]
    for slots, count in turns:
        piece = torch.stack([codes[slot, :, seen[slot] : seen[slot] + count] for slot in slots])
        audio = mimi.decode_step(piece, state, torch.tensor(slots))
        for slot, part in zip(slots, audio, strict=True):
            heard[slot].append(part)
            seen[slot] += count
    for slot, count in enumerate(seen):
        alone = mimi.decode(codes[slot : slot + 1, :, :count])[0]
        assert worst(torch.cat(heard[slot]), alone) < 1e-5


def test_a_reset_slot_starts_afresh_and_the_others_go_on_undisturbed(codec: Codec) -> None:
    mimi, codes, again = codec.ours, codec.random_codes(3, FRAMES), codec.random_codes(1, 9)
    state, rows = mimi.new_state(3), torch.arange(3)
    first = mimi.decode_step(codes[:, :, :14], state, rows)
    state.reset(torch.tensor([1]))
    last = mimi.decode_step(torch.cat([codes[:1, :, 14:], again, codes[2:, :, 14:]]), state, rows)
    assert worst(last[1], mimi.decode(again)[0]) < 1e-5
    whole = mimi.decode(codes)
    for slot in (0, 2):
        assert worst(torch.cat([first[slot], last[slot]]), whole[slot]) < 1e-5


def test_a_slot_fed_with_broken_numbers_is_whole_after_its_reset(codec: Codec) -> None:
    mimi, codes = codec.ours, codec.random_codes(1, 5)
    state, rows = mimi.new_state(1), torch.tensor([0])
    for tensor in (*state.carries.values(), *state.keys, *state.values):
        tensor.fill_(float("nan"))
    state.reset(rows)
    assert worst(mimi.decode_step(codes, state, rows), mimi.decode(codes)) < 1e-5


def test_slots_that_are_not_named_keep_their_state_bit_for_bit(codec: Codec) -> None:
    mimi, codes = codec.ours, codec.random_codes(3, 4)
    state = mimi.new_state(3)
    mimi.decode_step(codes, state, torch.arange(3))
    tensors = [*state.carries.values(), *state.keys, *state.values, state.positions]
    before = [tensor[[0, 2]].clone() for tensor in tensors]
    mimi.decode_step(codes[1:2], state, torch.tensor([1]))
    assert all(
        torch.equal(tensor[[0, 2]], old) for tensor, old in zip(tensors, before, strict=True)
    )


def test_gradients_reach_the_weights_through_a_decoded_clip(codec: Codec) -> None:
    with torch.inference_mode(False):
        weights = {name: tensor.clone().requires_grad_() for name, tensor in codec.weights.items()}
        mimi, codes = Mimi(codec.ours.spec, weights), codec.random_codes(1, 70).clone()
        mimi.decode(codes).square().mean().backward()
    for name in ("upsample.conv.weight", "decoder.layers.0.conv.weight"):
        assert weights[name].grad is not None
        assert weights[name].grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_causal_conv", False),
        ("use_conv_shortcut", True),
        ("pad_mode", "replicate"),
        ("hidden_act", "relu"),
        ("attention_bias", True),
        ("trim_right_ratio", 0.5),
        ("audio_channels", 2),
        ("frame_rate", 25.0),
        ("codebook_dim", 128),
        ("num_key_value_heads", 3),
    ],
)
def test_a_key_that_is_not_implemented_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        MimiSpec.from_config({key: value})


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_a_rope_type_that_is_not_implemented_is_refused_by_name(key: str) -> None:
    with pytest.raises(ValueError, match="rope_type='yarn'"):
        MimiSpec.from_config({key: {"rope_type": "yarn", "rope_theta": 10_000.0}})


def test_an_old_style_config_gives_the_same_spec_as_a_new_style_one(codec: Codec) -> None:
    old = {key: value for key, value in codec.config.items() if key != "rope_parameters"}
    del old["_frame_rate"]
    old["rope_theta"] = codec.config["rope_parameters"]["rope_theta"]
    old["frame_rate"] = codec.theirs.config.frame_rate
    assert MimiSpec.from_config(old) == codec.ours.spec


def test_an_empty_config_and_transformers_default_are_the_published_mimi() -> None:
    assert MimiSpec.from_config({}) == MimiSpec()
    assert MimiSpec.from_config(MimiConfig().to_dict()) == MimiSpec()
    assert (MimiSpec().frame_size, MimiSpec().frame_rate, MimiSpec().latent_stride) == (
        1920,
        12.5,
        2,
    )


def test_a_null_head_or_codebook_width_is_derived_as_transformers_does() -> None:
    spec = MimiSpec.from_config(TINY | {"head_dim": None})
    assert spec.head_dim == 8
    sizes = {"codebook_dim": None, "vector_quantization_hidden_dimension": 32}
    assert MimiSpec.from_config(TINY | sizes).codebook_dim == 32


def test_a_missing_weight_is_named(codec: Codec) -> None:
    weights = {k: v for k, v in codec.weights.items() if k != "upsample.conv.weight"}
    with pytest.raises(ValueError, match=r"lack upsample\.conv\.weight"):
        Mimi(codec.ours.spec, weights)


def test_a_weight_of_another_shape_is_named(codec: Codec) -> None:
    wider = replace(codec.ours.spec, intermediate_size=65)
    with pytest.raises(ValueError, match=r"mlp\.fc1\.weight has shape"):
        Mimi(wider, codec.weights)


def test_audio_and_codes_of_a_wrong_shape_are_refused(codec: Codec) -> None:
    mimi = codec.ours
    for audio in (torch.zeros(100), torch.zeros(1, 0), torch.zeros(1, 1, 100)):
        with pytest.raises(ValueError, match="audio has shape"):
            mimi.encode(audio)
    state, rows = mimi.new_state(2), torch.tensor([0])
    for codes in (
        codec.random_codes(2, 1),
        codec.random_codes(1, 1)[:, 1:],
        codec.random_codes(1, 0),
    ):
        with pytest.raises(ValueError, match="codes have shape"):
            mimi.decode_step(codes, state, rows)


def test_the_published_shape_decodes_and_streams_as_transformers(tmp_path: Path) -> None:
    codec = build_codec(MimiConfig(), tmp_path)
    codes = codec.random_codes(1, 10)
    theirs = codec.theirs.decode(codes).audio_values[:, 0]
    assert worst(codec.ours.decode(codes), theirs) < 1e-4
    assert worst(stream(codec.ours, codes, [1, 1, 2, 4, 2]), theirs) < 1e-4
