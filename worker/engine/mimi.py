"""Mimi: the neural codec between 24 kHz audio and 12.5 frames of codes a second.

Encodes clips, decodes clips, and decodes streams frame by frame with explicit state; the three run
the same layer code. Pure functions over a dict of weights. Knows nothing about checkpoints' places,
the language model or schedules. Source: Defossez et al. 2024, Moshi, arXiv:2410.00037.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.engine.mimi_spec import (
    Conv,
    MimiSpec,
    Residual,
    Stack,
    convs_of,
    decoder_stack,
    downsample_conv,
    encoder_stack,
    mimi_shapes,
    upsample_conv,
)
from worker.engine.mimi_state import Memory, MimiState, Turn

STREAM_CHUNK = 16  # frames: the largest chunk a stream decodes at once; its ring leaves that room
CLIP_CHUNK = 64  # frames: what a whole clip is cut into, so that a long one needs no more memory

_MIN_USAGE = 1e-5


class Mimi:
    """A codec over float32 weights named as in `mimi_shapes(spec)` (others are ignored).

    Works on the weights' device. Nothing here turns gradients off: weights that require them can
    be trained through `decode`; everyone else passes plain tensors. Raises ValueError naming a
    weight that is missing or has another shape.
    """

    def __init__(self, spec: MimiSpec, weights: Mapping[str, Tensor]) -> None:
        self.spec = spec
        self._weights = _checked(spec, weights)
        self._encoder, self._decoder = encoder_stack(spec), decoder_stack(spec)
        self._downsample, self._upsample = downsample_conv(spec), upsample_conv(spec)
        self.decoder_convs = (self._upsample, *convs_of(self._decoder))
        convs = (*convs_of(self._encoder), self._downsample, *self.decoder_convs)
        self._products = {conv.name: _as_product(conv, self._weights) for conv in convs}
        num_acoustic = spec.num_quantizers - spec.num_semantic_quantizers
        self._codebooks = {
            "semantic": self._stacked_codebooks("semantic", spec.num_semantic_quantizers),
            "acoustic": self._stacked_codebooks("acoustic", num_acoustic),
        }
        self._device = self._codebooks["semantic"].device
        exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.float32) / spec.head_dim
        self._inverse_frequencies = (1.0 / spec.rope_theta**exponents).to(self._device)

    @property
    def device(self) -> torch.device:
        return self._device

    def encode(self, audio: Tensor) -> Tensor:
        """Codes of a clip: (B, samples) float32 in -1..1 -> (B, num_quantizers, frames) int64.

        Any length of at least one sample; frames = ceil(samples / frame_size). Raises ValueError
        for another shape.
        """
        if audio.ndim != 2 or audio.shape[1] == 0:
            raise ValueError(f"audio has shape {tuple(audio.shape)}, not (B, samples)")
        num_positions = -(-audio.shape[1] * self.spec.latent_stride // self.spec.frame_size)
        rows = torch.arange(len(audio), device=self._device)
        convs = convs_of(self._encoder)
        state = MimiState(self.spec, convs, len(audio), num_positions, self._device)
        memory = Turn(state, rows, num_positions)
        x = self._run_stack(self._encoder, audio[..., None], memory)
        x = self._run_transformer("encoder_transformer", x, memory)
        return self._quantize(self._run_downsample(x))

    def decode(self, codes: Tensor) -> Tensor:
        """Audio of whole clips: (B, num_quantizers, T) int64 -> (B, T * frame_size) float32."""
        state = self.new_state(len(codes), CLIP_CHUNK)
        return self.decode_step(codes, state, torch.arange(len(codes), device=self._device))

    def new_state(self, num_slots: int, max_chunk: int = STREAM_CHUNK) -> MimiState:
        """Fresh streams for `decode_step`; longer inputs are cut into `max_chunk` frames."""
        max_positions = max_chunk * self.spec.latent_stride
        return MimiState(self.spec, self.decoder_convs, num_slots, max_positions, self._device)

    def decode_step(self, codes: Tensor, state: MimiState, rows: Tensor) -> Tensor:
        """Decodes the next T >= 1 frames of the slots `rows`; only their state moves.

        codes (R, num_quantizers, T) int64 in 0..codebook_size-1, rows (R,) int64 without
        repetition -> (R, T * frame_size) float32, equal to the same frames of the whole clip.
        Raises ValueError for another shape; the values are not checked, for that would wait for
        the device.
        """
        expected = (len(rows), self.spec.num_quantizers)
        if codes.ndim != 3 or codes.shape[:2] != expected or codes.shape[2] == 0:
            raise ValueError(f"codes have shape {tuple(codes.shape)}, not {(*expected, 'T')}")
        chunks = torch.split(codes, state.max_positions // self.spec.latent_stride, dim=2)
        return torch.cat([self._decode_chunk(chunk, state, rows) for chunk in chunks], dim=1)

    def _decode_chunk(self, codes: Tensor, state: MimiState, rows: Tensor) -> Tensor:
        num_positions = codes.shape[2] * self.spec.latent_stride
        audio = self.decode_layers(codes, Turn(state, rows, num_positions))
        state.advance(rows, num_positions)
        return audio

    def decode_layers(self, codes: Tensor, memory: Memory) -> Tensor:
        """The decoder itself, behind whatever `memory` holds: codes (R, num_quantizers, T) ->
        (R, T * frame_size). Can be traced, with all but the numbers of layers and widths open.
        """
        x = self._run_conv(self._upsample, self._dequantize(codes), memory)
        x = self._run_transformer("decoder_transformer", x, memory)
        return self._run_stack(self._decoder, x, memory)[..., 0]

    # Convolutions: (R, steps, channels)

    def _run_stack(self, stack: Stack, x: Tensor, memory: Memory) -> Tensor:
        for layer in stack:
            if isinstance(layer, Residual):
                x = x + self._run_stack(layer.convs, x, memory)
            else:
                x = self._run_conv(layer, x, memory)
        return x

    def _run_conv(self, conv: Conv, x: Tensor, memory: Memory) -> Tensor:
        x = F.elu(x) if conv.is_after_elu else x
        if not conv.is_transposed and conv.stride > 1:
            end = -x.shape[1] % conv.stride  # of a clip
            x = _folded(F.pad(x, (0, 0, 0, end)), conv.stride)
        x = memory.joined(conv.name, x) if conv.context else x
        x = self._products[conv.name](x)
        return _unfolded(x, conv.out_channels) if conv.is_transposed else x

    def _run_downsample(self, x: Tensor) -> Tensor:
        conv = self._downsample
        first = x[:, :1].expand(-1, conv.context, -1)
        last = x[:, -1:].expand(-1, -x.shape[1] % conv.stride, -1)
        x = torch.cat([first, x, last], dim=1)
        return self._products[conv.name](_folded(x, conv.stride))

    # Transformer: (R, positions, width), and (R, heads, positions, head_dim) in attention

    def _run_transformer(self, half: str, x: Tensor, memory: Memory) -> Tensor:
        turn = self._rotation(memory.positions)
        for layer in range(self.spec.num_hidden_layers):
            name = f"{half}.layers.{layer}"
            query, key, value = self._project(name, x)
            mixed = memory.attend(layer, _rotate(query, turn), _rotate(key, turn), value)
            mixed = self._linear(f"{name}.self_attn.o_proj", mixed.transpose(1, 2).flatten(2))
            x = x + mixed * self._weights[f"{name}.self_attn_layer_scale.scale"]
            x = x + self._feed_forward(name, x)
        return x

    def _project(self, name: str, x: Tensor) -> list[Tensor]:
        """Query, key and value."""
        x = self._norm(f"{name}.input_layernorm", x)
        projected = (self._linear(f"{name}.self_attn.{part}_proj", x) for part in "qkv")
        return [p.view(*x.shape[:2], -1, self.spec.head_dim).transpose(1, 2) for p in projected]

    def _feed_forward(self, name: str, x: Tensor) -> Tensor:
        x = self._norm(f"{name}.post_attention_layernorm", x)
        x = F.gelu(self._linear(f"{name}.mlp.fc1", x))
        return self._linear(f"{name}.mlp.fc2", x) * self._weights[f"{name}.mlp_layer_scale.scale"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.spec.norm_eps)

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (R, 1, positions, head_dim / 2)."""
        angles = positions[:, None, :, None].float() * self._inverse_frequencies
        return angles.cos(), angles.sin()

    # Split residual vector quantiser: (B, frames, hidden_size) <-> (B, num_quantizers, frames)

    def _quantize(self, latents: Tensor) -> Tensor:
        codes = [
            code
            for kind, codebooks in self._codebooks.items()
            for code in _nearest(self._projected(kind, "input", latents), codebooks)
        ]
        return torch.stack(codes, dim=1)

    def _dequantize(self, codes: Tensor) -> Tensor:
        num_semantic = self.spec.num_semantic_quantizers
        semantic = self._looked_up("semantic", codes[:, :num_semantic])
        return semantic + self._looked_up("acoustic", codes[:, num_semantic:])

    def _looked_up(self, kind: str, codes: Tensor) -> Tensor:
        table = self._codebooks[kind]
        first = torch.arange(table.shape[0], device=codes.device)[:, None] * self.spec.codebook_size
        vectors = F.embedding(codes + first, table.flatten(0, 1)).sum(dim=1)  # (B, frames, dim)
        return self._projected(kind, "output", vectors)

    def _projected(self, kind: str, side: str, x: Tensor) -> Tensor:
        if not self.spec.has_quantizer_projections:
            return x
        name = f"quantizer.{kind}_residual_vector_quantizer.{side}_proj.weight"
        return F.linear(x, self._weights[name][..., 0])

    def _stacked_codebooks(self, kind: str, count: int) -> Tensor:
        """(codebooks, codebook_size, codebook_dim): each vector is the mean of what it took."""
        prefix = f"quantizer.{kind}_residual_vector_quantizer.layers"
        names = [f"{prefix}.{number}.codebook" for number in range(count)]
        sums = torch.stack([self._weights.pop(f"{name}.embed_sum") for name in names])
        usage = torch.stack([self._weights.pop(f"{name}.cluster_usage") for name in names])
        return sums / usage.clamp(min=_MIN_USAGE)[..., None]


def _checked(spec: MimiSpec, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    checked = {}
    for name, shape in mimi_shapes(spec).items():
        if name not in weights:
            raise ValueError(f"Mimi's weights lack {name}; use a complete checkpoint")
        if weights[name].shape != shape:
            found = tuple(weights[name].shape)
            raise ValueError(f"{name} has shape {found}, not {shape}; config and weights differ")
        checked[name] = weights[name].to(torch.float32)
    return checked


@dataclass(frozen=True)
class _Product:
    """A convolution of stride 1 as one product, of x (R, steps + reach, in) -> (R, steps, out).

    Either the taps' inputs stand side by side, weight (out, taps * in), or the taps' outputs do and
    are summed, weight (taps * out, in): whichever moves less.
    """

    weight: Tensor
    bias: Tensor | None
    num_taps: int
    dilation: int
    sums_outputs: bool

    def __call__(self, x: Tensor) -> Tensor:
        if self.num_taps == 1:
            return F.linear(x, self.weight, self.bias)
        steps = x.shape[1] - (self.num_taps - 1) * self.dilation
        starts = [tap * self.dilation for tap in range(self.num_taps)]
        if not self.sums_outputs:
            windows = torch.cat([x[:, start : start + steps] for start in starts], dim=-1)
            return F.linear(windows, self.weight, self.bias)
        x, width = F.linear(x, self.weight, self.bias), self.weight.shape[0] // self.num_taps
        y = x[:, :steps, :width]
        for tap, start in enumerate(starts[1:], 1):
            y = y + x[:, start : start + steps, tap * width : (tap + 1) * width]
        return y


def _as_product(conv: Conv, weights: dict[str, Tensor]) -> _Product:
    """Takes a convolution's weights out of `weights`. A stride of inputs is folded into one step
    before it; a transposed one puts out a stride of steps at once, as its channels: the polyphase
    form, with no tail to add up later.
    """
    weight, bias = weights.pop(f"{conv.name}.weight"), weights.pop(f"{conv.name}.bias", None)
    taps = _transposed_taps(conv, weight) if conv.is_transposed else _taps(conv, weight)
    num_taps, num_out, num_in = taps.shape
    if bias is not None and conv.is_transposed:
        bias = bias.repeat(conv.stride)
    sums_outputs = num_out < num_in
    if not sums_outputs:
        taps = taps.transpose(0, 1).flatten(1)
    elif bias is not None:
        bias = torch.cat([bias, bias.new_zeros((num_taps - 1) * num_out)])  # once, not per tap
    weight = taps.flatten(0, -2).contiguous()
    return _Product(weight, bias, num_taps, conv.dilation, sums_outputs)


def _taps(conv: Conv, weight: Tensor) -> Tensor:
    """(out, in, kernel) -> (taps, out, stride * in)"""
    folded = weight.view(*weight.shape[:2], -1, conv.stride)
    return folded.permute(2, 0, 3, 1).flatten(2)


def _transposed_taps(conv: Conv, weight: Tensor) -> Tensor:
    """(in, out / groups, kernel) -> (taps, stride * out, in), zero between groups."""
    groups = conv.groups
    phases = weight.view(groups, conv.in_channels // groups, -1, conv.context + 1, conv.stride)
    phases = phases.permute(3, 4, 0, 2, 1).flip(0)  # (taps, stride, groups, out, in)
    is_own = torch.eye(groups, device=weight.device)[:, None, :, None]
    return (phases[..., None, :] * is_own).flatten(4, 5).flatten(1, 3)


def _folded(x: Tensor, stride: int) -> Tensor:
    """(R, steps * stride, channels) -> (R, steps, stride * channels)"""
    return x.reshape(x.shape[0], -1, stride * x.shape[2])


def _unfolded(x: Tensor, channels: int) -> Tensor:
    """(R, steps, stride * channels) -> (R, steps * stride, channels)"""
    return x.reshape(x.shape[0], -1, channels)


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding, halves paired: x (R, heads, positions, head_dim)."""
    cosine, sine = turn
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1)


def _nearest(residual: Tensor, codebooks: Tensor) -> list[Tensor]:
    """Residual quantisation of (B, frames, dim): one (B, frames) int64 per codebook."""
    codes = []
    for codebook in codebooks:
        distances = torch.cdist(residual.flatten(0, 1)[None], codebook[None])[0]
        codes.append(distances.argmin(dim=-1).view(residual.shape[:2]))
        residual = residual - F.embedding(codes[-1], codebook)
    return codes
