"""Mimi: the neural codec between 24 kHz audio and 12.5 frames of codes a second.

Encodes clips, decodes clips, and decodes streams frame by frame with explicit state; the three run
the same layer code. Pure functions over a dict of weights. Knows nothing about checkpoints' places,
the language model or schedules. Source: Defossez et al. 2024, Moshi, arXiv:2410.00037.
"""

from __future__ import annotations

from collections.abc import Mapping

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
from worker.engine.mimi_state import MimiState

STREAM_CHUNK = 16  # frames: the largest chunk a stream decodes at once; its ring leaves that room
CLIP_CHUNK = 64  # frames: what a whole clip is cut into, so that a long one needs no more memory

_MIN_USAGE = 1e-5
_WIDE = 400_000  # in x out channels from which one product beats conv1d, which reads all per row


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
        for conv in (self._upsample, *convs_of(self._decoder)):
            if conv.is_transposed:
                self._weights |= _as_causal(conv, self._weights)
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
        x = self._run_stack(self._encoder, audio[:, None], state, rows)
        x = self._run_transformer("encoder_transformer", x, state, rows)
        return self._quantize(self._run_downsample(x))

    def decode(self, codes: Tensor) -> Tensor:
        """Audio of whole clips: (B, num_quantizers, T) int64 -> (B, T * frame_size) float32."""
        state = self.new_state(len(codes), CLIP_CHUNK)
        return self.decode_step(codes, state, torch.arange(len(codes), device=self._device))

    def new_state(self, num_slots: int, max_chunk: int = STREAM_CHUNK) -> MimiState:
        """Fresh streams for `decode_step`; longer inputs are cut into `max_chunk` frames."""
        convs = (self._upsample, *convs_of(self._decoder))
        max_positions = max_chunk * self.spec.latent_stride
        return MimiState(self.spec, convs, num_slots, max_positions, self._device)

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
        x = self._run_conv(self._upsample, self._dequantize(codes), state, rows)
        x = self._run_transformer("decoder_transformer", x, state, rows)
        return self._run_stack(self._decoder, x, state, rows)[:, 0]

    # Convolutions: (R, channels, steps)

    def _run_stack(self, stack: Stack, x: Tensor, state: MimiState, rows: Tensor) -> Tensor:
        for layer in stack:
            if isinstance(layer, Residual):
                x = x + self._run_stack(layer.convs, x, state, rows)
            else:
                x = self._run_conv(layer, x, state, rows)
        return x

    def _run_conv(self, conv: Conv, x: Tensor, state: MimiState, rows: Tensor) -> Tensor:
        x = F.elu(x) if conv.is_after_elu else x
        if not conv.is_transposed and (missing := -x.shape[-1] % conv.stride):
            x = F.pad(x, (0, missing))  # the end of a clip
        if conv.context:
            x = torch.cat([state.carry(conv.name, rows), x], dim=-1)
            state.keep(conv.name, rows, x[..., -conv.context :])
        weight, bias = self._weights[f"{conv.name}.weight"], self._weights.get(f"{conv.name}.bias")
        if conv.is_transposed:
            return _interleaved(_convolved(x, weight, bias, 1, 1, conv.groups), conv.stride)
        return _convolved(x, weight, bias, conv.stride, conv.dilation, conv.groups)

    def _run_downsample(self, x: Tensor) -> Tensor:
        conv = self._downsample
        x = F.pad(x, (conv.context, -x.shape[-1] % conv.stride), mode="replicate")
        return F.conv1d(x, self._weights[f"{conv.name}.weight"], stride=conv.stride)

    # Transformer: (R, positions, width) inside

    def _run_transformer(self, half: str, x: Tensor, state: MimiState, rows: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        positions = state.next_positions(rows, x.shape[1])
        turn, visible = self._rotation(positions), state.visible(positions)
        for layer in range(self.spec.num_hidden_layers):
            name = f"{half}.layers.{layer}"
            query, key, value = self._project(name, x, turn)
            keys, values = state.extend(layer, rows, positions, key, value)
            x = x + self._attend(name, query, keys, values, visible)
            x = x + self._feed_forward(name, x)
        state.advance(rows, x.shape[1])
        return x.transpose(1, 2)

    def _project(
        self, name: str, x: Tensor, turn: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value (R, positions, heads, head_dim), the first two rotated."""
        x = self._norm(f"{name}.input_layernorm", x)
        query, key, value = (
            F.linear(x, self._weights[f"{name}.self_attn.{part}_proj.weight"]).view(
                *x.shape[:2], -1, self.spec.head_dim
            )
            for part in "qkv"
        )
        return _rotate(query, turn), _rotate(key, turn), value

    def _attend(
        self, name: str, query: Tensor, keys: Tensor, values: Tensor, visible: Tensor
    ) -> Tensor:
        is_grouped = self.spec.num_key_value_heads != self.spec.num_attention_heads
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=visible,
            enable_gqa=is_grouped,
        )
        out = F.linear(
            mixed.transpose(1, 2).flatten(2), self._weights[f"{name}.self_attn.o_proj.weight"]
        )
        return out * self._weights[f"{name}.self_attn_layer_scale.scale"]

    def _feed_forward(self, name: str, x: Tensor) -> Tensor:
        x = self._norm(f"{name}.post_attention_layernorm", x)
        x = F.gelu(F.linear(x, self._weights[f"{name}.mlp.fc1.weight"]))
        x = F.linear(x, self._weights[f"{name}.mlp.fc2.weight"])
        return x * self._weights[f"{name}.mlp_layer_scale.scale"]

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.spec.norm_eps)

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (R, positions, 1, head_dim / 2)."""
        angles = positions[..., None, None].float() * self._inverse_frequencies
        return angles.cos(), angles.sin()

    # Split residual vector quantiser: (B, hidden_size, frames) <-> (B, num_quantizers, frames)

    def _quantize(self, latents: Tensor) -> Tensor:
        codes = [
            code
            for kind, codebooks in self._codebooks.items()
            for code in _nearest(self._projected(kind, "input", latents).transpose(1, 2), codebooks)
        ]
        return torch.stack(codes, dim=1)

    def _dequantize(self, codes: Tensor) -> Tensor:
        num_semantic = self.spec.num_semantic_quantizers
        semantic = self._looked_up("semantic", codes[:, :num_semantic])
        return semantic + self._looked_up("acoustic", codes[:, num_semantic:])

    def _looked_up(self, kind: str, codes: Tensor) -> Tensor:
        table = self._codebooks[kind]
        first = torch.arange(len(table), device=codes.device)[:, None] * self.spec.codebook_size
        vectors = F.embedding(codes + first, table.flatten(0, 1)).sum(dim=1)  # (B, frames, dim)
        return self._projected(kind, "output", vectors.transpose(1, 2))

    def _projected(self, kind: str, side: str, x: Tensor) -> Tensor:
        if not self.spec.has_quantizer_projections:
            return x
        name = f"quantizer.{kind}_residual_vector_quantizer.{side}_proj.weight"
        return F.conv1d(x, self._weights[name])

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


def _as_causal(conv: Conv, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transposed convolution's weights as those of a causal one that puts out a stride of steps
    at once, as (out_channels * stride) channels: the polyphase form, with no tail to add up later.
    """
    weight, groups, stride = weights[f"{conv.name}.weight"], conv.groups, conv.stride
    phases = weight.view(groups, conv.in_channels // groups, -1, conv.context + 1, stride)
    phases = phases.permute(0, 2, 4, 1, 3).flip(-1)  # (groups, out, stride, in, taps)
    causal = {f"{conv.name}.weight": phases.reshape(-1, *phases.shape[-2:])}
    if conv.has_bias:
        causal[f"{conv.name}.bias"] = weights[f"{conv.name}.bias"].repeat_interleave(stride)
    return causal


def _interleaved(x: Tensor, stride: int) -> Tensor:
    """(R, channels * stride, steps) -> (R, channels, steps * stride)"""
    return x.reshape(len(x), -1, stride, x.shape[-1]).transpose(2, 3).flatten(2)


def _convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, dilation: int, groups: int
) -> Tensor:
    num_out, num_in, kernel = weight.shape
    is_plain = stride == dilation == groups == 1
    if not is_plain or num_out * num_in < _WIDE:
        return F.conv1d(x, weight, bias, stride, 0, dilation, groups)
    windows = x.unfold(2, kernel, 1).transpose(1, 2).flatten(2)  # (R, steps, in * kernel)
    return F.linear(windows, weight.flatten(1), bias).transpose(1, 2)


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding, halves paired: x (R, positions, heads, head_dim)."""
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
