from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.checkpoints import random_model, tiny_config, write_original, write_transformers
from worker.engine.checkpoint import Checkpoint, load_checkpoint
from worker.engine.errors import PackInvalid
from worker.engine.pack import Pack, fingerprint, make_pack, open_pack
from worker.engine.quantize import Quantised, QuantisedMatrix

MAPS = Path("/proc/self/maps")
HEAD = "lm_head.weight"
BOTH = pytest.mark.parametrize("precision", ["int8", "int4"])


def changed(tiny: Checkpoint, name: str = HEAD) -> Checkpoint:
    """The same checkpoint with one tensor of other values."""
    return replace(tiny, weights=tiny.weights | {name: tiny.weights[name] + 1})


def same(part: Tensor | QuantisedMatrix, other: Tensor | QuantisedMatrix) -> bool:
    if isinstance(part, Tensor) or isinstance(other, Tensor):
        return isinstance(part, Tensor) and isinstance(other, Tensor) and torch.equal(part, other)
    return torch.equal(part.codes, other.codes) and torch.equal(part.scales, other.scales)


def assert_same(pack: Pack, other: Pack) -> None:
    assert set(pack) == set(other)
    for name, part in pack.items():
        assert same(part, other[name]), name


# What names a checkpoint


@pytest.mark.parametrize("name", [HEAD, "backbone_model.norm.weight", "embed_text_tokens.weight"])
def test_other_values_of_one_tensor_are_another_checkpoint(tiny: Checkpoint, name: str) -> None:
    assert fingerprint(changed(tiny, name).weights) != fingerprint(tiny.weights)


@pytest.mark.parametrize("place", [0, 0.5, -1], ids=["start", "middle", "end"])
def test_one_value_at_a_tensors_start_middle_or_end_tells_checkpoints_apart(
    tiny: Checkpoint, place: float
) -> None:
    weight = tiny.weights[HEAD].clone()
    flat = weight.view(-1)
    flat[int(place * len(flat)) if place >= 0 else -1] += 1
    assert fingerprint(tiny.weights | {HEAD: weight}) != fingerprint(tiny.weights)


def test_another_dtype_name_shape_or_number_of_tensors_is_another_checkpoint(
    tiny: Checkpoint,
) -> None:
    weight = tiny.weights[HEAD]
    rest = {n: t for n, t in tiny.weights.items() if n != HEAD}
    changes: list[dict[str, Tensor]] = [
        {HEAD: weight.view(torch.int32)},
        {"renamed": weight},
        {HEAD: weight.view(weight.shape[1], -1)},
        {HEAD: weight, "one more": torch.zeros(1)},
        {},
    ]
    marks = {fingerprint(rest | change) for change in changes}
    assert len(marks) == len(changes)
    assert fingerprint(tiny.weights) not in marks


def test_neither_order_nor_place_in_memory_is_part_of_the_name(tiny: Checkpoint) -> None:
    backwards = dict(reversed(tiny.weights.items()))
    backwards[HEAD] = backwards[HEAD].T.contiguous().T
    assert not backwards[HEAD].is_contiguous()
    assert fingerprint(backwards) == fingerprint(tiny.weights)


def test_the_layout_of_the_files_is_no_part_of_the_name(tmp_path: Path) -> None:
    model = random_model(tiny_config())
    paths = [
        write_transformers(model, tmp_path / "one file"),
        write_transformers(model, tmp_path / "shards", shard_size="3MB"),
        write_original(model, tmp_path / "original"),
    ]
    assert len({fingerprint(load_checkpoint(path).weights) for path in paths}) == 1
    other = load_checkpoint(write_transformers(random_model(tiny_config(), 1), tmp_path / "other"))
    assert fingerprint(other.weights) != fingerprint(load_checkpoint(paths[0]).weights)


# The file


@BOTH
def test_a_pack_from_its_file_is_the_pack_that_was_made(
    tiny: Checkpoint, tmp_path: Path, precision: Quantised
) -> None:
    made = dict(make_pack(tiny.spec, tiny.weights, precision))
    assert_same(open_pack(tiny, precision, tmp_path), made)
    assert_same(open_pack(tiny, precision, tmp_path), made)
    assert_same(open_pack(tiny, precision, None), made)
    assert isinstance(made["first_head"], QuantisedMatrix)
    assert isinstance(made["depth_table"], Tensor)


def test_a_pack_is_written_once(tiny: Checkpoint, tmp_path: Path) -> None:
    open_pack(tiny, "int8", tmp_path / "new" / "folder")
    [file] = (tmp_path / "new" / "folder").iterdir()
    before = file.stat()
    again = replace(tiny, weights=Packed(tiny.weights, fail))
    open_pack(again, "int8", tmp_path / "new" / "folder")
    after = file.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(file.parent.iterdir()) == [file]


def test_each_precision_and_each_checkpoint_has_its_own_file(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    open_pack(tiny, "int8", tmp_path)
    open_pack(tiny, "int4", tmp_path)
    open_pack(changed(tiny), "int8", tmp_path)
    files = sorted(file.name for file in tmp_path.iterdir())
    assert len(files) == 3
    assert sum("int8" in name for name in files) == 2
    assert all(name.startswith(tiny.name) for name in files)


def test_float32_is_never_kept(tiny: Checkpoint, tmp_path: Path) -> None:
    pack = open_pack(tiny, "fp32", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    assert torch.equal(pack["first_head"], tiny.weights[HEAD])  # type: ignore[arg-type]


def places_in(file: Path) -> list[range]:
    """The addresses at which this process has mapped `file`."""
    lines = [line.split() for line in MAPS.read_text().splitlines() if line.endswith(str(file))]
    ends = [[int(end, 16) for end in line[0].split("-")] for line in lines]
    return [range(start, stop) for start, stop in ends]


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells what is mapped")
def test_a_packs_file_is_mapped_into_memory_not_read(tiny: Checkpoint, tmp_path: Path) -> None:
    pack = open_pack(tiny, "int8", tmp_path)
    places = places_in(next(tmp_path.iterdir()))
    matrices = [part for part in pack.values() if isinstance(part, QuantisedMatrix)]
    assert len(matrices) > 30
    for matrix in matrices:
        assert any(matrix.codes.data_ptr() in place for place in places)
    depth_table = pack["depth_table"]
    assert isinstance(depth_table, Tensor)
    assert any(depth_table.data_ptr() in place for place in places)


# What may go wrong with it


class Packed(dict[str, Tensor]):
    """Calls `event` while it is packed: a fingerprint reads each tensor once, packing again."""

    def __init__(self, weights: dict[str, Tensor], event: Callable[[], None]) -> None:
        super().__init__(weights)
        self._event = event
        self._seen: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        if name in self._seen and "norm" in name:
            self._event()
        self._seen.add(name)
        return super().__getitem__(name)


def fail() -> None:
    raise OSError("the disk is gone")


def test_a_packing_that_fails_in_the_middle_leaves_nothing_behind(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    broken = replace(tiny, weights=Packed(tiny.weights, fail))
    with pytest.raises(OSError, match="the disk is gone"):
        open_pack(broken, "int8", tmp_path)
    assert not list(tmp_path.iterdir())
    assert_same(open_pack(tiny, "int8", tmp_path), open_pack(tiny, "int8", None))


def test_a_pack_that_cannot_take_its_place_leaves_nothing_behind(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    open_pack(tiny, "int8", tmp_path)
    [file] = tmp_path.iterdir()
    file.unlink()
    blocked = replace(tiny, weights=Packed(tiny.weights, lambda: file.mkdir(exist_ok=True)))
    with pytest.raises(PackInvalid, match="cannot be written"):
        open_pack(blocked, "int8", tmp_path)
    assert list(tmp_path.iterdir()) == [file]


@contextmanager
def files_no_larger_than(num_bytes: int) -> Iterator[None]:
    """The kernel refuses to write more, as a full disk does."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def test_a_disk_that_fills_up_while_a_pack_is_written_leaves_nothing_behind(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    with files_no_larger_than(100_000), pytest.raises(Exception, match="File too large"):
        open_pack(tiny, "int8", tmp_path)
    assert not list(tmp_path.iterdir())
    assert_same(open_pack(tiny, "int8", tmp_path), open_pack(tiny, "int8", None))


def test_a_draft_that_a_killed_worker_left_is_not_taken_for_a_pack(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    open_pack(tiny, "int8", tmp_path)
    [file] = tmp_path.iterdir()
    draft = file.rename(file.with_name(f".{file.name}.1.part"))
    draft.write_bytes(draft.read_bytes()[:1000])
    assert_same(open_pack(tiny, "int8", tmp_path), open_pack(tiny, "int8", None))


def first_bytes(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(content: bytes) -> bytes:
    return b""


def other_header(content: bytes) -> bytes:
    return content[:8] + b"[" + content[9:]


@pytest.mark.parametrize("damage", [first_bytes, empty, other_header])
def test_a_damaged_file_is_refused_with_what_to_do(
    tiny: Checkpoint, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    open_pack(tiny, "int8", tmp_path)
    [file] = tmp_path.iterdir()
    content = damage(file.read_bytes())
    file.unlink()  # it is mapped: never cut it under its readers
    file.write_bytes(content)
    with pytest.raises(PackInvalid, match=rf"damaged .*delete {file}, and it is made again"):
        open_pack(tiny, "int8", tmp_path)
    assert file.read_bytes() == content
    file.unlink()
    assert_same(open_pack(tiny, "int8", tmp_path), open_pack(tiny, "int8", None))


def test_a_file_of_another_checkpoint_is_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    open_pack(tiny, "int8", tmp_path)
    [name] = [file.name for file in tmp_path.iterdir()]
    open_pack(changed(tiny), "int8", tmp_path / "other")
    [other] = (tmp_path / "other").iterdir()
    other.replace(tmp_path / name)
    with pytest.raises(PackInvalid, match=rf"another checkpoint .*delete .*{name}"):
        open_pack(tiny, "int8", tmp_path)


def test_a_file_of_another_precision_is_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    open_pack(tiny, "int8", tmp_path / "a")
    open_pack(tiny, "int4", tmp_path / "b")
    [wide], [narrow] = (tmp_path / "a").iterdir(), (tmp_path / "b").iterdir()
    wide.replace(narrow)
    with pytest.raises(PackInvalid, match=rf"precision; delete .*{narrow.name}"):
        open_pack(tiny, "int4", tmp_path / "b")
