"""MimiSpec: the shape of a Mimi codec, read from the keys of a transformers config.json.

Knows every layer of the two convolution stacks and the name and shape of every tensor a checkpoint
must hold. Knows nothing about the values of the weights, about audio or about state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

# What this code does not implement, and the only value it takes.
_FIXED = {
    "audio_channels": 1,
    "use_causal_conv": True,
    "use_conv_shortcut": False,
    "pad_mode": "constant",
    "trim_right_ratio": 1.0,
    "hidden_act": "gelu",
    "attention_bias": False,
}


@dataclass(frozen=True)
class MimiSpec:
    """Sizes of one Mimi; the defaults are the published model (Defossez et al. 2024, Moshi,
    arXiv:2410.00037). Rates are in hertz, `sliding_window` in positions of `latent_stride` a frame.
    Raises ValueError naming the key whose value cannot be built.
    """

    sampling_rate: int = 24_000
    hidden_size: int = 512
    num_filters: int = 64
    num_residual_layers: int = 1
    upsampling_ratios: tuple[int, ...] = (8, 6, 5, 4)
    kernel_size: int = 7
    last_kernel_size: int = 3
    residual_kernel_size: int = 3
    dilation_growth_rate: int = 2
    compress: int = 2
    codebook_size: int = 2048
    codebook_dim: int = 256
    num_quantizers: int = 32
    num_semantic_quantizers: int = 1
    vector_quantization_hidden_dimension: int = 256
    upsample_groups: int = 512
    num_hidden_layers: int = 8
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    head_dim: int = 64
    norm_eps: float = 1e-5
    sliding_window: int = 250
    rope_theta: float = 10_000.0
    frame_rate: float = 12.5

    def __post_init__(self) -> None:
        _require("num_key_value_heads", self.num_attention_heads % self.num_key_value_heads == 0)
        _require("head_dim", self.head_dim % 2 == 0)
        _require("sliding_window", self.sliding_window > 0)
        _require("codebook_dim", self.codebook_dim == self.vector_quantization_hidden_dimension)
        _require("num_semantic_quantizers", 0 < self.num_semantic_quantizers < self.num_quantizers)
        _require("upsample_groups", self.hidden_size % self.upsample_groups == 0)
        _require("frame_rate", self.latent_stride > 1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> MimiSpec:
        """The spec of a MimiConfig as saved in JSON, new or old style; a missing or null key takes
        MimiConfig's default. Raises ValueError naming the first key that is not implemented.
        """
        _refuse_unsupported(config)
        names = [field.name for field in fields(cls)]
        found = {name: config[name] for name in names if config.get(name) is not None}
        return cls(**(found | _derived(cls(), found, config)))

    @property
    def latent_stride(self) -> int:
        """Transformer positions in one frame (2)."""
        return int(math.ceil(self.sampling_rate / self._hop_length) / self.frame_rate)

    @property
    def frame_size(self) -> int:
        """Samples in one frame (1920)."""
        return self._hop_length * self.latent_stride

    @property
    def _hop_length(self) -> int:
        return math.prod(self.upsampling_ratios)

    @property
    def has_quantizer_projections(self) -> bool:
        return self.vector_quantization_hidden_dimension != self.hidden_size


@dataclass(frozen=True)
class Conv:
    """One causal convolution, or transposed one whose kernel is a multiple of its stride."""

    name: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    has_bias: bool = True
    is_transposed: bool = False
    is_after_elu: bool = False

    @property
    def context(self) -> int:
        """Inputs to the left of a call that its outputs depend on; streams carry them over."""
        if self.is_transposed:
            return self.kernel // self.stride - 1
        return (self.kernel - 1) * self.dilation + 1 - self.stride

    @property
    def weight_shape(self) -> tuple[int, int, int]:
        if self.is_transposed:
            return (self.in_channels, self.out_channels // self.groups, self.kernel)
        return (self.out_channels, self.in_channels // self.groups, self.kernel)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        bias = {f"{self.name}.bias": (self.out_channels,)} if self.has_bias else {}
        return {f"{self.name}.weight": self.weight_shape, **bias}


@dataclass(frozen=True)
class Residual:
    """x + the convolutions of x, each after an ELU."""

    convs: tuple[Conv, ...]


Stack = tuple[Conv | Residual, ...]


def encoder_stack(spec: MimiSpec) -> Stack:
    """The SEANet encoder, audio to latents: (B, 1, samples) -> (B, hidden_size, positions)."""
    width = spec.num_filters
    layers: list[Conv | Residual] = [Conv("encoder.layers.0.conv", 1, width, spec.kernel_size)]
    index = 1
    for ratio in reversed(spec.upsampling_ratios):
        layers += _residuals(spec, "encoder.layers", index, width)
        index += spec.num_residual_layers + 2
        name = f"encoder.layers.{index - 1}.conv"
        layers.append(Conv(name, width, 2 * width, 2 * ratio, ratio, is_after_elu=True))
        width *= 2
    name = f"encoder.layers.{index + 1}.conv"
    layers.append(Conv(name, width, spec.hidden_size, spec.last_kernel_size, is_after_elu=True))
    return tuple(layers)


def decoder_stack(spec: MimiSpec) -> Stack:
    """The SEANet decoder, latents to audio: (B, hidden_size, positions) -> (B, 1, samples)."""
    width = spec.num_filters << len(spec.upsampling_ratios)
    layers: list[Conv | Residual] = [
        Conv("decoder.layers.0.conv", spec.hidden_size, width, spec.kernel_size)
    ]
    index = 1
    for ratio in spec.upsampling_ratios:
        name = f"decoder.layers.{index + 1}.conv"
        up = Conv(name, width, width // 2, 2 * ratio, ratio, is_transposed=True, is_after_elu=True)
        width //= 2
        layers += [up, *_residuals(spec, "decoder.layers", index + 2, width)]
        index += spec.num_residual_layers + 2
    name = f"decoder.layers.{index + 1}.conv"
    layers.append(Conv(name, width, 1, spec.last_kernel_size, is_after_elu=True))
    return tuple(layers)


def downsample_conv(spec: MimiSpec) -> Conv:
    """Positions to frames, after the encoder's transformer."""
    width, stride = spec.hidden_size, spec.latent_stride
    return Conv("downsample.conv", width, width, 2 * stride, stride, has_bias=False)


def upsample_conv(spec: MimiSpec) -> Conv:
    """Frames to positions, before the decoder's transformer."""
    width, stride, groups = spec.hidden_size, spec.latent_stride, spec.upsample_groups
    return Conv(
        "upsample.conv", width, width, 2 * stride, stride, 1, groups, False, is_transposed=True
    )


def convs_of(stack: Stack) -> Iterator[Conv]:
    for layer in stack:
        yield from (layer.convs if isinstance(layer, Residual) else (layer,))


def mimi_shapes(spec: MimiSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor a checkpoint must hold, by the name transformers saves it under (no prefix)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for conv in (*convs_of(encoder_stack(spec)), *convs_of(decoder_stack(spec))):
        shapes |= conv.shapes
    shapes |= downsample_conv(spec).shapes | upsample_conv(spec).shapes
    for half in ("encoder_transformer", "decoder_transformer"):
        for layer in range(spec.num_hidden_layers):
            shapes |= _transformer_layer_shapes(spec, f"{half}.layers.{layer}")
    num_acoustic = spec.num_quantizers - spec.num_semantic_quantizers
    shapes |= _quantizer_shapes(spec, "semantic", spec.num_semantic_quantizers)
    return shapes | _quantizer_shapes(spec, "acoustic", num_acoustic)


def _require(key: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{key} does not fit the other sizes of this Mimi config; check {key}")


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    for key, only in _FIXED.items():
        value = config.get(key)
        if value is not None and value != only:
            raise ValueError(f"{key}={value!r} is not implemented; a Mimi here has {key}={only!r}")
    rope_type = _rope(config).get("rope_type", _rope(config).get("type", "default"))
    if rope_type != "default":
        raise ValueError(f"rope_type={rope_type!r} is not implemented; only 'default' is")


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _derived(
    default: MimiSpec, found: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """The values that MimiConfig works out from others when they are null, and the moved ones."""
    hidden_size = found.get("hidden_size", default.hidden_size)
    num_heads = found.get("num_attention_heads", default.num_attention_heads)
    ratios = tuple(found.get("upsampling_ratios") or default.upsampling_ratios)
    rate = found.get("frame_rate") or config.get("_frame_rate")
    sampling_rate = found.get("sampling_rate", default.sampling_rate)
    is_null_dim = "codebook_dim" in config and config["codebook_dim"] is None
    return {
        "upsampling_ratios": ratios,
        "head_dim": found.get("head_dim") or hidden_size // num_heads,
        "codebook_dim": hidden_size if is_null_dim else found.get("codebook_dim", 256),
        "rope_theta": _rope(config).get("rope_theta") or found.get("rope_theta", 10_000.0),
        "frame_rate": rate or sampling_rate / (2 * math.prod(ratios)),
    }


def _residuals(spec: MimiSpec, prefix: str, first: int, width: int) -> list[Conv | Residual]:
    hidden = width // spec.compress

    def block(number: int) -> Residual:
        name, kernel = f"{prefix}.{first + number}.block", spec.residual_kernel_size
        dilation = spec.dilation_growth_rate**number
        wide = Conv(f"{name}.1.conv", width, hidden, kernel, dilation=dilation, is_after_elu=True)
        return Residual((wide, Conv(f"{name}.3.conv", hidden, width, 1, is_after_elu=True)))

    return [block(number) for number in range(spec.num_residual_layers)]


def _transformer_layer_shapes(spec: MimiSpec, name: str) -> dict[str, tuple[int, ...]]:
    width = spec.hidden_size
    queries = spec.num_attention_heads * spec.head_dim
    keys = spec.num_key_value_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, queries),
        "mlp.fc1.weight": (spec.intermediate_size, width),
        "mlp.fc2.weight": (width, spec.intermediate_size),
        "self_attn_layer_scale.scale": (width,),
        "mlp_layer_scale.scale": (width,),
    }
    for norm in ("input_layernorm", "post_attention_layernorm"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return {f"{name}.{key}": shape for key, shape in shapes.items()}


def _quantizer_shapes(spec: MimiSpec, kind: str, num_codebooks: int) -> dict[str, tuple[int, ...]]:
    name = f"quantizer.{kind}_residual_vector_quantizer"
    inner, outer = spec.vector_quantization_hidden_dimension, spec.hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    if spec.has_quantizer_projections:
        shapes[f"{name}.input_proj.weight"] = (inner, outer, 1)
        shapes[f"{name}.output_proj.weight"] = (outer, inner, 1)
    for number in range(num_codebooks):
        codebook = f"{name}.layers.{number}.codebook"
        shapes[f"{codebook}.embed_sum"] = (spec.codebook_size, spec.codebook_dim)
        shapes[f"{codebook}.cluster_usage"] = (spec.codebook_size,)
        shapes[f"{codebook}.initialized"] = (1,)
    return shapes
