"""A checkpoint of CSM-1B's exact shape with random weights, in the hub's layout: 4 GB on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CsmConfig, CsmForConditionalGeneration

from tests.checkpoints import byte_tokenizer
from worker.engine.tiny import ROPE, tiny_config


def open_model(path: Path, shape: str) -> CsmForConditionalGeneration:
    """transformers' model over the checkpoint at `path`, in bf16; it is written when absent."""
    if not (path / "tokenizer.json").is_file():
        _write(path, shape)
    model = CsmForConditionalGeneration.from_pretrained(path, dtype=torch.bfloat16).eval()
    model.generation_config.cache_implementation = "static"
    reserved = list(range(model.codec_model.config.codebook_size, model.config.vocab_size))
    model.generation_config.suppress_tokens = reserved
    model.depth_decoder.generation_config.suppress_tokens = reserved
    return model


def _write(path: Path, shape: str) -> None:
    print(f"writing a random {shape} to {path}", flush=True)
    torch.manual_seed(0)
    if shape == "csm-tiny":
        config = CsmConfig(**tiny_config(260))
    else:
        config = CsmConfig(rope_parameters=ROPE, depth_decoder_config={"rope_parameters": ROPE})
    model = CsmForConditionalGeneration(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():  # left at zero, they would be one code
            if name.endswith(("embed_sum", "cluster_usage")):
                tensor.uniform_(0.5, 1.5)
    model.save_pretrained(path)
    byte_tokenizer().save(str(path / "tokenizer.json"))
