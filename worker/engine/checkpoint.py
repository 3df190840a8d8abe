"""Reads a CSM checkpoint directory, in either layout, and refuses whatever is not exactly right.

Knows files, names and shapes; knows nothing of where checkpoints are looked for, or of devices.
A pickle (`ckpt.pt`) is read with `weights_only=True`, so that it can hold nothing but tensors.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from worker.engine.errors import CheckpointInvalid, ModelNotFound
from worker.engine.layouts import from_original, is_original
from worker.engine.mimi_spec import MimiSpec, mimi_shapes
from worker.engine.spec import CsmSpec
from worker.engine.tokenizer import SpeechTokenizer
from worker.engine.weights import BACKBONE, DEPTH, csm_shapes

CODEC = "codec_model."
AGAIN = "run `echoforge download` again"
INDEXES = ("transformers.safetensors.index.json", "model.safetensors.index.json")
MIMI_DIR = "mimi"  # where the original layout keeps a copy of kyutai/mimi
TIED = (f"{BACKBONE}embed_tokens.embed_audio_tokens.weight", f"{DEPTH}embed_tokens.weight")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Checkpoint:
    """A whole, checked checkpoint; tensors as stored (on the CPU, mostly mapped from the file)."""

    path: Path
    name: str
    is_trained: bool
    revision: str | None
    spec: CsmSpec
    weights: dict[str, Tensor]
    codec_spec: MimiSpec
    codec_weights: dict[str, Tensor]
    tokenizer: SpeechTokenizer


def load_checkpoint(path: Path, *, name: str | None = None, mimi: Path | None = None) -> Checkpoint:
    """Loads `path`. `mimi` is a kyutai/mimi directory for the original layout, which lacks one.

    Raises `ModelNotFound` when `path` is no CSM, `CheckpointInvalid` when it is one but not whole.
    """
    config = read_config(path)
    spec = _spec(config)
    weights = _read_weights(path)
    if is_original(weights):
        weights = from_original(spec, weights)
    codec = {n.removeprefix(CODEC): weights.pop(n) for n in list(weights) if n.startswith(CODEC)}
    codec_spec, codec = _codec(config, codec, mimi or path / MIMI_DIR)
    if codec_spec.num_quantizers != spec.num_codebooks:
        raise CheckpointInvalid(
            f"the codec has {codec_spec.num_quantizers} codebooks, the model {spec.num_codebooks}"
        )
    _tie(spec, weights)
    _check(csm_shapes(spec), weights, path)
    own = config.get("echoforge") or {}
    return Checkpoint(
        path=path,
        name=name or own.get("name") or path.name,
        is_trained=bool(own.get("is_trained", True)),
        revision=read_revision(path),
        spec=spec,
        weights=weights,
        codec_spec=codec_spec,
        codec_weights={n: t.float() for n, t in codec.items()},
        tokenizer=SpeechTokenizer.from_file(path / "tokenizer.json", spec.text_vocab),
    )


def read_config(path: Path) -> dict[str, Any]:
    """`config.json` of a CSM directory. Raises `ModelNotFound` when it is none."""
    file = path / "config.json"
    if not file.is_file():
        raise ModelNotFound(f"{path} is not a CSM checkpoint: it has no config.json")
    config = _read_json(file)
    if not is_csm_config(config):
        kind = config.get("model_type")
        raise ModelNotFound(f"{path} is not a CSM checkpoint: its config.json says {kind!r}")
    return config


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise CheckpointInvalid(f"{file} is damaged ({e}); {AGAIN}") from e
    if not isinstance(content, dict):
        raise CheckpointInvalid(f"{file} is damaged (it holds no object); {AGAIN}")
    return content


def is_csm_config(config: Any) -> bool:
    return isinstance(config, dict) and (
        config.get("model_type") == "csm" or "backbone_flavor" in config
    )


def read_revision(path: Path) -> str | None:
    """The exact commit: recorded by `echoforge download`, or the name of a cache snapshot."""
    record = path / "echoforge.json"
    if record.is_file():
        commit = _read_json(record).get("commit")
        return str(commit) if commit else None
    return path.name if path.parent.name == "snapshots" else None


def _spec(config: dict[str, Any]) -> CsmSpec:
    try:
        if "backbone_flavor" in config:
            return CsmSpec.from_flavours(config)
        return CsmSpec.from_config(config)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as e:
        raise CheckpointInvalid(f"config.json makes no sense ({e!r}); {AGAIN}") from e


def _read_weights(path: Path) -> dict[str, Tensor]:
    for index in INDEXES:
        if (path / index).is_file():
            return _read_shards(path, path / index)
    if (path / "model.safetensors").is_file():
        return _read_safetensors(path / "model.safetensors")
    if (path / "ckpt.pt").is_file():
        return _read_pickle(path / "ckpt.pt")
    raise CheckpointInvalid(
        f"{path} has a config.json but no weights: neither {INDEXES[0]}, {INDEXES[1]},"
        f" model.safetensors nor ckpt.pt; {AGAIN}"
    )


def _read_shards(path: Path, index: Path) -> dict[str, Tensor]:
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointInvalid(f"{index} is damaged ({e!r}); {AGAIN}") from e
    shards = sorted(set(places.values()))
    absent = [shard for shard in shards if not (path / shard).is_file()]
    if absent:
        raise CheckpointInvalid(f"{index.name} names {', '.join(absent)}, not there; {AGAIN}")
    weights: dict[str, Tensor] = {}
    for shard in shards:
        weights |= _read_safetensors(path / shard)
    lost = sorted(set(places) - set(weights))
    if lost:
        raise CheckpointInvalid(f"{index.name} promises {_few(lost)}, not in the shards; {AGAIN}")
    return weights


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(file))
    except (SafetensorError, OSError) as e:
        raise CheckpointInvalid(f"{file} is damaged or half downloaded ({e}); {AGAIN}") from e


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise CheckpointInvalid(
            f"{file} holds something else than tensors, or is damaged ({reason}); {AGAIN}"
        ) from e
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointInvalid(f"{file} is no dictionary of tensors; {AGAIN}")
    return state


def _codec(
    config: dict[str, Any], found: dict[str, Tensor], mimi: Path
) -> tuple[MimiSpec, dict[str, Tensor]]:
    """The codec inside the checkpoint, else the Mimi beside it."""
    if found:
        spec = _codec_spec(config.get("codec_config") or {})
        _check(mimi_shapes(spec), found, Path("codec_model"))
        return spec, found
    if not (mimi / "config.json").is_file():
        raise CheckpointInvalid(
            f"this checkpoint holds no codec (the original layout), and {mimi} is no copy of"
            " kyutai/mimi; put one there, or use the transformers layout: `echoforge download`"
        )
    spec = _codec_spec(_read_json(mimi / "config.json"))
    weights = _read_safetensors(mimi / "model.safetensors")
    _check(mimi_shapes(spec), weights, mimi)
    return spec, weights


def _codec_spec(config: dict[str, Any]) -> MimiSpec:
    try:
        return MimiSpec.from_config(config)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as e:
        raise CheckpointInvalid(f"the codec's configuration cannot be served: {e}") from e


def _tie(spec: CsmSpec, weights: dict[str, Tensor]) -> None:
    """Backbone and depth decoder share one audio embedding; files keep it once or twice."""
    present = [name for name in TIED if name in weights]
    if not spec.tied_embeddings or not present:
        return
    if len(present) == 2 and not torch.equal(weights[TIED[0]], weights[TIED[1]]):
        raise CheckpointInvalid(f"{TIED[0]} and {TIED[1]} differ, yet config.json ties them")
    weights[TIED[0]] = weights[TIED[1]] = weights[present[0]]


def _check(shapes: Shapes, weights: Mapping[str, Tensor], where: Path) -> None:
    """Exactly these tensors, of exactly these shapes."""
    faults = []
    if missing := sorted(set(shapes) - set(weights)):
        faults.append(f"missing: {_few(missing)}")
    if surplus := sorted(set(weights) - set(shapes)):
        faults.append(f"surplus: {_few(surplus)}")
    wrong = [
        f"{name} is {tuple(weights[name].shape)}, should be {shape}"
        for name, shape in shapes.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if wrong:
        faults.append(f"mis-shaped: {_few(wrong)}")
    if faults:
        raise CheckpointInvalid(f"{where} does not match its config.json; {'; '.join(faults)}")


def _few(names: list[str]) -> str:
    more = len(names) - 5
    return ", ".join(names[:5]) + (f" and {more} more" if more > 0 else "")
