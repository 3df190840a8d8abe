"""A checkpoint's tensors, arranged as the model multiplies by them; and what it must hold.

q, k and v are fused, so that their input is read once. The depth decoder's embedding is projected
once, which saves a product in 31 of 32 passes. Knows names and shapes; knows no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from worker.engine.spec import CsmSpec, TransformerSpec

Weights = Mapping[str, Tensor]
BACKBONE = "backbone_model."
DEPTH = "depth_decoder.model."
AUDIO_EMBEDDING = f"{BACKBONE}embed_tokens.embed_audio_tokens.weight"
DEPTH_EMBEDDING = f"{DEPTH}embed_tokens.weight"
TEXT_EMBEDDING = "embed_text_tokens.weight"


def embeddings(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """`text_embedding` (V, W) and `audio_embedding` (K V, W), of which a frame reads a few rows."""
    yield "text_embedding", weights[TEXT_EMBEDDING]
    yield "audio_embedding", weights[AUDIO_EMBEDDING]


def matrices(spec: CsmSpec, weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """Every matrix (out, in) that `Csm` multiplies by, one at a time, by the name it asks for."""
    yield "first_head", weights["lm_head.weight"]
    yield "projection", weights[f"{DEPTH}inputs_embeds_projector.weight"]
    heads = weights["depth_decoder.codebooks_head.weight"]  # (K - 1, W, V)
    for index in range(spec.num_codebooks - 1):
        yield f"heads.{index}", heads[index].T.contiguous()
    yield from _stack_matrices(spec.backbone, weights, "backbone", BACKBONE)
    yield from _stack_matrices(spec.depth, weights, "depth", DEPTH)


def vectors(spec: CsmSpec, weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """The norms (W,), and the rotations `<stack>.cos` and `.sin` (positions, D) in float32."""
    for stack, name, prefix in (
        (spec.backbone, "backbone", BACKBONE),
        (spec.depth, "depth", DEPTH),
    ):
        yield f"{name}.norm", weights[f"{prefix}norm.weight"]
        for i in range(stack.num_layers):
            layer = f"{prefix}layers.{i}."
            yield f"{name}.{i}.attention_norm", weights[f"{layer}input_layernorm.weight"]
            yield f"{name}.{i}.mlp_norm", weights[f"{layer}post_attention_layernorm.weight"]
        cos, sin = rotations(stack)
        yield f"{name}.cos", cos
        yield f"{name}.sin", sin


def depth_table(spec: CsmSpec, weights: Weights) -> Tensor:
    """The depth decoder's embedding, projected: ((K - 1) V, depth W), in the weights' dtype."""
    source = AUDIO_EMBEDDING if spec.tied_embeddings else DEPTH_EMBEDDING
    table = weights[source][: (spec.num_codebooks - 1) * spec.audio_vocab]
    return torch.nn.functional.linear(table, weights[f"{DEPTH}inputs_embeds_projector.weight"])


def rotations(spec: TransformerSpec) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's angles, (positions, D) float32 each."""
    frequencies = torch.tensor(spec.rope.frequencies(spec.head_dim), dtype=torch.float32)
    angles = torch.arange(spec.max_positions, dtype=torch.float32)[:, None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def _stack_matrices(
    spec: TransformerSpec, weights: Weights, name: str, prefix: str
) -> Iterator[tuple[str, Tensor]]:
    for i in range(spec.num_layers):
        attn, mlp = f"{prefix}layers.{i}.self_attn.", f"{prefix}layers.{i}.mlp."
        yield f"{name}.{i}.qkv", torch.cat([weights[f"{attn}{n}_proj.weight"] for n in "qkv"])
        yield f"{name}.{i}.out", weights[f"{attn}o_proj.weight"]
        for part in ("gate", "up", "down"):
            yield f"{name}.{i}.{part}", weights[f"{mlp}{part}_proj.weight"]


def csm_shapes(spec: CsmSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of `spec` holds, by transformers' name, the codec excepted."""
    width, depth = spec.backbone.width, spec.depth.width
    table = (spec.num_codebooks * spec.audio_vocab, width)
    return {
        TEXT_EMBEDDING: (spec.text_vocab, width),
        "lm_head.weight": (spec.audio_vocab, width),
        AUDIO_EMBEDDING: table,
        DEPTH_EMBEDDING: table,
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
