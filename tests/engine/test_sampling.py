from __future__ import annotations

import numpy as np
import pytest
import torch

from worker.engine.sampling import NoiseSource, Sampling, choose


def pick(
    logits: torch.Tensor, seed: int, temperature: float, top_k: int, codes: int = 8
) -> torch.Tensor:
    noise = torch.empty(logits.shape).exponential_(generator=torch.Generator().manual_seed(seed))
    rows = len(logits)
    heat, k = torch.full((rows,), temperature), torch.full((rows,), top_k)
    return choose(logits, noise, heat, k, max_top_k=top_k, codes=codes)


def test_temperature_zero_takes_the_best_whatever_the_noise() -> None:
    logits = torch.randn(50, 8)
    assert torch.equal(pick(logits, 1, 0.0, 3), logits.argmax(-1))


def test_codes_follow_the_softmax_of_the_top_k() -> None:
    row = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, 3.0, 1.5, 0.2])
    drawn = pick(row.expand(200_000, 8), 7, 0.8, 4)
    kept = torch.full((8,), float("-inf"))
    kept[[5, 0, 6, 1]] = row[[5, 0, 6, 1]]
    expected = torch.softmax(kept / 0.8, -1)
    measured = torch.bincount(drawn, minlength=8) / len(drawn)
    assert (measured - expected).abs().max() < 0.005
    assert measured[[2, 3, 4, 7]].sum() == 0


def test_reserved_codes_are_never_chosen() -> None:
    logits = torch.zeros(1000, 11)
    logits[:, 8:] = 50.0
    assert pick(logits, 3, 1.0, 11).max() < 8
    assert pick(logits, 3, 0.0, 11).max() < 8


def test_rows_with_different_settings_do_not_touch_each_other() -> None:
    logits = torch.randn(3, 8)
    noise = torch.empty(3, 8).exponential_()
    heat, k = torch.tensor([0.0, 0.7, 1.5]), torch.tensor([2, 1, 8])
    together = choose(logits, noise, heat, k, max_top_k=8, codes=8)
    for row in range(3):
        part = slice(row, row + 1)
        alone = choose(logits[part], noise[part], heat[part], k[part], int(k[row]), 8)
        assert together[row] == alone[0]
    assert together[1] == logits[1].argmax()


def test_noise_depends_on_the_seed_alone() -> None:
    first, again, other = (NoiseSource(seed, 4, 10) for seed in (1, 1, 2))
    frames = [source.next_frame() for source in (first, again, other)]
    assert np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], frames[2])
    assert not np.array_equal(frames[0], first.next_frame())


@pytest.mark.parametrize(("temperature", "top_k"), [(-0.1, 5), (float("nan"), 5), (1.0, 0)])
def test_senseless_settings_are_refused(temperature: float, top_k: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        Sampling(temperature, top_k)
