"""Random checkpoints written by transformers, and their way to the original layout.

The oracle's side of the parity tests: everything here goes through transformers or is written
against the reference's names, never through the product's own code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import CsmConfig, CsmForConditionalGeneration

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 0.125,
    "high_freq_factor": 0.5,
    "original_max_position_embeddings": 64,
}


def tiny_config(rope: dict[str, Any] | None = None, **changes: Any) -> CsmConfig:
    rope_parameters = rope or {"rope_type": "default", "rope_theta": 10000.0}
    depth = {
        "num_codebooks": 32,
        "backbone_hidden_size": 64,
        "vocab_size": 2051,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 33,
        "rope_parameters": {**rope_parameters, "original_max_position_embeddings": 16}
        if rope
        else rope_parameters,
    }
    codec = {
        "model_type": "mimi",
        "num_filters": 4,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "codebook_dim": 16,
        "vector_quantization_hidden_dimension": 16,
        "upsample_groups": 32,
        "sliding_window": 20,
    }
    settings: dict[str, Any] = {
        "text_vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 256,
        "pad_token_id": 258,
        "audio_token_id": 258,
        "audio_eos_token_id": 259,
        "rope_parameters": rope_parameters,
        "depth_decoder_config": depth,
        "codec_config": codec,
    }
    return CsmConfig(**(settings | changes))


def random_model(config: CsmConfig, seed: int = 0) -> CsmForConditionalGeneration:
    """A model whose every tensor matters: transformers' own initialisation leaves many at zero."""
    torch.manual_seed(seed)
    model = CsmForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            _stir(name, tensor)
    return model


def _stir(name: str, tensor: Tensor) -> None:
    if name.endswith("embed_sum"):
        tensor.normal_()
    elif name.endswith("cluster_usage"):
        tensor.uniform_(0.5, 2)
    elif "layer_scale" in name:
        tensor.uniform_(0.2, 0.6)
    elif "norm" in name:
        tensor.uniform_(0.5, 1.5)
    elif "codec_model" not in name and tensor.ndim >= 2:
        tensor.normal_(0, 0.2 if "embed" in name or "head" in name else 0.1)


def byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|AUDIO|>", "<|eos|>"])
    return tokenizer


def write_transformers(
    model: CsmForConditionalGeneration, path: Path, shard_size: str | None = None
) -> Path:
    model.save_pretrained(path, **({"max_shard_size": shard_size} if shard_size else {}))
    byte_tokenizer().save(str(path / "tokenizer.json"))
    return path


ORIGINAL_NAMES = {
    "embed_text_tokens.weight": "text_embeddings.weight",
    "depth_decoder.model.embed_tokens.weight": "audio_embeddings.weight",
    "backbone_model.embed_tokens.embed_audio_tokens.weight": "audio_embeddings.weight",
    "lm_head.weight": "codebook0_head.weight",
    "depth_decoder.model.inputs_embeds_projector.weight": "projection.weight",
    "depth_decoder.codebooks_head.weight": "audio_head",
    "backbone_model.norm.weight": "backbone.norm.scale",
    "depth_decoder.model.norm.weight": "decoder.norm.scale",
}
IN_LAYER = {
    "self_attn.q_proj": "attn.q_proj",
    "self_attn.k_proj": "attn.k_proj",
    "self_attn.v_proj": "attn.v_proj",
    "self_attn.o_proj": "attn.output_proj",
    "mlp.gate_proj": "mlp.w1",
    "mlp.down_proj": "mlp.w2",
    "mlp.up_proj": "mlp.w3",
    "input_layernorm.weight": "sa_norm.scale",
    "post_attention_layernorm.weight": "mlp_norm.scale",
}


def to_original(model: CsmForConditionalGeneration) -> dict[str, Tensor]:
    """The reference repository's names and its interleaved order of q and k rows."""
    config = model.config
    heads = {
        "backbone_model.": (config.num_attention_heads, config.num_key_value_heads),
        "depth_decoder.model.": (
            config.depth_decoder_config.num_attention_heads,
            config.depth_decoder_config.num_key_value_heads,
        ),
    }
    original = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("codec_model."):
            continue
        if name in ORIGINAL_NAMES:
            original[ORIGINAL_NAMES[name]] = tensor.clone()
            continue
        stack = "backbone_model." if name.startswith("backbone_model.") else "depth_decoder.model."
        renamed = name.replace("backbone_model.", "backbone.").replace(
            "depth_decoder.model.", "decoder."
        )
        for ours, theirs in IN_LAYER.items():
            renamed = renamed.replace(ours, theirs)
        if "q_proj" in name:
            tensor = interleaved(tensor, heads[stack][0])
        elif "k_proj" in name:
            tensor = interleaved(tensor, heads[stack][1])
        original[renamed] = tensor.clone()
    return original


def interleaved(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of halves (a0 a1 .. b0 b1 ..) become rows of pairs (a0 b0 a1 b1 ..), head by head."""
    rows = []
    for head in weight.chunk(num_heads):
        first, second = head.chunk(2)
        rows += [row for pair in zip(first, second, strict=True) for row in pair]
    return torch.stack(rows)


def write_original(model: CsmForConditionalGeneration, path: Path, pickled: bool = False) -> Path:
    """The original layout: its own weights file, a tokenizer, and Mimi in a folder beside it."""
    path.mkdir(parents=True)
    weights = to_original(model)
    if pickled:
        torch.save(weights, path / "ckpt.pt")
    else:
        save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(model.config.to_dict()), encoding="utf-8")
    byte_tokenizer().save(str(path / "tokenizer.json"))
    model.codec_model.save_pretrained(path / "mimi")
    return path
