"""Random search and ascents in turns: what neither finds alone, and what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import robust
from robust.attacks import PGD, Attack, Square, SquareAscent
from robust.errors import InputError

EPS = 0.1


class Ripples(nn.Module):
    """The second class gains from a dark left and a bright right half, and from a ripple in every pixel.

    The ripple's tops are at .8 of eps to either side: which one ascents end on says little of the halves, and squares, which
    know corners of the ball alone, reach none. The class wins where nearly all pixels are on the right one.
    """

    def forward(self, x: Tensor) -> Tensor:
        moved = (x - 0.5) / EPS
        half = torch.ones_like(moved)
        half[..., : moved.shape[-1] // 2] = -1
        gained = 2 / 3 * half * moved + 0.5 * torch.cos(2 * math.pi * (moved.abs() - 0.8))
        gained = gained.flatten(1).mean(1)
        return torch.stack([torch.full_like(gained, 0.9), gained], 1)


def _standing(attack: Attack, count: int = 6) -> int:
    data = torch.full((count, 1, 8, 8), 0.5), torch.zeros(count, dtype=torch.int64)
    report = robust.evaluate(Ripples(), data, threat=f"linf:{EPS}", suite=attack, device="cpu")
    return report.statuses["survived"]


def test_ascents_from_where_squares_stand_find_what_neither_finds_alone() -> None:
    assert _standing(PGD(steps=100, restarts=5, loss="margin")) == 6
    assert _standing(Square(queries=2000)) == 6
    assert _standing(SquareAscent()) == 0


def test_a_sample_pays_for_squares_and_ascents(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    attack = SquareAscent(rounds=3, queries=40, proposals=4, steps=5)
    report = robust.evaluate(net, digits, threat="linf:0.001", suite=attack, device="cpu")
    survivors = report.verdicts[report.verdicts.status == "survived"]
    assert len(survivors) > 50
    clean = 1
    assert set(survivors.forwards - clean) == {
        3 * (40 + 1 + 5 + 1)
    }  # and of each ascent where it begins and ends
    assert set(survivors.backwards) == {3 * 5}


def test_samples_that_are_behind_end_after_a_round(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    def forwards(pace: float | None) -> Tensor:
        attack = SquareAscent(rounds=4, queries=40, proposals=4, steps=5, pace=pace)
        verdicts = robust.evaluate(net, digits, threat="linf:0.03", suite=attack, device="cpu").verdicts
        return torch.from_numpy(verdicts.forwards[verdicts.status == "survived"].to_numpy(copy=True))

    round_, clean = 40 + 1 + 5 + 1, 1
    assert set(forwards(None).tolist()) == {4 * round_ + clean}
    assert set(forwards(1e-9).tolist()) == {round_ + clean}
    assert set(forwards(0.2).tolist()) <= {part * round_ + clean for part in range(1, 5)}
    assert len(forwards(0.2).unique()) > 1


def _rounds(model: nn.Module, threat: str, *before: Attack, **options: float | None) -> list[int]:
    """How many of four rounds each survivor of the attack had, after others by which its end can be told."""
    attack = SquareAscent(rounds=4, queries=40, proposals=4, steps=5, **options)  # type: ignore[arg-type]
    data = torch.full((3, 1, 8, 8), 0.5), torch.zeros(3, dtype=torch.int64)
    report = robust.evaluate(model, data, threat=threat, suite=[*before, attack], device="cpu")
    attacked = report.verdicts.backwards[report.verdicts.status == "survived"]
    return [(passes - 5 * len(before)) // 5 for passes in attacked]


class Hill(nn.Module):
    """The second class wins nowhere, and is highest at one corner of the ball."""

    def forward(self, x: Tensor) -> Tensor:
        gained = (x - 0.5).flatten(1).mean(1)
        return torch.stack([torch.full_like(gained, 0.5), gained], 1)


_BEFORE = PGD(steps=5, loss="margin")


def test_where_searches_end_on_one_top_one_round_is_enough() -> None:
    smooth = f"linf:{EPS}"
    assert _rounds(Hill(), smooth, _BEFORE) == [4, 4, 4]
    assert _rounds(Hill(), smooth, _BEFORE, scatter=8) == [1, 1, 1]
    assert _rounds(Hill(), smooth, _BEFORE, pace=1) == [4, 4, 4]
    assert _rounds(Hill(), smooth, _BEFORE, pace=1, scatter=8) == [1, 1, 1]
    rugged = f"linf:{EPS / 2}"  # ascents end on one or another of the ripples' tops
    assert max(_rounds(Ripples(), rugged, _BEFORE, scatter=50)) > 1


def test_what_the_first_ascent_gained_counts_in_every_round() -> None:
    """On the hill that is a fifth of the margin at the sample, and what is left four times as much."""
    assert _rounds(Hill(), f"linf:{EPS}", scatter=8) == [4, 4, 4]
    assert _rounds(Hill(), f"linf:{EPS}", scatter=3) == [1, 1, 1]
    assert _rounds(Hill(), f"linf:{EPS}", scatter=8, pace=1e-9) == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rounds": 0}, "rounds"),
        ({"queries": 15}, "queries"),
        ({"pace": -0.1}, "pace"),
        ({"scatter": 0}, "scatter"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, float], named: str) -> None:
    with pytest.raises(InputError, match=f"square-ascent: expected .*{named}"):
        SquareAscent(**options)  # type: ignore[arg-type]
