"""Downloads against a fake hub: what is chosen, what resumes, what each fault says."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import errors

from client.download import DownloadError, Snapshot, checkpoint_files, download

SESAME = {
    ".gitattributes": 1,
    "README.md": 9,
    "chat_template.jinja": 4,
    "ckpt.pt": 60,
    "config.json": 2,
    "generation_config.json": 2,
    "model.safetensors": 60,
    "preprocessor_config.json": 2,
    "prompts/a.wav": 7,
    "special_tokens_map.json": 2,
    "tokenizer.json": 5,
    "tokenizer_config.json": 2,
    "transformers-00001-of-00002.safetensors": 40,
    "transformers-00002-of-00002.safetensors": 20,
    "transformers.safetensors.index.json": 3,
}
SMALL = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
]
MIMI = {"README.md": 3, "config.json": 4, "model.safetensors": 30}


class FakeHub:
    """Gives files of the right sizes; breaks off after `breaks_after` files, once."""

    def __init__(self, files: dict[str, int] = SESAME, fault: Exception | None = None) -> None:
        self.files = files
        self.fault = fault
        self.codec_fault: Exception | None = None
        self.breaks_after: int | None = None
        self.commit = "c0ffee"
        self.fetched: list[str] = []

    def resolve(self, repo: str, revision: str) -> Snapshot:
        if self.fault and not isinstance(self.fault, errors.GatedRepoError):
            raise self.fault
        if repo == "kyutai/mimi":
            if self.codec_fault:
                raise self.codec_fault
            return Snapshot("codec", MIMI)
        return Snapshot(self.commit, self.files)

    def fetch(self, repo, commit, files, directory: Path) -> None:
        if self.fault:
            raise self.fault
        sizes = MIMI if repo == "kyutai/mimi" else self.files
        for n, name in enumerate(files):
            if n == self.breaks_after:
                self.breaks_after = None
                raise ConnectionError("reset")
            if not (directory / name).exists():
                (directory / name).write_bytes(b"x" * sizes[name])
                self.fetched.append(name)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "models" / "csm-1b"


def http_fault(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    request = httpx2.Request("GET", "https://huggingface.co/api/models/x")
    return kind("a long text", response=httpx2.Response(status, request=request))


def test_the_transformers_layout_is_chosen_and_nothing_else():
    assert sorted(checkpoint_files(list(SESAME), original=False)) == sorted(
        [*SMALL, *(name for name in SESAME if name.startswith("transformers"))]
    )


def test_a_repository_without_transformers_shards_gives_its_model_files():
    names = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
    ]
    assert checkpoint_files(names, original=False) == [
        "config.json",
        "model.safetensors.index.json",
        names[1],
        names[2],
    ]


def test_the_original_layout_prefers_safetensors_to_a_pickle():
    assert checkpoint_files(list(SESAME), original=True) == [*SMALL, "model.safetensors"]
    assert "ckpt.pt" in checkpoint_files(["config.json", "ckpt.pt"], original=True)


def test_a_download_is_whole_and_records_its_exact_commit(target):
    assert download(target, hub=FakeHub()) == target
    record = json.loads((target / "echoforge.json").read_text())
    assert {**record, "downloaded_at": "now"} == {
        "repo": "sesame/csm-1b",
        "revision": "main",
        "commit": "c0ffee",
        "layout": "transformers",
        "downloaded_at": "now",
    }
    assert [p.name for p in target.parent.iterdir()] == ["csm-1b"]


def test_the_original_layout_brings_its_codec_in_a_folder_of_its_own(target):
    download(target, original=True, hub=FakeHub())
    assert sorted(p.name for p in (target / "mimi").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert (target / "model.safetensors").stat().st_size == SESAME["model.safetensors"]


def test_the_transformers_layout_needs_no_codec_beside_it(target):
    download(target, hub=FakeHub())
    assert not (target / "mimi").exists()


def test_a_codec_that_cannot_be_had_is_told_by_its_own_name_and_resumed(target):
    hub = FakeHub()
    hub.codec_fault = http_fault(errors.HfHubHTTPError, 500)
    with pytest.raises(DownloadError, match="HTTP 500 for kyutai/mimi"):
        download(target, original=True, hub=hub)
    assert not target.exists()
    hub.codec_fault = None
    download(target, original=True, hub=hub)
    assert hub.fetched.count("tokenizer.json") == 1
    assert (target / "mimi" / "model.safetensors").exists()


def test_a_broken_off_download_leaves_no_checkpoint_and_is_resumed(target):
    hub = FakeHub()
    hub.breaks_after = 4
    with pytest.raises(DownloadError, match="check the network and run again"):
        download(target, hub=hub)
    assert not target.exists()
    download(target, hub=hub)
    assert len(hub.fetched) == len(set(hub.fetched)) == 9


def test_parts_of_another_commit_are_not_mixed_in(target):
    hub = FakeHub()
    hub.breaks_after = 4
    with pytest.raises(DownloadError):
        download(target, hub=hub)
    hub.commit, hub.files = "other", {"config.json": 2, "model.safetensors": 8}
    download(target, hub=hub)
    assert sorted(p.name for p in target.iterdir()) == [
        "config.json",
        "echoforge.json",
        "model.safetensors",
    ]


def test_what_is_there_already_is_not_fetched_again(target):
    download(target, hub=FakeHub())
    hub = FakeHub()
    download(target, hub=hub)
    assert hub.fetched == []


def test_a_newer_commit_replaces_what_we_had(target):
    download(target, hub=FakeHub())
    newer = FakeHub()
    newer.commit = "newer"
    download(target, hub=newer)
    assert json.loads((target / "echoforge.json").read_text())["commit"] == "newer"
    assert [p.name for p in target.parent.iterdir()] == ["csm-1b"]


def test_a_directory_that_is_not_ours_is_left_alone(target):
    target.mkdir(parents=True)
    (target / "mine.safetensors").write_text("precious")
    with pytest.raises(DownloadError, match="was not made by `echoforge download`"):
        download(target, hub=FakeHub())
    assert (target / "mine.safetensors").read_text() == "precious"


def test_a_file_that_came_short_is_told(target):
    hub = FakeHub()
    target.with_name("csm-1b.partial").mkdir(parents=True)
    hub.breaks_after = 4
    with pytest.raises(DownloadError):
        download(target, hub=hub)
    (target.with_name("csm-1b.partial") / "config.json").write_bytes(b"")
    with pytest.raises(DownloadError, match=r"config\.json did not arrive whole"):
        download(target, hub=hub)
    assert not target.exists()


def test_a_disk_too_small_is_told_before_the_download(target):
    hub = FakeHub({"config.json": 2, "model.safetensors": 10**18})
    with pytest.raises(DownloadError, match=r"GB more .*make room"):
        download(target, hub=hub)
    assert hub.fetched == []


def test_a_repository_without_a_checkpoint_is_told(target):
    with pytest.raises(DownloadError, match="holds no CSM checkpoint"):
        download(target, "gpt2", hub=FakeHub({"config.json": 2, "pytorch_model.bin": 9}))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            http_fault(errors.GatedRepoError, 403),
            "accept the licence at https://huggingface.co/sesame/csm-1b, then `hf auth login` "
            "(or set HF_TOKEN) and try again; or take the open mirror with "
            "`echoforge download unsloth/csm-1b`",
        ),
        (http_fault(errors.RepositoryNotFoundError, 404), "there is no repository sesame/csm-1b"),
        (errors.HFValidationError("bad name"), "there is no repository sesame/csm-1b"),
        (http_fault(errors.RevisionNotFoundError, 404), "has no revision 'main'"),
        (http_fault(errors.HfHubHTTPError, 500), "the Hub answered HTTP 500"),
        (errors.LocalEntryNotFoundError("offline"), "check the network"),
        (errors.OfflineModeIsEnabled("offline"), "check the network"),
        (httpx2.ConnectError("refused"), "check the network"),
        (httpx2.ReadTimeout("slow"), "check the network"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left for"),
        (errors.XetDownloadError("storage"), "run again to resume"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_fault_is_one_clear_line(target, fault, says):
    with pytest.raises(DownloadError) as caught:
        download(target, hub=FakeHub(fault=fault))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not target.exists()
