"""The OpenVINO runner, for the CPU: quantised weights, a graph per batch size, paged attention.

Knows the graphs, blocks, noise; knows nothing of queues, handles, text or audio.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import torch

from worker.engine.blocks import BLOCK_ROWS, BlockPool, blocks_for
from worker.engine.checkpoint import Checkpoint
from worker.engine.kv import PrefixCache
from worker.engine.openvino_graphs import PAGING, GraphSource, backbone_graph, frame_graph
from worker.engine.pack import PackPrecision, open_pack
from worker.engine.prompt import NO_TEXT, Prompt
from worker.engine.runner import Codes, Speaker, buckets, frame_top_k
from worker.engine.sampling import Sampling
from worker.engine.scheduler import Batch, Prefill, Turn
from worker.engine.spec import TransformerSpec
from worker.engine.weights import embeddings

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class OpenvinoModel:
    """The graphs' source, and the embeddings, of which the runner reads rows by itself."""

    source: GraphSource
    text_embedding: torch.Tensor
    audio_embedding: torch.Tensor


def openvino_model(
    checkpoint: Checkpoint,
    precision: PackPrecision,
    pack_dir: Path | None = None,
    num_threads: int = 0,
) -> OpenvinoModel:
    """Packs the weights, or finds them packed. Raises `PackInvalid`."""
    pack = open_pack(checkpoint, precision, pack_dir)
    num_codes = checkpoint.codec_spec.codebook_size
    source = GraphSource(checkpoint.spec, pack, num_codes, num_threads)
    return OpenvinoModel(source, **dict(embeddings(checkpoint.weights)))


@dataclass(frozen=True)
class _KeptPrefix:
    """Blocks that hold a prefix's rows; only the last may be partly filled."""

    blocks: list[int]
    rows: int
    nbytes: int


@dataclass(frozen=True)
class _Sequence:
    """Rows to be read into the backbone, behind `past` that are there already."""

    rows: Floats
    past: int
    blocks: list[int]


class OpenvinoRunner:
    """Implements `worker.engine.runner.Runner`.

    Frames are computed for the smallest bucket of slots that holds all who speak. With quantised
    weights a row's result does not depend on the others', so the bucket cannot be heard.
    """

    def __init__(
        self, model: OpenvinoModel, *, num_slots: int, max_positions: int,
        prefix_cache_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.model, self.num_slots = model, num_slots
        self.spec = model.source.spec
        self.max_positions = min(max_positions, self.spec.backbone.max_positions)
        self.caches = _PagedCaches(
            self.spec.backbone, num_slots * blocks_for(self.max_positions), prefix_cache_bytes
        )
        self.pool = BlockPool(self.caches.num_blocks - 1)
        self.prefixes: PrefixCache[_KeptPrefix] = PrefixCache(
            prefix_cache_bytes, on_drop=lambda kept: self.pool.drop(kept.blocks)
        )
        self._hidden: dict[Turn, Floats] = {}
        self._offsets = torch.arange(self.spec.num_codebooks) * self.spec.audio_vocab
        self._speakers: dict[Turn, Speaker] = {}
        self._blocks: dict[Turn, list[int]] = {}
        self._frames: dict[tuple[int, int], _FrameRequest] = {}
        self._compiling = threading.Lock()
        backbone = model.source.compile(backbone_graph(model.source))
        self._backbone = backbone.create_infer_request()
        self.caches.bind(self._backbone)

    def prepare(self, sampling: Sampling) -> None:
        """A top-k beyond the usual needs graphs of its own: compiled once, while others speak."""
        for size in buckets(self.num_slots):
            self._frame_request(size, self._limit(sampling.top_k))

    def start(self, turn: Turn, prompt: Prompt, sampling: Sampling) -> None:
        self._speakers[turn] = Speaker(self.spec, prompt, sampling)
        self._blocks[turn] = []
        if not turn.prefix_rows:
            return
        prefix = self.prefixes.get(prompt.prefix_key)
        if prefix is not None:
            self._blocks[turn] = self._held_again(prefix.blocks, prefix.rows)
            turn.rows_done = turn.prefix_rows

    def stop(self, turn: Turn) -> None:
        self._speakers.pop(turn, None)
        self._hidden.pop(turn, None)
        self.pool.drop(self._blocks.pop(turn, []))

    def warm_up(self) -> None:
        """Compiles every bucket, so that none is compiled while somebody speaks."""
        for size in buckets(self.num_slots):
            self._frame_request(size, self._limit(1)).run()
        self._read([])

    def run(self, batch: Batch) -> dict[Turn, Codes]:
        codes = self._frame(batch.speaking) if batch.speaking else {}
        sequences = {prefill.turn: self._piece(prefill) for prefill in batch.prefills}
        sequences |= self._next_rows(codes)
        if sequences:
            states = self._read(list(sequences.values()))
            self._hidden |= dict(zip(sequences, states, strict=True))
        for prefill in batch.prefills:
            self._keep_prefix(prefill)
        return codes

    # The frame: hidden states become codes

    def _frame(self, turns: list[Turn]) -> dict[Turn, Codes]:
        limit = self._limit(max(self._speakers[turn].sampling.top_k for turn in turns))
        size = next(size for size in buckets(self.num_slots) if size >= len(turns))
        request = self._frame_request(size, limit)
        for place, turn in enumerate(turns):
            speaker = self._speakers[turn]
            request.hidden[place] = self._hidden[turn]
            request.noise[:, place] = speaker.noise.next_frame()
            request.temperature[place] = speaker.sampling.temperature
            request.top_k[place] = speaker.sampling.top_k
        return dict(zip(turns, request.run(), strict=False))

    def _limit(self, top_k: int) -> int:
        return frame_top_k(top_k, self.model.source.num_codes)

    def _frame_request(self, size: int, limit: int) -> _FrameRequest:
        if (size, limit) not in self._frames:  # the engine's thread never waits for a compilation
            with self._compiling:
                if (size, limit) not in self._frames:
                    self._frames[size, limit] = _FrameRequest(self.model.source, size, limit)
        return self._frames[size, limit]

    # The backbone: rows become hidden states

    def _piece(self, prefill: Prefill) -> _Sequence:
        turn, start, stop = prefill.turn, prefill.start, prefill.stop
        rows = self._embed(self._speakers[turn].prompt, start, stop)
        return _Sequence(rows, start, self._room(turn, stop))

    def _next_rows(self, codes: dict[Turn, Codes]) -> dict[Turn, _Sequence]:
        if not codes:
            return {}
        rows = self._embed_frames(np.stack(list(codes.values())))
        return {
            turn: _Sequence(row[None], turn.position, self._room(turn, turn.position + 1))
            for turn, row in zip(codes, rows, strict=True)
        }

    def _read(self, sequences: list[_Sequence]) -> Floats:
        """Reads each sequence's rows; the hidden state of its last one, (sequences, W).

        One sequence of several rows is always among them. Without, a few sequences' attention
        would be cut up among many threads, and round otherwise. It writes to the scratch block.
        """
        nobody = _Sequence(np.zeros((2, self.spec.backbone.width), np.float32), 0, [0])
        is_there = any(len(s.rows) > 1 for s in sequences)
        everyone = sequences if is_there else [*sequences, nobody]
        lengths = [len(s.rows) for s in everyone]
        begins = _sums(lengths)
        paging = (
            _int32([s.past for s in everyone]),
            begins,
            _int32([block for s in everyone for block in s.blocks]),
            _sums([len(s.blocks) for s in everyone]),
            np.array(max(s.past + len(s.rows) for s in everyone), np.int32),
        )
        inputs: dict[str, Any] = dict(zip(PAGING, paging, strict=True))
        inputs["rows"] = np.concatenate([s.rows for s in everyone])
        inputs["positions"] = np.concatenate(
            [np.arange(s.past, s.past + len(s.rows), dtype=np.int32) for s in everyone]
        )
        hidden: Floats = self._backbone.infer(inputs, share_outputs=True)[0]
        return hidden[begins[1 : len(sequences) + 1] - 1]

    def _embed(self, prompt: Prompt, start: int, stop: int) -> Floats:
        """Rows `start` to `stop` of a prompt as (T, W)."""
        text = prompt.text[start:stop]
        rows = self._embed_frames(prompt.frames[start:stop])
        is_text = text != NO_TEXT
        ids = torch.from_numpy(text[is_text])
        rows[is_text] = self.model.text_embedding[ids].float().numpy()
        return rows

    def _embed_frames(self, codes: npt.NDArray[Any]) -> Floats:
        """Frames (T, K) -> backbone rows (T, W): the sum over the codebooks."""
        ids = torch.from_numpy(codes.astype(np.int64)) + self._offsets
        rows: Floats = self.model.audio_embedding[ids].float().sum(dim=1).numpy()
        return rows

    # Blocks

    def _room(self, turn: Turn, rows: int) -> list[int]:
        """The turn's blocks, enough for `rows`."""
        blocks = self._blocks[turn]
        while len(blocks) < blocks_for(rows):
            blocks.append(self.pool.take())
        return blocks

    def _held_again(self, blocks: list[int], rows: int) -> list[int]:
        """The same rows for another holder: full blocks are shared, a partial one is copied."""
        full = rows // BLOCK_ROWS
        self.pool.share(blocks[:full])
        held = list(blocks[:full])
        if rows % BLOCK_ROWS:
            held.append(self.pool.take())
            self.caches.copy(blocks[full], held[-1])
        return held

    def _keep_prefix(self, prefill: Prefill) -> None:
        turn, rows = prefill.turn, prefill.stop
        nbytes = blocks_for(rows) * self.caches.block_bytes
        if rows != turn.prefix_rows or nbytes > self.prefixes.max_bytes:
            return
        blocks = self._held_again(self._blocks[turn], rows)
        self.prefixes.put(self._speakers[turn].prompt.prefix_key, _KeptPrefix(blocks, rows, nbytes))


class _PagedCaches:
    """Keys and values of every layer, (blocks, KH, BLOCK_ROWS, D) float32 each, block 0 scratch.

    Memory is used as blocks are written, not before.
    """

    def __init__(self, spec: TransformerSpec, slot_blocks: int, prefix_bytes: int) -> None:
        shape = (spec.num_kv_heads, BLOCK_ROWS, spec.head_dim)
        self.block_bytes = 2 * spec.num_layers * 4 * int(np.prod(shape))
        # scratch, and one for a prefix that is copied before an older one goes
        self.num_blocks = 2 + slot_blocks + prefix_bytes // self.block_bytes
        self.arrays = [
            (np.zeros((self.num_blocks, *shape), np.float32),
             np.zeros((self.num_blocks, *shape), np.float32))
            for _ in range(spec.num_layers)
        ]  # fmt: skip

    def bind(self, request: ov.InferRequest) -> None:
        for layer, (keys, values) in enumerate(self.arrays):
            request.set_tensor(f"keys.{layer}", ov.Tensor(keys, shared_memory=True))
            request.set_tensor(f"values.{layer}", ov.Tensor(values, shared_memory=True))

    def copy(self, source: int, target: int) -> None:
        for pair in self.arrays:
            for cache in pair:
                cache[target] = cache[source]


class _FrameRequest:
    """One bucket's compiled frame, and the arrays that it reads."""

    def __init__(self, source: GraphSource, size: int, limit: int) -> None:
        spec = source.spec
        self.hidden = np.zeros((size, spec.backbone.width), np.float32)
        self.noise = np.ones((spec.num_codebooks, size, spec.audio_vocab), np.float32)
        self.temperature = np.zeros(size, np.float32)
        self.top_k = np.ones(size, np.int32)
        self._request = source.compile(frame_graph(source, size, limit)).create_infer_request()
        table = source.pack["depth_table"]
        assert isinstance(table, torch.Tensor)
        arrays = {
            "hidden": self.hidden, "noise": self.noise, "temperature": self.temperature,
            "top_k": self.top_k, "depth_table": table.numpy(),
        }  # fmt: skip
        for name, array in arrays.items():
            self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))

    def run(self) -> npt.NDArray[np.int64]:
        """Codes (B, K)."""
        self._request.infer()
        codes: npt.NDArray[np.int64] = self._request.get_output_tensor(0).data.astype(np.int64)
        return codes


def _sums(counts: list[int]) -> Ints:
    return np.cumsum([0, *counts]).astype(np.int32)


def _int32(values: list[int]) -> Ints:
    return np.array(values, np.int32)
