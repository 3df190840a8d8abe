"""Mimi's decoder as one OpenVINO graph, for the CPU: any number of streams, any number of frames.

The graph is traced from the layers in `mimi.py`. Knows graphs and the state they read and extend;
knows nothing of the layers themselves. Encoding stays with PyTorch.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import openvino as ov
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor

from worker.engine.mimi import STREAM_CHUNK, Mimi
from worker.engine.mimi_spec import MimiSpec
from worker.engine.mimi_state import MimiState, in_window

Floats = npt.NDArray[np.float32]
MAX_FRAMES = 32  # of all rows together in one call: a graph keeps the memory of its largest call
_TRACED = (2, 3)  # rows and frames: sizes that no other axis is confused with


class OpenvinoMimi(Mimi):
    """A `Mimi` on the CPU that decodes with OpenVINO; the state and everything else are Mimi's.

    Decodes for one thread at a time. `num_threads` is 0 for all there are. A number of rows and
    frames that is new takes some tens of milliseconds longer, once.
    """

    def __init__(self, spec: MimiSpec, weights: Mapping[str, Tensor], num_threads: int = 0) -> None:
        super().__init__(spec, weights)
        if self.device.type != "cpu":
            raise ValueError(f"OpenVINO decodes on the CPU; the weights are on {self.device}")
        model = _compiled(_graph(self), num_threads)
        self._request = model.create_infer_request()

    def new_state(self, num_slots: int, max_chunk: int = STREAM_CHUNK) -> MimiState:
        return super().new_state(num_slots, min(max_chunk, MAX_FRAMES))

    def _decode_chunk(self, codes: Tensor, state: MimiState, rows: Tensor) -> Tensor:
        size = max(1, MAX_FRAMES // codes.shape[2])
        parts = zip(torch.split(codes, size), torch.split(rows, size), strict=True)
        return torch.cat([self._decode_rows(codes, state, rows) for codes, rows in parts])

    def _decode_rows(self, codes: Tensor, state: MimiState, rows: Tensor) -> Tensor:
        positions = state.next_positions(rows, codes.shape[2] * self.spec.latent_stride)
        inputs = [codes, positions, _mask(state, positions), *_of_rows(_remembered(state), rows)]
        arrays = [tensor.numpy() for tensor in inputs]
        outputs = self._request.infer(arrays, share_inputs=True, share_outputs=True)
        audio, *new = outputs.to_tuple()
        _remember(state, rows, positions, new)
        return torch.from_numpy(audio.copy())


class _GraphMemory:
    """Implements `worker.engine.mimi_state.Memory` on a graph's inputs and outputs.

    `past` are the carries (R, steps, channels), the rings of keys and those of values
    (R, KH, capacity, D) before the call; `new()` the carries after it, and the keys and values
    (R, KH, T, D) that it adds. The rings are not copied to stand beside what is new: the scores of
    both are.
    """

    def __init__(self, mimi: Mimi, positions: Tensor, mask: Tensor, past: Sequence[Tensor]) -> None:
        names = [conv.name for conv in mimi.decoder_convs if conv.context]
        self._carries = dict(zip(names, past, strict=False))
        rings, layers = past[len(names) :], mimi.spec.num_hidden_layers
        self._keys, self._values = rings[:layers], rings[layers:]
        self._positions, self._mask = positions, mask
        self._new_keys: list[Tensor] = []
        self._new_values: list[Tensor] = []

    @property
    def positions(self) -> Tensor:
        return self._positions

    def joined(self, name: str, x: Tensor) -> Tensor:
        carry = self._carries[name]
        x = torch.cat([carry, x], dim=1)
        self._carries[name] = x[:, -carry.shape[1] :]
        return x

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self._new_keys.append(key)
        self._new_values.append(value)
        group = query.shape[1] // key.shape[1]
        # the queries that share a key stand below one another
        grouped = query.reshape(query.shape[0], key.shape[1], -1, query.shape[3])
        grouped = grouped * query.shape[3] ** -0.5
        past, own = self._keys[layer], key
        scores = torch.cat([grouped @ past.transpose(2, 3), grouped @ own.transpose(2, 3)], dim=-1)
        shares = torch.softmax(scores + self._mask.repeat(1, 1, group, 1), dim=-1)
        capacity = past.shape[2]
        mixed = shares[..., :capacity] @ self._values[layer] + shares[..., capacity:] @ value
        return mixed.reshape(query.shape)

    def new(self) -> list[Tensor]:
        return [*self._carries.values(), *self._new_keys, *self._new_values]


class _Decoder(torch.nn.Module):
    """The decoder as a function of everything it reads, for the tracer."""

    def __init__(self, mimi: Mimi) -> None:
        super().__init__()
        self._mimi = mimi

    def forward(
        self, codes: Tensor, positions: Tensor, mask: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        memory = _GraphMemory(self._mimi, positions, mask, past)
        audio = self._mimi.decode_layers(codes, memory)
        return (audio, *memory.new())


def _graph(mimi: Mimi) -> ov.Model:
    """codes (R, K, T) int64, positions (R, P) int64, mask (R, 1, P, capacity + P), and the past ->
    audio (R, samples) and what `_remember` takes.
    """
    rows, frames = _TRACED
    state = mimi.new_state(rows)
    positions = state.next_positions(torch.arange(rows), frames * mimi.spec.latent_stride)
    codes = torch.zeros(rows, mimi.spec.num_quantizers, frames, dtype=torch.int64)
    inputs = (codes, positions, _mask(state, positions), *_remembered(state))
    with torch.no_grad(), warnings.catch_warnings():
        # deprecated for torch.export, which takes several times as long and warns in its turn
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = cast(Any, torch.jit).trace(_Decoder(mimi), inputs, check_trace=False)
        return _converted(traced, inputs)


def _converted(traced: Any, inputs: tuple[Tensor, ...]) -> ov.Model:
    """As `openvino.convert_model` does, which would also report its use to its makers."""
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced, example_input=inputs)
    return frontend.convert(frontend.load(decoder))  # which needs the decoder alive until then


def _compiled(model: ov.Model, num_threads: int) -> ov.CompiledModel:
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
        "NUM_STREAMS": 1,
    }
    if num_threads:
        options["INFERENCE_NUM_THREADS"] = num_threads
    return ov.Core().compile_model(model, "CPU", options)


def _remembered(state: MimiState) -> list[Tensor]:
    return [*state.carries.values(), *state.keys, *state.values]


def _of_rows(tensors: list[Tensor], rows: Tensor) -> list[Tensor]:
    """The rows' parts of a state's tensors: as they lie there if the rows are neighbours."""
    slots = rows.tolist()
    first, end = slots[0], slots[0] + len(slots)
    if slots == list(range(first, end)):
        return [tensor[first:end] for tensor in tensors]
    return [tensor.index_select(0, rows) for tensor in tensors]


def _mask(state: MimiState, positions: Tensor) -> Tensor:
    """What to add to the scores of the ring before the call, then of the call's own positions."""
    past = state.visible(positions, positions[:, :1] - 1)
    own = in_window(positions[:, None, :, None], positions[:, None, None, :], state.window)
    is_seen = torch.cat([past, own], dim=-1)
    return torch.zeros(is_seen.shape).masked_fill_(~is_seen, -torch.inf)


def _remember(state: MimiState, rows: Tensor, positions: Tensor, new: Sequence[Floats]) -> None:
    """Writes a call's carries, keys and values where the next call reads them."""
    slots, index = rows.numpy(), (positions % state.capacity).numpy()
    num_carries = len(state.carries)
    for carry, values in zip(state.carries.values(), new[:num_carries], strict=True):
        carry.numpy()[slots] = values
    for ring, values in zip([*state.keys, *state.values], new[num_carries:], strict=True):
        ring.numpy().swapaxes(1, 2)[slots[:, None], index] = values.swapaxes(1, 2)
    state.advance(rows, positions.shape[1])
