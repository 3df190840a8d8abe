"""What int8 and int4 cost: logits of the OpenVINO model against PyTorch's in float32.

Both are told the same codes (teacher forcing), so that errors do not lead them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import Node
from openvino import opset15 as op
from torch import Tensor

from worker.engine.blocks import blocks_for
from worker.engine.checkpoint import Checkpoint
from worker.engine.csm import Csm
from worker.engine.openvino_graphs import GraphSource, _GraphWeights, _input
from worker.engine.openvino_runner import OpenvinoRunner, _Sequence, openvino_model
from worker.engine.ops.openvino_ops import OpenvinoOps, constant
from worker.engine.pack import PackPrecision
from worker.engine.torch_runner import torch_model

NUM_FRAMES = 50
TEMPERATURE = 0.9
TEXT = "Numbers cost a little when they are kept short."


@dataclass(frozen=True)
class Told:
    """A prompt of text, and the codes that everyone is made to say: (frames, K)."""

    ids: Tensor
    codes: Tensor

    @property
    def rows(self) -> int:
        return len(self.ids) + len(self.codes) - 1  # the last frame is not read


@pytest.fixture(scope="module")
def told(tiny: Checkpoint) -> Told:
    shape = (NUM_FRAMES, tiny.spec.num_codebooks)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, tiny.codec_spec.codebook_size, shape, generator=generator)
    return Told(torch.tensor(tiny.tokenizer.encode(TEXT, 1)), codes)


@pytest.fixture(scope="module")
def reference(tiny: Checkpoint, told: Told) -> Tensor:
    """PyTorch's logits, (K, frames, V)."""
    csm = torch_model(tiny.spec, tiny.weights)
    places = told.codes + torch.arange(tiny.spec.num_codebooks) * tiny.spec.audio_vocab
    frames = csm.w["audio_embedding"][places].sum(1)
    rows = torch.cat([csm.w["text_embedding"][told.ids], frames[:-1]])[None]
    mask = torch.ones(told.rows, told.rows, dtype=torch.bool).tril()
    positions = torch.arange(told.rows)[None]
    logits: list[Tensor] = []

    def follow(seen: Tensor, codebook: int) -> Tensor:
        logits.append(seen)
        return told.codes[:, codebook]

    with torch.inference_mode():
        hidden = csm.read(rows, positions, lambda _, q, k, v: csm.ops.attend(q, k, v, mask))
        csm.speak_frame(hidden[0, len(told.ids) - 1 :], follow)
    return torch.stack(logits)


def hidden_states(runner: OpenvinoRunner, told: Told) -> np.ndarray:
    """The states that each frame is spoken from, (frames, W): the prompt at once, then by rows."""
    blocks = [runner.pool.take() for _ in range(blocks_for(told.rows))]
    text = runner.model.text_embedding[told.ids].float().numpy()
    states = [runner._read([_Sequence(text, 0, blocks)])[0]]
    rows = runner._embed_frames(told.codes.numpy())
    for index, row in enumerate(rows[:-1]):
        sequence = _Sequence(row[None], len(text) + index, blocks)
        states.append(runner._read([sequence])[0])
    return np.stack(states)


def logits_graph(source: GraphSource) -> ov.Model:
    """`speak_frame` that says what it is told: hidden (frames, W), codes (K, frames) -> logits."""
    spec, ops = source.spec, OpenvinoOps()
    hidden = _input("hidden", [NUM_FRAMES, spec.backbone.width])
    codes = _input("codes", [spec.num_codebooks, NUM_FRAMES], ov.Type.i32)
    table = _input("depth_table", [-1, spec.depth.width])
    logits: list[Node] = []

    def follow(seen: Node, codebook: int) -> Node:
        logits.append(seen)
        return op.gather(codes, constant(codebook, np.int32), constant(0, np.int32))

    csm: Csm[Node] = Csm(spec, _GraphWeights(source.pack, {"depth_table": table}), ops)
    csm.speak_frame(hidden, follow)
    return ov.Model([op.result(node) for node in logits], [hidden, codes, table], "logits")


def logits_of(tiny: Checkpoint, precision: PackPrecision, told: Told) -> Tensor:
    """(K, frames, V), through the runner's backbone and the graph of a frame."""
    model = openvino_model(tiny, precision)
    runner = OpenvinoRunner(model, num_slots=1, max_positions=512)
    compiled = model.source.compile(logits_graph(model.source))
    table = model.source.pack["depth_table"]
    assert isinstance(table, Tensor)
    codes = told.codes.T.int().contiguous().numpy()
    results = compiled([hidden_states(runner, told), codes, table.numpy()])
    return torch.stack([torch.from_numpy(results[k].copy()) for k in range(len(codes))])


@dataclass(frozen=True)
class Cost:
    """Per codebook: the error's RMS over the logits' spread, and the mean KL divergence in nats."""

    error: Tensor
    divergence: Tensor

    @classmethod
    def of(cls, ours: Tensor, theirs: Tensor) -> Cost:
        error = (ours - theirs).square().mean((1, 2)).sqrt() / theirs.std((1, 2))
        wanted, got = ((x.double() / TEMPERATURE).log_softmax(-1) for x in (theirs, ours))
        divergence = (wanted.exp() * (wanted - got)).sum(-1).mean(-1)
        return cls(error, divergence)


@pytest.mark.parametrize(
    ("precision", "first", "all_codebooks"),
    [
        # (error, divergence), each half as much again as was measured
        ("int8", (1.8e-2, 1.3e-4), (1.4e-2, 8.2e-5)),
        ("int4", (1.9e-1, 1.6e-2), (1.65e-1, 1.12e-2)),
    ],
)
def test_quantised_weights_cost_no_more_than_they_did(
    tiny: Checkpoint,
    told: Told,
    reference: Tensor,
    precision: PackPrecision,
    first: tuple[float, float],
    all_codebooks: tuple[float, float],
) -> None:
    cost = Cost.of(logits_of(tiny, precision, told), reference)
    assert cost.error[0] < first[0]
    assert cost.divergence[0] < first[1]
    assert cost.error.mean() < all_codebooks[0]
    assert cost.divergence.mean() < all_codebooks[1]
    assert cost.error.max() < 2 * cost.error.mean()  # no codebook pays for the rest
    assert cost.error.min() > all_codebooks[0] / 10  # and it is that precision


def test_float32_costs_a_rounding_error(tiny: Checkpoint, told: Told, reference: Tensor) -> None:
    assert reference.std() > 0.5
    cost = Cost.of(logits_of(tiny, "fp32", told), reference)
    assert cost.error.max() < 2e-6
    assert cost.divergence.max() < 1e-11
