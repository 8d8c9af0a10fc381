"""Searches in l1 for a few values that change by much, and from far outside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust
from robust.attacks import APGD, PGD, Attack, SparseRS, SwapSearch
from robust.errors import InputError

EPS = 2.0


class Thresholds(nn.Module):
    """Answers to 4 of 64 values, and to these beyond 0.6 alone; all others lead gradients astray."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        gap = (flat[:, :4] - 0.6).relu().sum(1) + 0.01 * flat[:, 4:].sum(1) - 0.5
        return torch.stack([torch.zeros_like(gap), 4 * gap], 1)


class Seen(Thresholds):
    """Keeps what it was shown, and is never misled."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.points.append(x.detach().clone())
        return super().forward(x) + torch.tensor([9.0, 0.0])


class Asleep(nn.Module):
    """Answers to 16 of 256 values, once they are bright together: till then the unit that sees them is dead."""

    def forward(self, x: Tensor) -> Tensor:
        gap = 4 * (x.flatten(1)[:, :16].sum(1) - 3).relu() - 0.5
        return torch.stack([torch.zeros_like(gap), gap], 1)


@pytest.fixture
def dark() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(12, 1, 8, 8, generator=generator) / 20, torch.zeros(12, dtype=torch.int64)


def survivors(attack: Attack | str, data: tuple[Tensor, Tensor]) -> int:
    report = robust.evaluate(Thresholds(), data, threat=f"l1:{EPS}", suite=attack, device="cpu")
    return report.statuses["survived"]


@pytest.mark.parametrize(
    "search", [SparseRS(queries=2000, proposals=4), SwapSearch()], ids=["sparse-rs", "swap-search"]
)
def test_they_break_what_ascents_do_not_see(search: Attack, dark: tuple[Tensor, Tensor]) -> None:
    for ascent in (PGD(steps=40, loss="margin"), APGD(steps=60, restarts=2)):
        assert survivors(ascent, dark) == 12
    assert survivors(search, dark) == 0


def test_standard_finds_it_and_says_that_random_search_found_it(dark: tuple[Tensor, Tensor]) -> None:
    report = robust.evaluate(Thresholds(), dark, threat=f"l1:{EPS}", device="cpu")
    assert report.statuses["survived"] <= 2
    assert "sparse-search-wins" in {finding["check"] for finding in report.findings}


def test_standard_wakes_dead_units_from_far_outside() -> None:
    """There is no gradient at a sample, nor where starts of a few times the radius lead."""
    x = torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(0)) / 20
    data = x, torch.zeros(12, dtype=torch.int64)

    def standing(suite: Attack | str) -> int:
        report = robust.evaluate(Asleep(), data, threat="l1:4", suite=suite, device="cpu")
        return report.statuses["survived"]

    assert standing(APGD(steps=27, restarts=4)) >= 10
    assert standing(SparseRS(queries=1500)) >= 10
    assert standing("standard") <= 2


@pytest.mark.parametrize(("spread", "changed"), [(1.0, 2), (1.5, 3), (4.0, 8)])
def test_so_many_values_share_eps_evenly(spread: float, changed: int, dark: tuple[Tensor, Tensor]) -> None:
    x, y = dark
    model = Seen()
    robust.evaluate(
        model, (x[:1], y[:1]), threat=f"l1:{EPS}", suite=SparseRS(queries=80, spread=spread), device="cpu"
    )  # fmt: skip
    moves = [(points - x[:1]).abs().flatten(1) for points in model.points if points.shape == x[:1].shape]
    searched = [move for move in moves if (move > 1e-6).sum() == changed]
    assert len(searched) > 40
    for move in searched:
        assert move.max() <= EPS / changed + 1e-6
        assert move.sum() <= EPS + 1e-5


@pytest.mark.parametrize("attack", [SparseRS, SwapSearch])
def test_a_spread_of_nothing_is_refused(attack: type[SparseRS] | type[SwapSearch]) -> None:
    with pytest.raises(InputError, match="spread: expected a number above 0, got 0"):
        attack(spread=0)
