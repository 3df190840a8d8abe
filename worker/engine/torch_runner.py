"""The torch runner, for CUDA and as the reference: one static place per slot, one shape per frame.

Knows the model, keys and values, noise; knows nothing of queues, handles, text or audio.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from worker.engine.capture import Capture, CudaCapture, Step
from worker.engine.csm import Attend, Csm
from worker.engine.kv import KvCache, PrefixCache, Remember
from worker.engine.ops.torch_ops import TorchOps
from worker.engine.prompt import NO_TEXT, Prompt
from worker.engine.runner import Codes, Speaker, frame_top_k
from worker.engine.sampling import Sampling, choose
from worker.engine.scheduler import Batch, Prefill, Turn
from worker.engine.spec import CsmSpec
from worker.engine.weights import Weights, depth_table, embeddings, matrices, vectors

SPAN_STEP = 64  # keys are read up to a multiple of this, so that few shapes occur
LEAST_CAPTURED_SPAN = 256  # and up to a power of two from here on, where every shape is captured


def torch_model(spec: CsmSpec, weights: Weights) -> Csm[Tensor]:
    """The model over `weights`, all of one dtype on one device."""
    named = dict(embeddings(weights)) | dict(matrices(spec, weights))
    like = named["first_head"]
    named |= {name: vector.to(like) for name, vector in vectors(spec, weights)}
    with torch.inference_mode():
        named["depth_table"] = depth_table(spec, weights)
    return Csm(spec, named, TorchOps(like.device))


class TorchRunner:
    """Implements `worker.engine.runner.Runner`. `num_codes` is the codec's codebook size.

    What an utterance says depends on the number of slots by a rounding error, and on nothing else
    that is in them.
    """

    def __init__(
        self, model: Csm[Tensor], *, num_slots: int, max_positions: int, num_codes: int,
        prefix_cache_bytes: int = 0, capture: Capture | None = None,
    ) -> None:  # fmt: skip
        self.model, self.num_slots, self.num_codes = model, num_slots, num_codes
        backbone = model.spec.backbone
        like = model.w["first_head"]
        self.device = like.device
        self.max_positions = min(max_positions, backbone.max_positions)
        self.kv = KvCache(backbone, num_slots, self.max_positions, like.dtype, like.device)
        self.prefixes: PrefixCache[Tensor] = PrefixCache(prefix_cache_bytes)
        self._hidden = like.new_zeros(num_slots, backbone.width)
        self._inputs = _FrameInputs(model.spec, num_slots, self.max_positions, like.device)
        self._codes = torch.zeros(
            num_slots, model.spec.num_codebooks, dtype=torch.int64, device=like.device
        )
        self._capture = capture or (CudaCapture() if like.device.type == "cuda" else None)
        self._frames: dict[tuple[int, int], Step] = {}
        self._offsets = torch.arange(model.spec.num_codebooks, device=like.device)
        self._offsets *= model.spec.audio_vocab
        self._speakers: dict[Turn, Speaker] = {}

    def prepare(self, sampling: Sampling) -> None:
        """Nothing: another shape is captured in a moment, by the thread that owns the device."""

    def start(self, turn: Turn, prompt: Prompt, sampling: Sampling) -> None:
        """Gives an admitted turn its slot; a known prefix is copied in, not computed again."""
        self._speakers[turn] = Speaker(self.model.spec, prompt, sampling)
        assert turn.slot is not None
        self.kv.clear(turn.slot)
        if not turn.prefix_rows:
            return
        prefix = self.prefixes.get(prompt.prefix_key)
        if prefix is not None:
            self.kv.copy_in(turn.slot, prefix)
            turn.rows_done = turn.prefix_rows

    def stop(self, turn: Turn) -> None:
        self._speakers.pop(turn, None)

    def warm_up(self) -> None:
        """Captures the usual frames, with nobody speaking: a device that cannot fails at load."""
        limit = frame_top_k(1, self.num_codes)
        for span in self._spans() if self._capture else self._spans()[:1]:
            self._frame_step(span, limit)()

    @torch.inference_mode()
    def run(self, batch: Batch) -> dict[Turn, Codes]:
        """Does the batch's prefills, then one frame for all who speak: their codes (K,) each."""
        for prefill in batch.prefills:
            self._prefill(prefill)
        if not batch.speaking:
            return {}
        codes = self._frame(batch.speaking).cpu().numpy().copy()  # the next frame writes there too
        return {turn: codes[turn.slot] for turn in batch.speaking}

    def _prefill(self, prefill: Prefill) -> None:
        turn, start, stop = prefill.turn, prefill.start, prefill.stop
        assert turn.slot is not None
        prompt = self._speakers[turn].prompt
        positions = torch.arange(start, stop, device=self.device)
        seen = torch.arange(stop, device=self.device) <= positions[:, None]  # (T, stop)
        attend = self._attend(self.kv.remember_rows(turn.slot, start, stop), seen)
        rows = self._embed(prompt, start, stop)
        hidden = self.model.read(rows, positions.unsqueeze(0), attend)
        self._hidden[turn.slot] = hidden[0, -1]
        if stop == turn.prefix_rows:
            self.prefixes.put(prompt.prefix_key, self.kv.copy_out(turn.slot, stop))

    def _embed(self, prompt: Prompt, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a prompt as (1, T, W)."""
        text = torch.from_numpy(prompt.text[start:stop]).to(self.device)
        frames = torch.from_numpy(prompt.frames[start:stop]).to(self.device)
        is_text = (text != NO_TEXT).unsqueeze(-1)
        rows = torch.where(is_text, self._embed_text(text.clamp(min=0)), self._embed_frames(frames))
        return rows.unsqueeze(0)

    def _embed_text(self, ids: Tensor) -> Tensor:
        return torch.nn.functional.embedding(ids, self.model.w["text_embedding"])

    def _embed_frames(self, codes: Tensor) -> Tensor:
        """Frames (..., K) int64 -> backbone rows (..., W): the sum over the codebooks."""
        table = self.model.w["audio_embedding"]
        return torch.nn.functional.embedding(codes + self._offsets, table).sum(dim=-2)

    def _frame(self, turns: list[Turn]) -> Tensor:
        """Samples one frame for `turns` and reads it into the backbone; codes (slots, K).

        Every slot takes part, whoever speaks: a product of another height rounds otherwise, so
        only with one shape does an utterance say the same alone as among others. The rows of
        slots that do not speak are thrown away, and write to a position that nobody reads.
        """
        top_k = max(self._speakers[turn].sampling.top_k for turn in turns)
        longest = max(turn.position for turn in turns) + 1
        replay = self._frame_step(self._span(longest), frame_top_k(top_k, self.num_codes))
        self._inputs.fill({turn: self._speakers[turn] for turn in turns})
        replay()
        return self._codes

    def _frame_step(self, span: int, limit: int) -> Step:
        """The frame that reads `span` positions; captured on first use, with nobody speaking."""

        def step() -> None:
            self.compute_frame(span, limit)

        if self._capture is None:
            return step
        if (span, limit) not in self._frames:
            self._inputs.fill({})
            self._frames[span, limit] = self._capture(step)
        return self._frames[span, limit]

    @torch.inference_mode()
    def compute_frame(self, span: int, limit: int) -> None:
        """One frame from the input buffers into `_codes` and `_hidden`: fixed shapes, no sync."""
        given = self._inputs

        def pick(logits: Tensor, codebook: int) -> Tensor:
            noise = given.noise[:, codebook]
            return choose(logits, noise, given.temperature, given.top_k, limit, self.num_codes)

        self._codes.copy_(self.model.speak_frame(self._hidden, pick))
        self._advance(given.positions, self._codes, span)

    def _advance(self, positions: Tensor, codes: Tensor, span: int) -> None:
        seen = torch.arange(span, device=self.device) <= positions[:, None]
        attend = self._attend(self.kv.remember_frame(positions, span), seen[:, None, None, :])
        rows = self._embed_frames(codes).unsqueeze(1)
        places = positions.clamp(max=self.max_positions - 1).unsqueeze(1)
        hidden = self.model.read(rows, places, attend)
        is_speaking = (positions < self.max_positions).unsqueeze(1)
        self._hidden.copy_(torch.where(is_speaking, hidden[:, -1], self._hidden))

    def _attend(self, remember: Remember, mask: Tensor) -> Attend[Tensor]:
        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.model.ops.attend(q, *remember(layer, k, v), mask)

        return attend

    def _span(self, rows: int) -> int:
        """How many positions a frame reads when the longest utterance has `rows`."""
        return next(span for span in self._spans() if span >= rows)

    def _spans(self) -> list[int]:
        if self._capture is None:
            return [*range(SPAN_STEP, self.max_positions, SPAN_STEP), self.max_positions]
        spans = [min(LEAST_CAPTURED_SPAN, self.max_positions)]
        while spans[-1] < self.max_positions:
            spans.append(min(2 * spans[-1], self.max_positions))
        return spans


class _FrameInputs:
    """What a frame reads from the host, in buffers that stay where they are."""

    def __init__(
        self, spec: CsmSpec, num_slots: int, max_positions: int, device: torch.device
    ) -> None:
        self._nobody = max_positions  # the position that nobody reads
        self._drawn = np.ones((num_slots, spec.num_codebooks, spec.audio_vocab), np.float32)
        self.noise = torch.ones(self._drawn.shape, device=device)
        self.positions = torch.full((num_slots,), self._nobody, device=device)
        self.temperature = torch.zeros(num_slots, device=device)
        self.top_k = torch.ones(num_slots, dtype=torch.int64, device=device)

    def fill(self, speakers: dict[Turn, Speaker]) -> None:
        """Slots without a speaker are greedy, and write where nobody reads."""
        slots = len(self._drawn)
        positions, temperature, top_k = [self._nobody] * slots, [0.0] * slots, [1] * slots
        for turn, speaker in speakers.items():
            assert turn.slot is not None
            self._drawn[turn.slot] = speaker.noise.next_frame()
            positions[turn.slot] = turn.position
            temperature[turn.slot] = speaker.sampling.temperature
            top_k[turn.slot] = speaker.sampling.top_k
        self.noise.copy_(torch.from_numpy(self._drawn))
        self.positions.copy_(torch.tensor(positions))
        self.temperature.copy_(torch.tensor(temperature))
        self.top_k.copy_(torch.tensor(top_k))
