"""How margins fall towards boundaries, and that shares of bent ones are taken for what they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from wrapped import Wrap, seen_first

import robust
from robust.diagnose import boundary, preflight
from robust.ledger import Prior
from robust.oracle import Oracle
from robust.selection import Known
from robust.target import Target
from robust.threat import Threat


def to_the_power(of: float) -> Callable[[Tensor], Tensor]:
    """Logits whose margins are the model's to this power, and its predictions the same."""

    def bend(logits: Tensor) -> Tensor:
        first, second = logits.topk(2, 1).values.split(1, 1)
        return logits * (first - second + 1e-6) ** (of - 1)

    return bend


class Halves(nn.Module):
    """Two classes by the mean, whose margin is straight."""

    def forward(self, x: Tensor) -> Tensor:
        lead = x.flatten(1).mean(1) - 0.5
        return torch.stack([-lead, lead], 1)


def looked_at(model: nn.Module, x: Tensor, y: Tensor) -> boundary.Boundary:
    with Target(model.eval(), device="cpu") as target:
        return boundary.look(target, x, y)


@pytest.mark.parametrize("power", [1.0, 0.5, 0.3])
def test_the_power_of_a_straight_margin_is_measured(power: float) -> None:
    levels = torch.linspace(0.1, 0.9, 12)
    x, y = levels[:, None].expand(12, 4).clone(), (levels > 0.5).long()
    found = looked_at(Wrap(Halves(), after=to_the_power(power)), x, y)
    assert found.bend == pytest.approx(power, abs=0.05)
    assert found.jump <= boundary.JUMP


def test_of_sorted_data_negatives_show_the_boundary() -> None:
    x, y = torch.linspace(0.1, 0.3, 12)[:, None].expand(12, 4).clone(), torch.zeros(12, dtype=torch.int64)
    assert looked_at(Halves(), x, y).bend == pytest.approx(1, abs=0.05)


def test_where_nothing_is_taken_for_another_class_nothing_is_told() -> None:
    x, y = torch.full((12, 4), 0.5), torch.zeros(12, dtype=torch.int64)
    found = looked_at(Halves(), x, y)
    assert math.isnan(found.bend)
    assert math.isnan(found.jump)


def seen_bend(model: nn.Module, digits: tuple[Tensor, Tensor]) -> float:
    with Target(model.eval(), device="cpu") as target:
        return preflight(target, *digits, Threat.parse("linf:0.1")).bend


def test_only_what_is_bent_is_straightened(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    bent = Wrap(net, after=to_the_power(0.4))
    assert seen_bend(net, digits) == 1
    assert seen_bend(bent, digits) == pytest.approx(0.4, abs=0.1)
    with mock.patch.object(boundary, "LEAST", 0.55):
        assert seen_bend(bent, digits) == 0.55


@pytest.mark.parametrize(("power", "told"), [(0.5, False), (0.3, True)])
def test_what_bends_most_is_told(
    power: float, told: bool, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    bent = Wrap(net, after=to_the_power(power))
    assert ("flat-margins" in seen_first(bent, digits)) == told


def known(left: Tensor, bend: float) -> Known:
    no = torch.zeros(len(left), dtype=torch.bool)
    zero, clean = torch.zeros(len(left)), torch.full((len(left),), -3.0)
    return Known(left * clean, clean, zero, zero, zero, zero, zero, no, no, bend)


@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=8), st.floats(0.25, 1), st.floats(0.01, 1))
def test_straightened_shares_are_those_of_the_way(ways: list[float], bend: float, near: float) -> None:
    way = torch.tensor(ways, dtype=torch.float64)
    seen = known(way**bend, bend)
    assert torch.allclose(seen.share, way, rtol=1e-5)
    clear = (way - near).abs() > 1e-5
    assert torch.equal(seen.near(near)[clear], (way <= near)[clear])


def test_what_is_broken_has_no_share_left() -> None:
    assert (known(torch.tensor([-0.5, 0.0]), 0.5).share <= 0).all()


def test_attacks_are_told_what_is_left_at_a_part_of_the_way(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:2], digits[1][:2]
    gaps = torch.full((2, 10), -1.0)
    with Target(net, device="cpu") as target:
        plain, bent = (
            Oracle(target, x, y, torch.arange(2), Threat.parse("linf:0.1"), prior=Prior(gaps, gaps[:, 0], bend=bend))
            for bend in (1.0, 0.5)
        )  # fmt: skip
        with bent.multiplied(2) as many:
            assert many.left_at(0.09) == pytest.approx(0.3)
    assert plain.left_at(0.3) == 0.3


def test_bent_margins_keep_the_long_searches(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """The same boundary, so the same samples are near it, though their margins say otherwise."""

    def searched(model: nn.Module) -> int:
        report = robust.evaluate(model, digits, threat="linf:0.1", device="cpu")
        return sum(attack["attacked"] for attack in report.attacks if attack["name"] == "square-ascent")

    bent = Wrap(net, after=to_the_power(0.3)).eval()
    with mock.patch.object(boundary, "BENT", 0.0):
        misled = searched(bent)
    assert misled < searched(bent)
    assert searched(net) * 2 / 3 <= searched(bent)
