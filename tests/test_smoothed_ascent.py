"""Ascent by gradients averaged over noise that narrows: what plain gradients do not find, and what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import robust
from robust.attacks import APGD, PGD, Attack, SmoothedAscent
from robust.errors import InputError

EPS = 0.1


class Ripples(nn.Module):
    """The second class gains from a dark left and a bright right half, by a straight slope under a fine and steep ripple.

    At the sample and at the ball's ends the ripple falls where the slope rises, and its tops hold who sees no farther. The
    class wins where most values have gone by most of eps.
    """

    def forward(self, x: Tensor) -> Tensor:
        half = torch.ones_like(x)
        half[..., : x.shape[-1] // 2] = -1
        along = half * (x - 0.5) / EPS
        gained = (along - 0.3 * torch.sin(8 * math.pi * along)).flatten(1).mean(1)
        return torch.stack([torch.full_like(gained, 0.8), gained], 1)


def _standing(attack: Attack, threat: str) -> int:
    data = torch.full((6, 1, 8, 8), 0.5), torch.zeros(6, dtype=torch.int64)
    report = robust.evaluate(Ripples(), data, threat=threat, suite=attack, device="cpu")
    return report.statuses["survived"]


def test_wide_noise_shows_the_slope_under_a_ripple() -> None:
    linf, l2 = f"linf:{EPS}", f"l2:{8 * EPS}"
    for threat in (linf, l2):
        assert _standing(PGD(steps=100, restarts=5, loss="margin"), threat) == 6
        assert _standing(SmoothedAscent(), threat) == 0
    assert _standing(APGD(), linf) == 6
    assert _standing(SmoothedAscent(width=0.01), linf) == 6


def test_a_step_costs_two_passes_a_copy_and_one_where_it_ends(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    attack = SmoothedAscent(steps=5, copies=3, restarts=2)
    report = robust.evaluate(net, digits, threat="linf:0.001", suite=attack, device="cpu")
    survivors = report.verdicts[report.verdicts.status == "survived"]
    assert len(survivors) > 50
    clean = 1
    assert set(survivors.forwards - clean) == {2 * 5 * (3 + 1)}
    assert set(survivors.backwards) == {2 * 5 * 3}


def _steps(threat: str, **options: float) -> list[int]:
    """How many of ten steps on the ripples each survivor had."""
    attack = SmoothedAscent(steps=10, copies=4, **options)  # type: ignore[arg-type]
    data = torch.full((3, 1, 8, 8), 0.5), torch.zeros(3, dtype=torch.int64)
    report = robust.evaluate(Ripples(), data, threat=threat, suite=attack, device="cpu")
    attacked = report.verdicts.backwards[report.verdicts.status == "survived"]
    return [passes // 4 for passes in attacked]


def test_where_noise_undoes_the_label_one_step_is_enough() -> None:
    """On the ripples noise leaves the margin as it is, on average."""
    small = f"linf:{EPS / 10}"
    assert _steps(small) == [10, 10, 10]
    assert _steps(small, stands=0.5) == [10, 10, 10]
    assert _steps(small, stands=1.5) == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"copies": 0}, "copies"),
        ({"restarts": 0}, "restarts"),
        ({"width": 0.0}, "width"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": -0.1}, "momentum"),
        ({"stands": 0.0}, "stands"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, float], named: str) -> None:
    with pytest.raises(InputError, match=f"smoothed-ascent: .*{named}"):
        SmoothedAscent(**options)  # type: ignore[arg-type]


def test_in_l2_the_standard_suite_climbs_under_noise_what_all_before_left() -> None:
    noise = 0.01 * torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = 0.5 + noise, torch.zeros(12, dtype=torch.int64)
    report = robust.evaluate(Ripples(), data, threat="l2:0.72", device="cpu")
    climbed, nearest = (entry for entry in report.attacks if entry["name"] == "smoothed-ascent")
    assert climbed["broke"] > 0
    assert (climbed["selection"]["near"], nearest["selection"]["near"]) == (0.5, 0.1)
