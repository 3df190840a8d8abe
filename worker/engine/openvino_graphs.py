"""CSM as two OpenVINO graphs: the depth decoder's whole frame, and the backbone's rows.

Both are built from the one definition in `csm.py`. Knows graphs and how they are compiled; knows
nothing of slots, utterances or what is kept between two calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import Node
from openvino import opset15 as op
from openvino.op import _PagedAttentionExtension
from torch import Tensor

from worker.engine.blocks import BLOCK_ROWS
from worker.engine.csm import Csm
from worker.engine.ops.openvino_ops import OpenvinoOps, constant, constant_matrix
from worker.engine.pack import Pack
from worker.engine.quantize import QuantisedMatrix
from worker.engine.spec import CsmSpec, TransformerSpec

# Activations are quantised in groups of so many inputs. The sums of a group are integers, which
# makes a row's result independent of the rows beside it: the same to the bit in any batch.
ACTIVATION_GROUP = 128


@dataclass(frozen=True)
class GraphSource:
    """What graphs are built from, and how they run."""

    spec: CsmSpec
    pack: Pack
    num_codes: int
    num_threads: int = 0

    def compile(self, model: ov.Model) -> ov.CompiledModel:
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(ACTIVATION_GROUP),
            "ENABLE_CPU_PINNING": False,
            "NUM_STREAMS": 1,
        }
        if self.num_threads:
            options["INFERENCE_NUM_THREADS"] = self.num_threads
        return ov.Core().compile_model(model, "CPU", options)


def frame_graph(source: GraphSource, batch: int, max_top_k: int) -> ov.Model:
    """One frame of `batch` slots, all codebooks unrolled.

    hidden (B, W), noise (K, B, V), temperature (B,), top_k (B,) int32, and the projected depth
    embedding -> codes (B, K) int32.
    """
    spec, ops = source.spec, OpenvinoOps()
    hidden = _input("hidden", [batch, spec.backbone.width])
    noise = _input("noise", [spec.num_codebooks, batch, spec.audio_vocab])
    temperature = _input("temperature", [batch])
    top_k = _input("top_k", [batch], ov.Type.i32)
    # the number of rows is left open, or the compiled graph would set memory aside for all of them
    table = _input("depth_table", [-1, spec.depth.width])

    def choose(logits: Node, codebook: int) -> Node:
        row = op.gather(noise, constant(codebook, np.int32), constant(0, np.int32))
        return ops.choose(logits, row, temperature, top_k, max_top_k, source.num_codes)

    csm: Csm[Node] = Csm(spec, _GraphWeights(source.pack, {"depth_table": table}), ops)
    codes = csm.speak_frame(hidden, choose)
    return ov.Model([op.result(codes)], [hidden, noise, temperature, top_k, table], "frame")


def backbone_graph(source: GraphSource) -> ov.Model:
    """Rows of any number of sequences, prompts and frames alike, against paged keys and values.

    rows (N, W), positions (N,), the paging of `Paging`, and per layer keys and values (blocks, KH,
    BLOCK_ROWS, D), which are written in place -> hidden (N, W).
    """
    spec, ops = source.spec, OpenvinoOps()
    rows = _input("rows", [-1, spec.backbone.width])
    positions = _input("positions", [-1], ov.Type.i32)
    paging = [_input(name, [-1], ov.Type.i32) for name in PAGING[:-1]]
    paging.append(_input(PAGING[-1], [], ov.Type.i32))
    caches = [_cache_inputs(spec.backbone, layer) for layer in range(spec.backbone.num_layers)]

    def attend(layer: int, q: Node, k: Node, v: Node) -> Node:
        return _paged_attention(spec.backbone, q, k, v, caches[layer], paging)

    csm: Csm[Node] = Csm(spec, _GraphWeights(source.pack, {}), ops)
    hidden = csm.read(ops.as_row(rows), op.unsqueeze(positions, constant([1], np.int64)), attend)
    inputs = [rows, positions, *paging, *(cache for pair in caches for cache in pair)]
    return ov.Model([op.result(ops.last_row(hidden))], inputs, "backbone")


PAGING = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins", "max_context")


def _input(name: str, shape: list[int], dtype: Any = ov.Type.f32) -> Node:
    node = op.parameter(shape, dtype, name=name)
    node.output(0).set_names({name})
    return node


def _cache_inputs(spec: TransformerSpec, layer: int) -> tuple[Node, Node]:
    shape = [-1, spec.num_kv_heads, BLOCK_ROWS, spec.head_dim]
    return _input(f"keys.{layer}", shape), _input(f"values.{layer}", shape)


def _paged_attention(
    spec: TransformerSpec, q: Node, k: Node, v: Node, cache: tuple[Node, Node], paging: list[Node]
) -> Node:
    """OpenVINO's paged attention: q (N, H, 1, D), k and v (N, KH, 1, D) -> (N, H, 1, D).

    The operation is private to OpenVINO, and its inputs change between releases: these are the 28
    of 2026.4 (`src/core/src/op/paged_attention.cpp`). What is not used is left empty.
    """

    def flat(x: Node, heads: int) -> Node:
        return op.reshape(x, constant([-1, heads * spec.head_dim], np.int64), False)

    def empty(dtype: Any, rank: int = 1) -> Node:
        return op.constant(np.zeros([0] * rank, dtype))

    i32, f32 = np.int32, np.float32
    *places, longest = paging
    inputs = [
        flat(q, spec.num_heads), flat(k, spec.num_kv_heads), flat(v, spec.num_kv_heads), *cache,
        *places,
        constant(spec.head_dim**-0.5, f32),  # scale
        constant(0, i32),  # sliding window
        empty(f32),  # ALiBi slopes
        longest,
        empty(i32),  # score aggregation window
        empty(i32), empty(i32, 2), empty(f32, 2),  # rotated blocks, deltas, table
        empty(f32), constant(64, i32), constant(8, i32),  # sparse attention
        empty(f32),  # sinks
        constant(0, i32), empty(i32), empty(i32), empty(i32),  # cache eviction
        empty(i32),  # token types
        empty(np.uint8), empty(i32),  # query to query bias
    ]  # fmt: skip
    node = _PagedAttentionExtension([node.output(0) for node in inputs])
    about = node.get_rt_info()
    for kind in ("k", "v"):
        about[f"num_{kind}_heads"], about[f"{kind}_head_size"] = spec.num_kv_heads, spec.head_dim
    shape = constant([-1, spec.num_heads, 1, spec.head_dim], np.int64)
    return op.reshape(node.output(0), shape, False)


class _GraphWeights(dict[str, Any]):
    """Weights as one graph's constants, made as they are asked for; `inputs` come from outside."""

    def __init__(self, pack: Pack, inputs: Mapping[str, Node]) -> None:
        super().__init__(inputs)
        self._pack = pack

    def __missing__(self, name: str) -> Any:
        self[name] = _constant(name, self._pack[name])
        return self[name]


def _constant(name: str, weight: Tensor | QuantisedMatrix) -> Any:
    if isinstance(weight, QuantisedMatrix):
        return constant_matrix(weight)
    if name.startswith("depth.") and name.endswith((".cos", ".sin")):
        return weight  # cut at build time
    if weight.ndim == 2 and not name.endswith((".cos", ".sin")):
        return constant_matrix(weight)
    return op.constant(weight.numpy(), shared_memory=True)
