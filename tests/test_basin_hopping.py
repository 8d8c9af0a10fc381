"""Basin hopping: a hop begins at the best point, only near samples hop, and hops break what fresh starts do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robust.attacks import BasinHopping, MultiTargeted
from robust.attacks.base import Attack
from robust.errors import InputError
from robust.ledger import Prior
from robust.oracle import Oracle, State
from robust.target import Target
from robust.threat import Threat

Digits = tuple[Tensor, Tensor]
# An ascent of one step, and hops of one step from where it ended.
ONE_STEP: dict[str, Any] = {
    "steps": 1, "targets": 1, "odi_steps": 0, "radii": (1,), "hop_steps": 1, "hop_odi_steps": 0, "push": 0, "near": None
}  # fmt: skip


def searched(attack: Attack, net: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int = 0) -> Oracle:
    with Target(net, device="cpu") as target:
        oracle = Oracle(
            target, x, y, torch.arange(len(x)), threat, seed=seed, stays_inside=attack.stays_inside
        )
        attack(oracle)
    return oracle


def right_ones(net: nn.Module, digits: Digits) -> tuple[Tensor, Tensor, Tensor]:
    """Correctly classified samples, their labels, and each class's logit minus the label's, (N, C)."""
    x, y = digits
    with torch.no_grad():
        logits = net(x)
    right = logits.argmax(1) == y
    x, y, logits = x[right], y[right], logits[right]
    return x, y, (logits - logits.gather(1, y[:, None])).scatter(1, y[:, None], -torch.inf)


@pytest.mark.parametrize("bend", [1.0, 0.5])
def test_passes_follow_the_margin(bend: float, net: nn.Module, digits: Digits) -> None:
    """Far samples get the first ascent alone, middling ones the second too, near ones hop as well."""
    x, y, gaps = right_ones(net, digits)
    third = len(x) // 3  # the margin at x stays where it is; what it is a share of is made up
    share = torch.tensor([0.9] * third + [0.4] * third + [0.1] * (len(x) - 2 * third))
    attack = BasinHopping(
        steps=4,
        targets=2,
        odi_steps=1,
        radii=(1,),
        worth=0.5 ** (1 / bend),
        hops=3,
        hop_steps=2,
        hop_odi_steps=1,
        near=0.2 ** (1 / bend),
        hope=None,
    )
    with Target(net, device="cpu") as target:
        threat = Threat("l2", "0.000001")  # so small that no gap moves
        oracle = Oracle(
            target, x, y, torch.arange(len(x)), threat, prior=Prior(gaps, gaps.amax(1) / share, bend=bend)
        )
        attack(oracle)
    ascent, hop = 2 * (1 + 4) + 1, 2 * (1 + 2) + 1
    spent = oracle.ledger.forwards + oracle.ledger.backwards
    expected = torch.where(share == 0.9, ascent, torch.where(share == 0.4, 2 * ascent, 2 * ascent + 3 * hop))
    assert torch.equal(spent, expected)


def test_what_the_ascent_brought_nearer_by_much_hops_though_it_is_far(net: nn.Module, digits: Digits) -> None:
    """No gap moves; how far off earlier attacks left each sample is made up."""
    x, y, gaps = right_ones(net, digits)
    clean = gaps.amax(1)
    gain = torch.tensor([0.15, 0.05]).repeat(len(x))[: len(x)]  # of the clean margin
    attack = BasinHopping(**ONE_STEP | {"near": 0.2}, hops=1, gained=0.1)
    with Target(net, device="cpu") as target:
        prior = Prior(gaps + (gain * clean)[:, None], clean)
        oracle = Oracle(target, x, y, torch.arange(len(x)), Threat("l2", "0.000000001"), prior=prior)
        attack(oracle)
    assert torch.equal(oracle.ledger.backwards, torch.where(gain > 0.1, 1 + 1, 1))


class Ridge(nn.Module):
    """Two classes; the second leads on a small disc alone, which is reached from a local maximum beside it.

    Towers of equal width stand on a row, each higher than the one before it: ascent ends on whichever it begins near,
    and a push leads from one to the next.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        at = x.flatten(1)
        height = torch.full_like(at[:, 0], -1.0)
        for i in range(7):
            centre = at.new_tensor([0.5 + 0.12 * i, 0.5])
            bump = torch.exp(-((at - centre) ** 2).sum(1) / 0.002)
            height = height + (0.3 + 0.12 * i) * bump
        return self.scale * torch.stack([torch.zeros_like(height), height], 1)


def test_hops_climb_from_tower_to_tower() -> None:
    x = torch.full((256, 2), 0.5)  # so many that it does not hang on the one lucky hop of the whole batch
    y = torch.zeros(256, dtype=torch.int64)
    threat = Threat("l2", "0.75", (0.0, 2.0))
    alone = {"steps": 10, "odi_steps": 0, "radii": (1,), "near": None, "hope": None}
    still = searched(BasinHopping(**alone, hops=0), Ridge(), x, y, threat)
    hopped = searched(BasinHopping(**alone, hops=30, push=0.25), Ridge(), x, y, threat)
    fresh = searched(
        MultiTargeted(steps=12, odi_steps=2, restarts=31, random_start=True), Ridge(), x, y, threat
    )
    assert (hopped.ledger.margin >= still.ledger.margin).all()  # the best point is never given up
    assert hopped.ledger.broken.sum() > still.ledger.broken.sum()
    assert hopped.ledger.broken.sum() > fresh.ledger.broken.sum()


def test_a_sample_that_gains_nothing_stops_after_two_hops(net: nn.Module, digits: Digits) -> None:
    x, y = digits
    attack = BasinHopping(**ONE_STEP, hops=6)
    oracle = searched(
        attack, net, x, y, Threat("l2", "0.000000001")
    )  # no step moves a pixel: nothing is gained
    live = ~oracle.ledger.broken
    assert live.sum() > 20
    assert (oracle.ledger.backwards[live] == 1 + 2).all()


def test_a_sample_within_a_hundredth_is_given_six_more_hops(net: nn.Module, digits: Digits) -> None:
    x, y, gaps = right_ones(net, digits)
    share = torch.tensor([0.5] * 20 + [0.009] * (len(x) - 20))  # of the clean margin, made up
    attack = BasinHopping(**ONE_STEP, hops=12)
    with Target(net, device="cpu") as target:
        threat = Threat("l2", "0.000000001")  # nothing is gained
        oracle = Oracle(target, x, y, torch.arange(len(x)), threat, prior=Prior(gaps, gaps.amax(1) / share))
        attack(oracle)
    assert torch.equal(oracle.ledger.backwards, torch.where(share == 0.5, 1 + 2, 1 + 2 + 6))


class Hill(nn.Module):
    """A round hill whose very top alone is another class."""

    def forward(self, x: Tensor) -> Tensor:
        gap = 0.001 - ((x.flatten(1) - 0.53) ** 2).sum(1)
        return torch.stack([torch.zeros_like(gap), gap], 1)


def test_a_last_ascent_reaches_the_top_that_hops_end_below() -> None:
    x, y, threat = torch.full((16, 20), 0.4), torch.zeros(16, dtype=torch.int64), Threat("linf", "0.2")
    short = {"steps": 6, "targets": 1, "odi_steps": 0, "radii": (1,), "hops": 3, "hop_steps": 6, "near": None}
    assert not bool(searched(BasinHopping(**short), Hill(), x, y, threat).ledger.broken.any())
    assert bool(searched(BasinHopping(**short, finish=60), Hill(), x, y, threat).ledger.broken.all())


def test_the_last_ascent_is_for_what_came_within_three_hundredths(net: nn.Module, digits: Digits) -> None:
    x, y, gaps = right_ones(net, digits)
    share = torch.tensor([0.5, 0.031] * 10 + [0.029] * (len(x) - 20))  # of the clean margin, made up
    attack = BasinHopping(**ONE_STEP, hops=0, finish=9)
    with Target(net, device="cpu") as target:
        threat = Threat("l2", "0.000000001")  # nothing is gained
        oracle = Oracle(target, x, y, torch.arange(len(x)), threat, prior=Prior(gaps, gaps.amax(1) / share))
        attack(oracle)
    assert torch.equal(oracle.ledger.backwards, torch.where(share > 0.03, 1, 1 + 9))


def test_chains_of_a_sample_stop_together(
    net: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three chains one has hope where the margin is small, and none elsewhere."""
    x, y, gaps = right_ones(net, digits)
    margin = gaps.amax(1)
    small = margin > margin.median()

    def hopeless(_: BasinHopping, s: State) -> Tensor:
        return (torch.arange(len(s.best)) % 3 != 1) | (s.clean <= margin.median())

    monkeypatch.setattr(BasinHopping, "_hopeless", hopeless)
    with Target(net, device="cpu") as target:
        threat = Threat("l2", "0.000000001")
        oracle = Oracle(target, x, y, torch.arange(len(x)), threat, prior=Prior(gaps, margin))
        BasinHopping(**ONE_STEP, hops=6, chains=3)(oracle)
    assert torch.equal(oracle.ledger.backwards, 3 * torch.where(small, 1 + 6, 1 + 2))


def test_who_rests_hops_though_all_others_break_in_the_ascent(net: nn.Module, digits: Digits) -> None:
    """One row rests while the second class is tried, and the others fall to it: it goes on as if alone."""
    x, y = digits
    with torch.no_grad():
        right = net(x).argmax(1) == y
    x, y = x[right], y[right]
    threat = Threat("linf", "0.1")
    attack = BasinHopping(
        steps=3,
        targets=2,
        odi_steps=0,
        radii=(1,),
        worth=0.2,
        hops=2,
        hop_steps=2,
        hop_odi_steps=0,
        near=None,
    )

    def spent(rows: Tensor) -> Tensor:
        with Target(net, device="cpu") as target:
            oracle = Oracle(target, x[rows], y[rows], rows, threat)
            attack(oracle)
        return oracle.ledger.forwards + oracle.ledger.backwards

    alone = torch.cat([spent(torch.tensor([i])) for i in range(len(x))])
    first, ascent, hops = 1, 2 * 3 + 1, 2 * (2 * 2 + 1)
    rests = (alone == first + ascent + hops).nonzero().squeeze(1)
    breaks = ((alone > first + ascent + 1) & (alone < first + 2 * ascent)).nonzero().squeeze(1)
    assert len(rests)
    assert len(breaks)
    for i in rests[:4].tolist():
        for j in breaks[:4].tolist():
            pair = torch.tensor([i, j])
            assert torch.equal(spent(pair), alone[pair])


class Cliff(nn.Module):
    """Above .5 it is another class; the slope leads there from beyond .3 alone, and the other way from below."""

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1)[:, 0]
        gap = torch.where(value > 0.3, value - 0.5, -value - 1)
        return torch.stack([torch.zeros_like(gap), gap], 1)


def test_inward_ascents_begin_at_the_break_that_is_known() -> None:
    x, y, threat = torch.full((2, 1, 1, 1), 0.1), torch.zeros(2, dtype=torch.int64), Threat("l2", "0.45")
    gaps = torch.tensor([[-torch.inf, -1.1]] * 2)
    near = torch.tensor([0.7, 0.1]).view(2, 1, 1, 1)  # of the second sample none is known: its own point
    attack = BasinHopping(**ONE_STEP | {"steps": 5, "hops": 0, "inward": True})
    assert attack.begins_at_break
    with Target(Cliff(), device="cpu") as target:
        oracle = Oracle(target, x, y, torch.arange(2), threat, prior=Prior(gaps, gaps[:, 1], near))
        attack(oracle)
    assert oracle.ledger.broken.tolist() == [True, False]
    assert int(oracle.ledger.forwards[0]) == 1  # .55, where the known break enters the ball
    assert not bool(searched(BasinHopping(**ONE_STEP), Cliff(), x, y, threat).ledger.broken.any())


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"hops": -1},
        {"hope": 0},
        {"gained": 0},
        {"momentum": 2},
        {"push": -1},
        {"radii": (2, 3)},
        {"hop_steps": 0},
        {"finish": -1},
    ],
)
def test_parameters_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="basin-hopping"):
        BasinHopping(**wrong)  # type: ignore[arg-type]
