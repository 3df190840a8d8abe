"""The two ways in which CSM checkpoints name their tensors, brought to one.

The original names (SesameAILabs/csm, torchtune) become transformers'. Knows names and the order of
rows; knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from worker.engine.spec import CsmSpec, TransformerSpec
from worker.engine.weights import BACKBONE, DEPTH

_STACKS = {"backbone.": BACKBONE, "decoder.": DEPTH}
_IN_LAYER = {
    "attn.q_proj.weight": "self_attn.q_proj.weight",
    "attn.k_proj.weight": "self_attn.k_proj.weight",
    "attn.v_proj.weight": "self_attn.v_proj.weight",
    "attn.output_proj.weight": "self_attn.o_proj.weight",
    "mlp.w1.weight": "mlp.gate_proj.weight",
    "mlp.w2.weight": "mlp.down_proj.weight",
    "mlp.w3.weight": "mlp.up_proj.weight",
    "sa_norm.scale": "input_layernorm.weight",
    "mlp_norm.scale": "post_attention_layernorm.weight",
}
_OUTSIDE = {
    "text_embeddings.weight": "embed_text_tokens.weight",
    "audio_embeddings.weight": f"{BACKBONE}embed_tokens.embed_audio_tokens.weight",
    "codebook0_head.weight": "lm_head.weight",
    "projection.weight": f"{DEPTH}inputs_embeds_projector.weight",
    "audio_head": "depth_decoder.codebooks_head.weight",
    "backbone.norm.scale": f"{BACKBONE}norm.weight",
    "decoder.norm.scale": f"{DEPTH}norm.weight",
}
_LAYER_NAME = re.compile(r"(backbone\.|decoder\.)layers\.(\d+)\.(.+)")
ORIGINAL_MARK = "text_embeddings.weight"


def is_original(names: Mapping[str, object]) -> bool:
    return ORIGINAL_MARK in names


def from_original(spec: CsmSpec, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames, and reorders the rows of q and k; a name it does not know is kept as it is."""
    renamed = {}
    for name, tensor in weights.items():
        if name in _OUTSIDE:
            renamed[_OUTSIDE[name]] = tensor
        elif match := _LAYER_NAME.fullmatch(name):
            stack = spec.backbone if match[1] == "backbone." else spec.depth
            target = _IN_LAYER.get(match[3], match[3])
            prefix = f"{_STACKS[match[1]]}layers.{match[2]}."
            renamed[prefix + target] = _half_rotated(stack, match[3], tensor)
        else:
            renamed[name] = tensor
    return renamed


def _half_rotated(spec: TransformerSpec, name: str, weight: Tensor) -> Tensor:
    """The original rotates neighbouring pairs of a head, transformers its two halves."""
    heads = {"attn.q_proj.weight": spec.num_heads, "attn.k_proj.weight": spec.num_kv_heads}
    if name not in heads or weight.ndim != 2 or weight.shape[0] % (2 * heads[name]):
        return weight  # a wrong shape is told of, by name, when all shapes are checked
    rows, width = weight.shape
    pairs = weight.view(heads[name], rows // heads[name] // 2, 2, width)
    return pairs.transpose(1, 2).reshape(rows, width)
