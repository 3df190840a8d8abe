"""Checkpoints that are not whole, or not what they say: each is refused by name."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from worker.engine.checkpoint import load_checkpoint
from worker.engine.errors import CheckpointInvalid, ModelNotFound
from worker.engine.spec import CsmSpec, RopeSpec


@pytest.fixture
def path(tiny_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_path, tmp_path / "model"))


def edit_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def edit_weights(path: Path, **changes: torch.Tensor | None) -> None:
    weights = load_file(path / "model.safetensors") | changes
    save_file({n: t for n, t in weights.items() if t is not None}, path / "model.safetensors")


def test_csm_tiny_is_a_few_million_parameters_and_says_it_is_untrained(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    num = sum(t.numel() for t in load_file(path / "model.safetensors").values())
    assert 2_000_000 < num < 10_000_000
    assert checkpoint.name == "csm-tiny"
    assert not checkpoint.is_trained


def test_a_missing_tensor_is_named(path: Path) -> None:
    edit_weights(path, **{"lm_head.weight": None})
    with pytest.raises(CheckpointInvalid, match=r"missing: lm_head\.weight"):
        load_checkpoint(path)


def test_a_surplus_tensor_is_named(path: Path) -> None:
    edit_weights(path, **{"lm_head.bias": torch.zeros(3)})
    with pytest.raises(CheckpointInvalid, match=r"surplus: lm_head\.bias"):
        load_checkpoint(path)


def test_a_mis_shaped_tensor_is_named_with_both_shapes(path: Path) -> None:
    edit_weights(path, **{"lm_head.weight": torch.zeros(3, 4)})
    with pytest.raises(
        CheckpointInvalid, match=r"lm_head\.weight is \(3, 4\), should be \(259, 256\)"
    ):
        load_checkpoint(path)


def test_a_missing_tensor_of_the_codec_is_named(path: Path) -> None:
    edit_weights(path, **{"codec_model.upsample.conv.weight": None})
    with pytest.raises(CheckpointInvalid, match=r"missing: upsample\.conv\.weight"):
        load_checkpoint(path)


def test_embeddings_that_should_be_tied_but_differ_are_refused(path: Path) -> None:
    name = "backbone_model.embed_tokens.embed_audio_tokens.weight"
    edit_weights(path, **{name: torch.zeros(16 * 259, 256)})
    with pytest.raises(CheckpointInvalid, match="differ, yet"):
        load_checkpoint(path)


def test_a_half_downloaded_file_is_told_as_such(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(CheckpointInvalid, match=r"half downloaded.*download"):
        load_checkpoint(path)


def test_an_index_whose_shard_is_absent_names_it(path: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointInvalid, match="model-00001-of-00002"):
        load_checkpoint(path)


def test_no_weights_at_all_is_said(path: Path) -> None:
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointInvalid, match="no weights"):
        load_checkpoint(path)


class Malice:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("pwned"),))  # type: ignore[return-value]


def test_a_pickle_that_holds_code_is_refused_and_not_run(path: Path, tmp_path: Path) -> None:
    (path / "model.safetensors").unlink()
    (path / "ckpt.pt").write_bytes(pickle.dumps({"a": Malice()}, protocol=2))
    with pytest.raises(CheckpointInvalid, match="something else than tensors"):
        load_checkpoint(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama"}'])
def test_a_directory_that_is_no_csm_is_refused(path: Path, text: str) -> None:
    (path / "config.json").write_text(text)
    with pytest.raises((ModelNotFound, CheckpointInvalid), match=r"no.*CSM|not a CSM|damaged"):
        load_checkpoint(path)


def test_an_empty_directory_is_no_csm(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        load_checkpoint(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(path: Path) -> None:
    edit_config(path, text_vocab_size=100)
    edit_weights(path, **{"embed_text_tokens.weight": torch.zeros(100, 256)})
    with pytest.raises(CheckpointInvalid, match="do not belong together"):
        load_checkpoint(path)


@pytest.mark.parametrize("text", [None, "{}", "not json"])
def test_a_missing_or_damaged_tokenizer_is_told(path: Path, text: str | None) -> None:
    (path / "tokenizer.json").unlink()
    if text is not None:
        (path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointInvalid, match="download"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "not silu"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "yarn"),
        ({"num_codebooks": 99}, "99 codebooks"),
        ({"num_attention_heads": 3}, "share"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"hidden_size": "abc"}, "makes no sense"),
        ({"hidden_size": -4}, "width is -4"),
        ({"num_attention_heads": 0}, "makes no sense|num_heads is 0"),
        ({"depth_decoder_config": "x"}, "makes no sense"),
        ({"depth_decoder_config": [1]}, "makes no sense"),
        ({"codec_config": {"hidden_size": "abc"}}, "cannot be served"),
    ],
)
def test_a_config_that_cannot_be_served_says_which_key(
    path: Path, change: dict[str, object], message: str
) -> None:
    edit_config(path, **change)
    with pytest.raises(CheckpointInvalid, match=message):
        load_checkpoint(path)


def test_the_older_spelling_of_rope_means_the_same() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 0.125,
        "high_freq_factor": 0.5,
        "original_max_position_embeddings": 1024,
    }
    old = RopeSpec.from_config({"rope_theta": 500000, "rope_scaling": scaling})
    new = RopeSpec.from_config({"rope_parameters": scaling | {"rope_theta": 500000.0}})
    assert old == new
    assert RopeSpec.from_config({"rope_theta": 10000.0}) == RopeSpec(10000.0)


def test_the_reference_repositorys_config_is_csm_1b() -> None:
    spec = CsmSpec.from_flavours(
        {
            "backbone_flavor": "llama-1B",
            "decoder_flavor": "llama-100M",
            "text_vocab_size": 128256,
            "audio_vocab_size": 2051,
            "audio_num_codebooks": 32,
        }
    )
    assert (spec.backbone.num_layers, spec.backbone.width, spec.depth.width) == (16, 2048, 1024)
    assert spec.backbone.rope == RopeSpec(500_000.0, "llama3", 32.0, 0.125, 0.5, 1024)


def test_the_downloaded_revision_is_read_back(path: Path) -> None:
    (path / "echoforge.json").write_text(json.dumps({"commit": "abc123"}))
    assert load_checkpoint(path).revision == "abc123"
