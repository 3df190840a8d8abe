"""The CSM: backbone, depth decoder, embeddings and heads, written once against `Ops`.

Knows tensors and the model's own shapes; knows nothing of slots, text, sampling or the codec.
Names of weights are transformers' (`CsmForConditionalGeneration`); math as in its `models/csm`
and SesameAILabs/csm `models.py`, which agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.engine.ops import Ops
from worker.engine.spec import CsmSpec, TransformerSpec

Weights = Mapping[str, Tensor]
# Takes the layer's index and its new keys and values (B, KH, T, D); returns all that may be seen.
Remember = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
# Takes logits (B, V) and the codebook's index; returns codes (B,) int64.
Choose = Callable[[Tensor, int], Tensor]

BACKBONE = "backbone_model."
DEPTH = "depth_decoder.model."


@dataclass(frozen=True)
class Layer:
    """One block's weights; q, k, v and gate, up are fused so that each input is read once."""

    attention_norm: Tensor  # (W,)
    qkv: Tensor  # ((H + 2 KH) D, W)
    out: Tensor  # (W, H D)
    mlp_norm: Tensor  # (W,)
    gate_up: Tensor  # (2 F, W)
    down: Tensor  # (W, F)

    @classmethod
    def from_weights(cls, w: Weights, prefix: str) -> Layer:
        attn, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        return cls(
            w[f"{prefix}input_layernorm.weight"],
            torch.cat([w[f"{attn}{n}_proj.weight"] for n in "qkv"]),
            w[f"{attn}o_proj.weight"],
            w[f"{prefix}post_attention_layernorm.weight"],
            torch.cat([w[f"{mlp}gate_proj.weight"], w[f"{mlp}up_proj.weight"]]),
            w[f"{mlp}down_proj.weight"],
        )


class Transformer:
    """One stack. The caller keeps the keys and values, and says who sees what."""

    def __init__(self, spec: TransformerSpec, weights: Weights, prefix: str, ops: Ops) -> None:
        self.spec, self.ops = spec, ops
        self.layers = [
            Layer.from_weights(weights, f"{prefix}layers.{i}.") for i in range(spec.num_layers)
        ]
        self.norm = weights[f"{prefix}norm.weight"]
        self.cos, self.sin = _rotations(spec, self.norm)

    def __call__(self, x: Tensor, positions: Tensor, remember: Remember, mask: Any) -> Tensor:
        """x (B, T, W) at `positions` (B, T) int64 -> hidden states (B, T, W), normed."""
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        for index, layer in enumerate(self.layers):
            x = x + self._attend(index, layer, x, cos, sin, remember, mask)
            x = x + self._feed_forward(layer, x)
        return self.ops.rms_norm(x, self.norm, self.spec.eps)

    def _attend(
        self, index: int, layer: Layer, x: Tensor, cos: Tensor, sin: Tensor,
        remember: Remember, mask: Any,
    ) -> Tensor:  # fmt: skip
        spec, ops = self.spec, self.ops
        batch, rows, _ = x.shape
        qkv = ops.linear(ops.rms_norm(x, layer.attention_norm, spec.eps), layer.qkv)
        heads = qkv.view(batch, rows, -1, spec.head_dim).transpose(1, 2)  # (B, H + 2 KH, T, D)
        q = heads[:, : spec.num_heads]
        k, v = heads[:, spec.num_heads :].chunk(2, dim=1)
        k, v = remember(index, ops.rotate(k, cos, sin), v)
        seen = ops.attend(ops.rotate(q, cos, sin), k, v, mask)
        return ops.linear(seen.transpose(1, 2).reshape(batch, rows, -1), layer.out)

    def _feed_forward(self, layer: Layer, x: Tensor) -> Tensor:
        normed = self.ops.rms_norm(x, layer.mlp_norm, self.spec.eps)
        gate, up = self.ops.linear(normed, layer.gate_up).chunk(2, dim=-1)
        return self.ops.linear(self.ops.swiglu(gate, up), layer.down)


class Csm:
    """The whole model over one checkpoint's tensors, all of one dtype on one device."""

    def __init__(self, spec: CsmSpec, weights: Weights, ops: Ops) -> None:
        self.spec, self.ops = spec, ops
        self.backbone = Transformer(spec.backbone, weights, BACKBONE, ops)
        self.depth = Transformer(spec.depth, weights, DEPTH, ops)
        self.text_embedding = weights["embed_text_tokens.weight"]
        self.audio_embedding = weights[f"{BACKBONE}embed_tokens.embed_audio_tokens.weight"]
        self.depth_embedding = (
            self.audio_embedding if spec.tied_embeddings else weights[f"{DEPTH}embed_tokens.weight"]
        )
        self.first_head = weights["lm_head.weight"]
        self.projection = weights[f"{DEPTH}inputs_embeds_projector.weight"]
        # stored (K - 1, W, V); a linear wants (V, W), contiguous
        self.heads = weights["depth_decoder.codebooks_head.weight"].transpose(1, 2).contiguous()
        device = self.first_head.device
        self.offsets = torch.arange(spec.num_codebooks, device=device) * spec.audio_vocab

    @property
    def dtype(self) -> torch.dtype:
        return self.first_head.dtype

    @property
    def device(self) -> torch.device:
        return self.first_head.device

    def embed_text(self, ids: Tensor) -> Tensor:
        """Text tokens (...) int64 -> backbone rows (..., W)."""
        return self.ops.embed(ids, self.text_embedding)

    def embed_frames(self, codes: Tensor) -> Tensor:
        """Audio frames (..., K) int64 -> backbone rows (..., W): the sum over the codebooks."""
        return self.ops.embed(codes + self.offsets, self.audio_embedding).sum(dim=-2)

    def speak_frame(self, hidden: Tensor, choose: Choose) -> Tensor:
        """One 80 ms frame: hidden (B, W) of the last backbone row -> codes (B, K) int64.

        The depth decoder starts afresh: rows [hidden, emb(c0)] first, then one row a codebook.
        """
        codes = [choose(self.ops.linear(hidden, self.first_head), 0)]
        remember = _fresh_memory(self.depth.spec, self.spec.num_codebooks, hidden)
        rows = torch.stack([hidden, self._embed_code(codes[0], 0)], dim=1)
        for codebook in range(1, self.spec.num_codebooks):
            last = self._depth_rows(rows, codebook, remember)
            codes.append(choose(self.ops.linear(last, self.heads[codebook - 1]), codebook))
            rows = self._embed_code(codes[-1], codebook).unsqueeze(1)
        return torch.stack(codes, dim=1)

    def _depth_rows(self, rows: Tensor, codebook: int, remember: Remember) -> Tensor:
        """Runs rows (B, T, backbone W) ending at position `codebook`; returns the last, (B, W)."""
        num_rows = rows.shape[1]
        start = codebook + 1 - num_rows
        positions = torch.arange(start, codebook + 1, device=rows.device).expand(len(rows), -1)
        mask = None
        if num_rows > 1:
            mask = torch.ones(num_rows, num_rows, dtype=torch.bool, device=rows.device).tril()
        return self.depth(self.ops.linear(rows, self.projection), positions, remember, mask)[:, -1]

    def _embed_code(self, code: Tensor, codebook: int) -> Tensor:
        return self.ops.embed(code + codebook * self.spec.audio_vocab, self.depth_embedding)


def csm_shapes(spec: CsmSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of `spec` holds, by transformers' name, the codec excepted."""
    width, depth = spec.backbone.width, spec.depth.width
    table = (spec.num_codebooks * spec.audio_vocab, width)
    return {
        "embed_text_tokens.weight": (spec.text_vocab, width),
        "lm_head.weight": (spec.audio_vocab, width),
        f"{BACKBONE}embed_tokens.embed_audio_tokens.weight": table,
        f"{DEPTH}embed_tokens.weight": table,
        f"{DEPTH}inputs_embeds_projector.weight": (depth, width),
        "depth_decoder.codebooks_head.weight": (spec.num_codebooks - 1, depth, spec.audio_vocab),
        **_stack_shapes(spec.backbone, BACKBONE),
        **_stack_shapes(spec.depth, DEPTH),
    }


def _stack_shapes(spec: TransformerSpec, prefix: str) -> dict[str, tuple[int, ...]]:
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    block = {
        "input_layernorm.weight": (spec.width,),
        "post_attention_layernorm.weight": (spec.width,),
        "self_attn.q_proj.weight": (q, spec.width),
        "self_attn.k_proj.weight": (kv, spec.width),
        "self_attn.v_proj.weight": (kv, spec.width),
        "self_attn.o_proj.weight": (spec.width, q),
        "mlp.gate_proj.weight": (spec.ffn_width, spec.width),
        "mlp.up_proj.weight": (spec.ffn_width, spec.width),
        "mlp.down_proj.weight": (spec.width, spec.ffn_width),
    }
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}norm.weight": (spec.width,)}
    for index in range(spec.num_layers):
        shapes |= {f"{prefix}layers.{index}.{name}": shape for name, shape in block.items()}
    return shapes


def _rotations(spec: TransformerSpec, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, (positions, D) each, computed in float32 and kept in the model's dtype."""
    frequencies = torch.tensor(spec.rope.frequencies(spec.head_dim), dtype=torch.float32)
    angles = torch.arange(spec.max_positions, dtype=torch.float32)[:, None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(like), angles.sin().to(like)


def _fresh_memory(spec: TransformerSpec, positions: int, like: Tensor) -> Remember:
    """Keys and values of one frame's depth passes: filled row by row, gone with the frame."""
    shape = (spec.num_layers, len(like), spec.num_kv_heads, positions, spec.head_dim)
    keys, values = like.new_empty(shape), like.new_empty(shape)
    filled = [0] * spec.num_layers

    def remember(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        start, stop = filled[layer], filled[layer] + k.shape[2]
        keys[layer, :, :, start:stop] = k
        values[layer, :, :, start:stop] = v
        filled[layer] = stop
        return keys[layer, :, :, :stop], values[layer, :, :, :stop]

    return remember
