"""csm-tiny: a whole CSM of a few million parameters, made from a fixed seed by this file.

It is untrained: it makes noise, through exactly the code that serves CSM-1B. Its `config.json` says
so. Knows sizes and files; loads nothing.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from worker.engine.checkpoint import CODEC
from worker.engine.mimi_spec import MimiSpec, mimi_shapes
from worker.engine.spec import CsmSpec
from worker.engine.tokenizer import BEGIN, END
from worker.engine.weights import BACKBONE, csm_shapes

TINY = "csm-tiny"
SEED = 20261122
CODEBOOKS, CODES, RESERVED = 16, 256, 3
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 0.125,
    "high_freq_factor": 0.5,
    "original_max_position_embeddings": 1024,
}


def write_tiny(path: Path) -> None:
    """Writes the checkpoint directory `path`, whole or not at all; an existing one is kept."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        _write(draft)
        draft.chmod(0o755)
        os.rename(draft, path)
    except FileExistsError:  # another worker was first; its file is the same
        pass
    except OSError:
        if not path.exists():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(draft: Path) -> None:
    tokenizer = byte_tokenizer()
    config = tiny_config(tokenizer.get_vocab_size())
    tokenizer.save(str(draft / "tokenizer.json"))
    save_file(_random_weights(config), draft / "model.safetensors", metadata={"format": "pt"})
    (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and Llama 3's special tokens: any text can be written with it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BEGIN, END, "<|AUDIO|>", "<|audio_eos|>"])
    return tokenizer


def tiny_config(text_vocab: int) -> dict[str, Any]:
    return {
        "architectures": ["CsmForConditionalGeneration"],
        "model_type": "csm",
        "echoforge": {"name": TINY, "is_trained": False, "seed": SEED},
        "num_codebooks": CODEBOOKS,
        "vocab_size": CODES + RESERVED,
        "codebook_pad_token_id": CODES + 2,
        "codebook_eos_token_id": 0,
        "text_vocab_size": text_vocab,
        "bos_token_id": text_vocab - 4,
        "pad_token_id": text_vocab - 2,
        "audio_token_id": text_vocab - 2,
        "audio_eos_token_id": text_vocab - 1,
        "tie_codebooks_embeddings": True,
        **_stack(layers=4, width=256, heads=4, kv_heads=2, ffn=768, positions=2048),
        "depth_decoder_config": {
            "model_type": "csm_depth_decoder_model",
            "num_codebooks": CODEBOOKS,
            "vocab_size": CODES + RESERVED,
            "backbone_hidden_size": 256,
            **_stack(layers=2, width=160, heads=4, kv_heads=2, ffn=448, positions=CODEBOOKS + 1),
        },
        "codec_config": {
            "model_type": "mimi",
            "num_filters": 16,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "intermediate_size": 256,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "codebook_size": CODES,
            "codebook_dim": 32,
            "vector_quantization_hidden_dimension": 32,
            "num_quantizers": CODEBOOKS,
            "upsample_groups": 128,
            "upsampling_ratios": [8, 6, 5, 4],
        },
        "dtype": "float32",
    }


def _stack(
    *, layers: int, width: int, heads: int, kv_heads: int, ffn: int, positions: int
) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "rope_parameters": ROPE,
    }


def _random_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    shapes = dict(csm_shapes(CsmSpec.from_config(config)))
    del shapes[f"{BACKBONE}embed_tokens.embed_audio_tokens.weight"]  # tied: kept once
    codec = mimi_shapes(MimiSpec.from_config(config["codec_config"]))
    shapes |= {CODEC + name: shape for name, shape in codec.items()}
    generator = torch.Generator().manual_seed(SEED)
    return {name: _random(name, shapes[name], generator) for name in sorted(shapes)}


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name.endswith((".initialized", ".cluster_usage")) or "norm.weight" in name:
        return torch.ones(shape)
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if name.endswith(".scale"):
        return torch.full(shape, 0.1)  # LayerScale
    noise = torch.randn(shape, generator=generator)
    return noise if "embed" in name else noise / math.sqrt(_fan_in(name, shape))


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    if "codebooks_head" in name:
        return shape[1]
    return math.prod(shape[1:])
