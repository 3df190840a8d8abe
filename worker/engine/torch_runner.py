"""The torch runner, for CUDA and as the reference: one static place per slot, one shape per frame.

Knows the model, keys and values, noise; knows nothing of queues, handles, text or audio.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from worker.engine.csm import Attend, Csm
from worker.engine.kv import KvCache, PrefixCache, Remember
from worker.engine.ops.torch_ops import TorchOps
from worker.engine.prompt import NO_TEXT, Prompt
from worker.engine.runner import Codes, Speaker
from worker.engine.sampling import Sampling, choose
from worker.engine.scheduler import Batch, Prefill, Turn
from worker.engine.spec import CsmSpec
from worker.engine.weights import Weights, depth_table, embeddings, matrices, vectors

SPAN_STEP = 64  # keys are read up to a multiple of this, so that few shapes occur


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
        prefix_cache_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.model, self.num_slots, self.num_codes = model, num_slots, num_codes
        backbone = model.spec.backbone
        like = model.w["first_head"]
        self.device = like.device
        self.max_positions = min(max_positions, backbone.max_positions)
        self.kv = KvCache(backbone, num_slots, self.max_positions, like.dtype, like.device)
        self.prefixes: PrefixCache[Tensor] = PrefixCache(prefix_cache_bytes)
        self._hidden = like.new_zeros(num_slots, backbone.width)
        self._offsets = torch.arange(model.spec.num_codebooks, device=like.device)
        self._offsets *= model.spec.audio_vocab
        self._silence = np.ones((model.spec.num_codebooks, model.spec.audio_vocab), np.float32)
        self._speakers: dict[Turn, Speaker] = {}

    def prepare(self, sampling: Sampling) -> None:
        """Nothing: every shape is compiled already."""

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
        """One frame with nobody speaking: a device that cannot do it fails here, at load."""
        self._frame([])

    @torch.inference_mode()
    def run(self, batch: Batch) -> dict[Turn, Codes]:
        """Does the batch's prefills, then one frame for all who speak: their codes (K,) each."""
        for prefill in batch.prefills:
            self._prefill(prefill)
        if not batch.speaking:
            return {}
        codes = self._frame(batch.speaking).cpu().numpy()
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

    @torch.inference_mode()
    def _frame(self, turns: list[Turn]) -> Tensor:
        """Samples one frame for `turns` and reads it into the backbone; codes (slots, K).

        Every slot takes part, whoever speaks: a product of another height rounds otherwise, so
        only with one shape does an utterance say the same alone as among others. The rows of
        slots that do not speak are thrown away, and write to a position that nobody reads.
        """
        by_slot = {turn.slot: (turn, self._speakers[turn]) for turn in turns}
        slots = [by_slot.get(slot) for slot in range(self.num_slots)]
        positions = self._tensor([s[0].position if s else self.max_positions for s in slots])
        top_k = self._tensor([s[1].sampling.top_k if s else 1 for s in slots])
        heat = [s[1].sampling.temperature if s else 0.0 for s in slots]
        temperature = self._tensor(heat, torch.float32)
        drawn = np.stack([s[1].noise.next_frame() if s else self._silence for s in slots])
        noise = torch.from_numpy(drawn).to(self.device)
        max_top_k = max((s.sampling.top_k for _, s in by_slot.values()), default=1)

        def pick(logits: Tensor, codebook: int) -> Tensor:
            row_noise = noise[:, codebook]
            return choose(logits, row_noise, temperature, top_k, max_top_k, self.num_codes)

        codes = self.model.speak_frame(self._hidden, pick)
        self._advance(positions, codes, self._span(turns))
        return codes

    def _advance(self, positions: Tensor, codes: Tensor, span: int) -> None:
        seen = torch.arange(span, device=self.device) <= positions[:, None]
        attend = self._attend(self.kv.remember_frame(positions, span), seen[:, None, None, :])
        rows = self._embed_frames(codes).unsqueeze(1)
        places = positions.clamp(max=self.max_positions - 1).unsqueeze(1)
        hidden = self.model.read(rows, places, attend)
        is_speaking = (positions < self.max_positions).unsqueeze(1)
        self._hidden = torch.where(is_speaking, hidden[:, -1], self._hidden)

    def _attend(self, remember: Remember, mask: Tensor) -> Attend[Tensor]:
        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.model.ops.attend(q, *remember(layer, k, v), mask)

        return attend

    def _span(self, turns: list[Turn]) -> int:
        longest = max((turn.position for turn in turns), default=0) + 1
        return min(-(-longest // SPAN_STEP) * SPAN_STEP, self.max_positions)

    def _tensor(self, values: Sequence[float], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)
