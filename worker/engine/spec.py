"""The sizes and kinds of a CSM, read from a checkpoint's own `config.json`.

Knows both spellings of transformers' configuration (`rope_parameters`, and the older `rope_theta`
with `rope_scaling`) and the reference repository's flavours. Knows no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.engine.errors import CheckpointInvalid

Config = Mapping[str, Any]
DEFAULT_THETA = 500_000.0  # transformers' CsmConfig


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864), optionally with Llama 3's scaling."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192

    @classmethod
    def from_config(cls, config: Config) -> RopeSpec:
        rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        theta = rope.get("rope_theta") or config.get("rope_theta") or DEFAULT_THETA
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind == "default":
            return cls(float(theta))
        if kind != "llama3":
            raise CheckpointInvalid(
                f"config.json asks for RoPE of kind {kind!r}; only 'default' and 'llama3' are known"
            )
        return cls(
            float(theta),
            kind,
            float(_require(rope, "factor")),
            float(_require(rope, "low_freq_factor")),
            float(_require(rope, "high_freq_factor")),
            int(_require(rope, "original_max_position_embeddings")),
        )

    def frequencies(self, head_dim: int) -> list[float]:
        """Radians per position for each of the `head_dim // 2` pairs."""
        plain = [self.theta ** (-2.0 * i / head_dim) for i in range(head_dim // 2)]
        return plain if self.kind == "default" else [self._scaled(f) for f in plain]

    def _scaled(self, frequency: float) -> float:
        """Llama 3.1's rule: long waves slowed by `factor`, short ones kept, a ramp between."""
        wavelength = 2 * math.pi / frequency
        turns = self.original_positions / wavelength
        if turns < self.low_freq_factor:
            return frequency / self.factor
        if turns > self.high_freq_factor:
            return frequency
        ramp = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return (1 - ramp) * frequency / self.factor + ramp * frequency


@dataclass(frozen=True)
class TransformerSpec:
    """One Llama-style stack: RMSNorm, grouped-query attention with RoPE, SwiGLU, no biases."""

    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_width: int
    max_positions: int
    eps: float
    rope: RopeSpec

    def __post_init__(self) -> None:
        for name in ("num_layers", "width", "num_heads", "num_kv_heads", "head_dim", "ffn_width"):
            if getattr(self, name) < 1:
                raise CheckpointInvalid(f"config.json: {name} is {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointInvalid(
                f"config.json: {self.num_heads} attention heads do not share"
                f" {self.num_kv_heads} key/value heads evenly"
            )

    @classmethod
    def from_config(cls, config: Config) -> TransformerSpec:
        for key in ("attention_bias", "mlp_bias"):
            if config.get(key):
                raise CheckpointInvalid(f"config.json sets {key}; CSM has no biases")
        if config.get("hidden_act", "silu") != "silu":
            raise CheckpointInvalid(f"config.json: hidden_act {config['hidden_act']!r} is not silu")
        width, heads = (
            int(_require(config, "hidden_size")),
            int(_require(config, "num_attention_heads")),
        )
        return cls(
            num_layers=int(_require(config, "num_hidden_layers")),
            width=width,
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or width // heads),
            ffn_width=int(_require(config, "intermediate_size")),
            max_positions=int(_require(config, "max_position_embeddings")),
            eps=float(config.get("rms_norm_eps", 1e-5)),
            rope=RopeSpec.from_config(config),
        )


@dataclass(frozen=True)
class CsmSpec:
    """A whole CSM: the backbone, the depth decoder, and the vocabularies they share."""

    backbone: TransformerSpec
    depth: TransformerSpec
    num_codebooks: int
    audio_vocab: int  # entries of one codebook's table, reserved ones included
    text_vocab: int
    tied_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.depth.max_positions < self.num_codebooks:
            raise CheckpointInvalid(
                f"config.json: the depth decoder holds {self.depth.max_positions} positions,"
                f" fewer than the {self.num_codebooks} codebooks"
            )

    @classmethod
    def from_config(cls, config: Config) -> CsmSpec:
        depth = _require(config, "depth_decoder_config")
        return cls(
            backbone=TransformerSpec.from_config(config),
            depth=TransformerSpec.from_config(depth),
            num_codebooks=int(_require(config, "num_codebooks")),
            audio_vocab=int(_require(config, "vocab_size")),
            text_vocab=int(_require(config, "text_vocab_size")),
            tied_embeddings=bool(config.get("tie_codebooks_embeddings", True)),
        )

    @classmethod
    def from_flavours(cls, config: Config) -> CsmSpec:
        """The reference repository's `config.json` (SesameAILabs/csm, models.py)."""
        return cls(
            backbone=_flavour(_require(config, "backbone_flavor"), positions=2048),
            depth=_flavour(_require(config, "decoder_flavor"), positions=2048),
            num_codebooks=int(_require(config, "audio_num_codebooks")),
            audio_vocab=int(_require(config, "audio_vocab_size")),
            text_vocab=int(_require(config, "text_vocab_size")),
        )


def _flavour(name: str, positions: int) -> TransformerSpec:
    sizes = {
        "llama-1B": (16, 2048, 32, 8, 64, 8192),
        "llama-100M": (4, 1024, 8, 2, 128, 8192),
    }
    if name not in sizes:
        raise CheckpointInvalid(f"config.json names flavour {name!r}; known: {', '.join(sizes)}")
    rope = RopeSpec(DEFAULT_THETA, "llama3", 32.0, 0.125, 0.5, 1024)  # torchtune's, restated
    return TransformerSpec(*sizes[name], max_positions=positions, eps=1e-5, rope=rope)


def _require(config: Config, key: str) -> Any:
    if config.get(key) is None:
        raise CheckpointInvalid(f"config.json lacks {key!r}; is this a CSM checkpoint?")
    return config[key]
