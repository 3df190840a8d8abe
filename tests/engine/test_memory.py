from __future__ import annotations

from pathlib import Path

import pytest

from worker.engine.errors import MemoryTooSmall
from worker.engine.memory import check_memory, free_memory, openvino_bytes, torch_bytes
from worker.engine.spec import CsmSpec

GB = 10**9
CSM_1B = CsmSpec.from_flavours(
    {
        "backbone_flavor": "llama-1B",
        "decoder_flavor": "llama-100M",
        "audio_num_codebooks": 32,
        "audio_vocab_size": 2051,
        "text_vocab_size": 128256,
    }
)


def needing(slots: int) -> int:
    return 2 * GB + slots * GB


def test_slots_that_fit_are_let_be() -> None:
    check_memory(needing, 4, 6 * GB)
    check_memory(needing, 4, None)


def test_too_many_slots_are_refused_with_the_number_that_fits() -> None:
    with pytest.raises(MemoryTooSmall, match=r"8 slots need about 10\.0 GB, and 6\.5 GB are free"):
        check_memory(needing, 8, 6 * GB + GB // 2)
    with pytest.raises(MemoryTooSmall, match="4 would fit: set ECHOFORGE_SLOTS=4"):
        check_memory(needing, 8, 6 * GB + GB // 2)


def test_where_not_even_one_slot_fits_the_way_out_is_another() -> None:
    with pytest.raises(MemoryTooSmall, match=r"not even one fits \(3\.0 GB\).*PRECISION=int8"):
        check_memory(needing, 8, GB)


def test_a_smaller_precision_and_fewer_slots_need_less() -> None:
    def need(precision: str, slots: int) -> float:
        estimate = openvino_bytes if precision.startswith("int") else torch_bytes
        return estimate(CSM_1B, precision, slots, 2048) / GB

    assert need("int4", 4) < need("int8", 4) < need("bf16", 4) < need("fp32", 4)
    assert need("int8", 1) < need("int8", 4) < need("int8", 8) < need("int8", 16)
    assert 2 < need("int8", 4) < 4
    assert 6 < need("fp32", 1) < 9


def test_free_memory_is_what_the_kernel_says(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:   4000000 kB\n")
    assert free_memory(meminfo, tmp_path / "none") == 4_000_000 * 1024
    assert free_memory(tmp_path / "absent") is None


def test_a_containers_limit_counts_when_it_is_less(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable:   4000000 kB\n")
    (tmp_path / "memory.max").write_text("2000000000\n")
    (tmp_path / "memory.current").write_text("1500000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300000000\n")
    assert free_memory(meminfo, tmp_path) == 800_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(meminfo, tmp_path) == 4_000_000 * 1024
