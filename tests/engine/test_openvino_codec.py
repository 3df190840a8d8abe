"""Mimi's OpenVINO decoder against the PyTorch one, on the same random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import MimiConfig

from tests.engine.test_mimi import TINY, VARIATIONS, Codec, build_codec, stream, worst
from worker.engine.audio_stream import AudioStream
from worker.engine.mimi import Mimi
from worker.engine.openvino_codec import MAX_FRAMES, OpenvinoMimi

FRAMES = 64  # 128 positions: the largest ring below, of 41, wraps three times
CLOSE = 1e-5  # for audio within -1..1


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module", params=VARIATIONS.values(), ids=VARIATIONS.keys())
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return build_codec(MimiConfig(**(TINY | request.param)), tmp_path_factory.mktemp("mimi"))


@pytest.fixture(scope="module")
def mimi(codec: Codec) -> OpenvinoMimi:
    return OpenvinoMimi(codec.ours.spec, codec.weights)


def test_a_decoded_clip_is_that_of_pytorch(codec: Codec, mimi: OpenvinoMimi) -> None:
    codes = codec.random_codes(2, FRAMES)
    assert worst(mimi.decode(codes), codec.ours.decode(codes)) < CLOSE


@pytest.mark.parametrize("frames", [1, 2, 4, 8])
def test_a_stream_in_chunks_is_the_whole_clip(
    codec: Codec, mimi: OpenvinoMimi, frames: int
) -> None:
    codes = codec.random_codes(2, FRAMES)
    heard = stream(mimi, codes, [frames] * (FRAMES // frames))
    assert worst(heard, mimi.decode(codes)) < CLOSE
    assert worst(heard, codec.ours.decode(codes)) < CLOSE


def test_a_stream_in_growing_and_odd_chunks_is_the_whole_clip(
    codec: Codec, mimi: OpenvinoMimi
) -> None:
    codes = codec.random_codes(3, FRAMES)
    heard = stream(mimi, codes, [1, 2, 4, 8, 8, 3, 16, 5, 17])
    assert worst(heard, codec.ours.decode(codes)) < CLOSE


def test_more_rows_than_one_call_takes_are_as_with_pytorch(
    codec: Codec, mimi: OpenvinoMimi
) -> None:
    codes = codec.random_codes(MAX_FRAMES // 8 + 1, 16)
    assert worst(stream(mimi, codes, [8, 8]), codec.ours.decode(codes)) < CLOSE


def test_a_stream_goes_on_in_either_backend(codec: Codec, mimi: OpenvinoMimi) -> None:
    codes, rows = codec.random_codes(2, 24), torch.arange(2)
    state = codec.ours.new_state(2)
    backends: list[Mimi] = [codec.ours, mimi, codec.ours, mimi]
    pieces = zip(backends, codes.split([4, 8, 8, 4], dim=2), strict=True)
    heard = torch.cat([backend.decode_step(piece, state, rows) for backend, piece in pieces], dim=1)
    assert worst(heard, codec.ours.decode(codes)) < CLOSE


def test_a_slot_sounds_the_same_to_the_bit_alone_and_beside_others(
    codec: Codec, mimi: OpenvinoMimi
) -> None:
    codes, chunks = codec.random_codes(4, 31), [1, 2, 4, 8, 8, 8]
    beside = stream(mimi, codes, chunks)
    for slot in range(4):
        assert torch.equal(stream(mimi, codes[slot : slot + 1], chunks)[0], beside[slot])


def test_slots_at_different_positions_in_one_call_are_each_as_if_alone(
    codec: Codec, mimi: OpenvinoMimi
) -> None:
    codes = codec.random_codes(4, FRAMES)
    state, seen = mimi.new_state(4), [0, 0, 0, 0]
    heard: list[list[Tensor]] = [[], [], [], []]
    turns = [([2], 3), ([0, 2], 1), ([3, 0], 2), ([3, 1, 2], 4), ([1], 1), ([2, 3, 0, 1], 14)] * 2
    for slots, count in turns:
        piece = torch.stack([codes[slot, :, seen[slot] : seen[slot] + count] for slot in slots])
        audio = mimi.decode_step(piece, state, torch.tensor(slots))
        for slot, part in zip(slots, audio, strict=True):
            heard[slot].append(part)
            seen[slot] += count
    for slot, count in enumerate(seen):
        alone = codec.ours.decode(codes[slot : slot + 1, :, :count])[0]
        assert worst(torch.cat(heard[slot]), alone) < CLOSE


@pytest.mark.parametrize("slots", [[1], [0, 2], [1, 2], [2, 0]])
def test_slots_that_are_not_named_keep_their_state_bit_for_bit(
    codec: Codec, mimi: OpenvinoMimi, slots: list[int]
) -> None:
    state = mimi.new_state(3)
    mimi.decode_step(codec.random_codes(3, 4), state, torch.arange(3))
    tensors = [*state.carries.values(), *state.keys, *state.values, state.positions]
    others = [slot for slot in range(3) if slot not in slots]
    before = [tensor.clone() for tensor in tensors]
    mimi.decode_step(codec.random_codes(len(slots), 4), state, torch.tensor(slots))
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(tensor[others], old[others])
        assert all(not torch.equal(tensor[slot], old[slot]) for slot in slots)


def test_what_was_heard_stays_when_more_is_decoded(codec: Codec, mimi: OpenvinoMimi) -> None:
    codes, state, rows = codec.random_codes(1, 8), mimi.new_state(1), torch.arange(1)
    first = mimi.decode_step(codes, state, rows)
    copy = first.clone()
    mimi.decode_step(codes, state, rows)
    assert torch.equal(first, copy)


def test_a_reset_slot_starts_afresh_and_the_others_go_on_undisturbed(
    codec: Codec, mimi: OpenvinoMimi
) -> None:
    codes, again = codec.random_codes(3, 23), codec.random_codes(1, 9)
    state, rows = mimi.new_state(3), torch.arange(3)
    first = mimi.decode_step(codes[:, :, :14], state, rows)
    state.reset(torch.tensor([1]))
    last = mimi.decode_step(torch.cat([codes[:1, :, 14:], again, codes[2:, :, 14:]]), state, rows)
    assert worst(last[1], codec.ours.decode(again)[0]) < CLOSE
    whole = codec.ours.decode(codes)
    for slot in (0, 2):
        assert worst(torch.cat([first[slot], last[slot]]), whole[slot]) < CLOSE


def test_a_slot_fed_with_broken_numbers_is_whole_after_its_reset(
    codec: Codec, mimi: OpenvinoMimi
) -> None:
    codes, state, rows = codec.random_codes(1, 5), mimi.new_state(1), torch.tensor([0])
    for tensor in (*state.carries.values(), *state.keys, *state.values):
        tensor.fill_(float("nan"))
    state.reset(rows)
    assert worst(mimi.decode_step(codes, state, rows), codec.ours.decode(codes)) < CLOSE


def test_the_audio_stream_sounds_as_with_pytorch(codec: Codec, mimi: OpenvinoMimi) -> None:
    codes = codec.random_codes(2, 20).numpy()
    heard = []
    for backend in (mimi, codec.ours):
        frames, pieces = AudioStream(backend, 3), []
        for frame in range(20):
            for slot, of_slot in zip((0, 2), codes, strict=True):
                frames.add(slot, of_slot[:, frame])
            due = frames.decode_due({0, 2} if frame == 19 else set())
            pieces += [torch.from_numpy(due[0] + due[2])] if due else []
        heard.append(torch.cat(pieces))
    assert worst(heard[0], heard[1]) < CLOSE


def test_encoding_is_that_of_pytorch(codec: Codec, mimi: OpenvinoMimi) -> None:
    audio = torch.randn(1, 5 * mimi.spec.frame_size) * 0.3
    assert torch.equal(mimi.encode(audio), codec.ours.encode(audio))


def test_codes_of_a_wrong_shape_are_refused(codec: Codec, mimi: OpenvinoMimi) -> None:
    state, rows = mimi.new_state(2), torch.tensor([0])
    for codes in (
        codec.random_codes(2, 1),
        codec.random_codes(1, 1)[:, 1:],
        codec.random_codes(1, 0),
    ):
        with pytest.raises(ValueError, match="codes have shape"):
            mimi.decode_step(codes, state, rows)


def test_weights_on_another_device_are_refused(codec: Codec) -> None:
    elsewhere = {name: tensor.to("meta") for name, tensor in codec.weights.items()}
    with pytest.raises(ValueError, match="on meta"):
        OpenvinoMimi(codec.ours.spec, elsewhere)


def test_the_published_shape_streams_as_with_pytorch(tmp_path: Path) -> None:
    codec = build_codec(MimiConfig(), tmp_path)
    codes = codec.random_codes(2, 15)
    heard = stream(OpenvinoMimi(codec.ours.spec, codec.weights), codes, [1, 2, 4, 8])
    assert worst(heard, codec.ours.decode(codes)) < CLOSE
