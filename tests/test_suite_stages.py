"""Stages: which samples they choose, and where what begins at a break begins."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from toy import Corner

import robust
from robust.attacks import FAB, FGSM, PGD, Attack
from robust.oracle import Access, Oracle
from robust.run import Run, Settings
from robust.sources import as_samples, spool
from robust.suites import Stage
from robust.target import Target
from robust.threat import Threat


def looked_at(net: nn.Module, digits: tuple[Tensor, Tensor]) -> Run:
    """A run whose samples are classified, and attacked with nothing yet."""
    run = Run(
        Target(net, device="cpu"), as_samples(digits, bounds=(0.0, 1.0)), Threat("l2", "0.1"), Settings()
    )
    with run.target:
        run.look()
    return run


def chosen_of(run: Run, **choice: Any) -> list[int]:
    """Positions of the samples that a stage with these conditions is to see."""
    found: list[int] = run._chosen(Stage(FGSM(), **choice), cascade=True).nonzero().squeeze(1).tolist()
    return found


def test_stages_choose_by_how_near_a_break_was_seen(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    run = looked_at(net, digits)
    run.verdicts.reach[:20], run.verdicts.reach[20:40] = 0.105, 0.5  # of the others no break was seen
    right = run.verdicts.prediction == run.samples.y

    chosen = partial(chosen_of, run)

    def standing(*ranges: range) -> list[int]:
        return [i for part in ranges for i in part if right[i]]

    assert chosen() == standing(range(64))
    assert chosen(within=1.07) == standing(range(20))
    assert chosen(beyond=12) == standing(range(40, 64))
    assert chosen(within=1.07, beyond=12) == standing(range(20), range(40, 64))
    assert chosen(beyond=4) == standing(range(20, 64))
    assert chosen(ahead=0.1) == []
    run.verdicts.gaps[20:40] *= 0.5  # as if at 2 eps; none was seen within 5
    assert chosen(ahead=0.1) == standing(range(20, 40))
    run.verdicts.spent[:5] = 46
    # As if all other classes were as far.
    run.verdicts.clean_gaps[40:50] = run.verdicts.clean_margin[40:50, None]
    run.verdicts.clean_gaps[range(40, 50), run.samples.y[40:50]] = -torch.inf
    run.verdicts.gaps[45:50] *= 0.5
    assert chosen(level=(0.01, 0.8)) == standing(range(40, 45))
    assert chosen(level=(0.01, 0)) == standing(range(40, 50))
    assert chosen(level=(torch.inf, 0)) == standing(range(64))
    assert chosen(longer=(31, 9, 9)) == standing(range(5))
    assert chosen(longer=(31, 0.1, 1.07)) == standing(range(5))  # broken within so many eps
    assert chosen(longer=(31, 0.1, 0.9)) == []  # neither that, nor brought within that share
    run.attack(
        Stage(FGSM()), cascade=True
    )  # no minimum-norm search: it says nothing of who was settled early
    assert set(chosen(longer=(31, 9, 9))) == set(standing(range(5))) & set(chosen())
    run.attack(Stage(FAB(steps=1, targets=1)), cascade=True)  # the longest search counts, not the latest
    assert set(chosen(longer=(31, 9, 9))) == set(standing(range(5))) & set(chosen())


def test_stages_choose_by_how_near_the_farthest_class_came(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    run = looked_at(net, digits)
    v = run.verdicts
    right = (v.prediction == run.samples.y).nonzero().squeeze(1).tolist()
    chosen = partial(chosen_of, run)
    lowest = v.gaps.masked_fill(v.gaps == -torch.inf, torch.inf).argmin(1)
    v.gaps[:10] *= 0.1
    v.gaps[torch.arange(5), lowest[:5]] *= 9  # one class alone stays where it was
    assert chosen(shrunk=0.15) == [i for i in right if 5 <= i < 10]
    v.gaps[6, lowest[6]] = v.clean_gaps[6, lowest[6]] = -1e9  # ruled out: it tells nothing
    assert chosen(shrunk=0.2) == [i for i in right if 5 <= i < 10]
    v.gaps, v.clean_gaps = v.gaps[:, :2], v.clean_gaps[:, :2]
    assert chosen(shrunk=0.99) == []  # there the farthest class is the nearest


def test_stages_choose_by_how_much_gradients_turn(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    run = looked_at(net, digits)
    v = run.verdicts
    right = (v.prediction == run.samples.y).nonzero().squeeze(1).tolist()
    chosen = partial(chosen_of, run)
    assert chosen(turning=1.0) == []  # nothing ascended yet
    v.agreement[:10] = torch.linspace(-0.05, 0.85, 10)
    assert chosen(turning=0.4) == [i for i in right if i < 5]
    assert chosen(turning=0.4, near=0.0) == []  # both must be
    run.attack(Stage(PGD(steps=7, random_start=False, loss="margin")), cascade=True)
    assert chosen(turning=0.4) == [i for i in chosen() if i < 5]  # the first ascent says it
    assert set(chosen(turning=1.01)) == set(chosen())


def test_stages_choose_by_where_gradients_mislead(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """A break at twice eps says half of the margin; searches inside that are left with more of it are behind."""
    run = looked_at(net, digits)
    run.verdicts.reach[:10] = 0.2
    run.verdicts.gaps[:5] *= 0.55
    right = (run.verdicts.prediction == run.samples.y).nonzero().squeeze(1).tolist()

    chosen = partial(chosen_of, run)

    assert chosen(behind=0.3) == [i for i in right if 5 <= i < 10]
    assert chosen(behind=0.01) == [i for i in right if i < 10]
    assert chosen(within=3, unless_behind=0.3) == [i for i in right if i < 5]
    assert chosen(unless_behind=0.3) == [i for i in right if not 5 <= i < 10]
    assert chosen(unless_far=0.7) == [i for i in right if i < 5]
    assert chosen(behind=0.01, unless_far=0.7) == [i for i in right if i < 5]  # both must be
    assert chosen(flat=0.95) == [i for i in right if i >= 5]
    assert chosen(flat=0.5, near=0.6) == right
    assert chosen(shrunk=0.5) == []
    run.attack(Stage(FAB(steps=3, targets=1)), cascade=True)
    assert set(chosen(closer=True)) == {i for i in chosen() if run.verdicts.reach[i] < (0.2 if i < 10 else 9)}
    run.attack(Stage(FGSM(), near=-1.0), cascade=True)  # shown to none: nothing came closer
    assert chosen(closer=True) == []


class _Rounded(nn.Module):
    """Moves in steps wider than the threat; what it gives is rounded otherwise in every size of batch."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net((4 * x).round() / 4)
        return out * (1 - 1e-6 * (len(x) % 7))


def test_what_is_rounded_otherwise_has_not_come_nearer(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    run = looked_at(_Rounded(net), ((4 * digits[0]).round() / 4, digits[1]))
    before = run.verdicts.margin
    run.attack(Stage(FGSM()), cascade=True)
    assert bool((run.verdicts.margin > before).any())
    assert chosen_of(run, follows=True) == []


@dataclass(frozen=True)
class _Asks(Attack):
    """Asks about one point, and notes where it was told to begin."""

    name: ClassVar[str] = "asks"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    access: ClassVar[Access] = "score"
    paper: ClassVar[str] = "-"
    stays_inside: ClassVar[bool] = False  # type: ignore[misc]
    began: ClassVar[list[list[float]]] = []
    at: tuple[float, float] = (0, 0)
    begins_at_break: bool = False  # type: ignore[assignment]

    def run(self, oracle: Oracle) -> Tensor:
        self.began.extend(oracle.start.flatten(1).tolist())
        oracle.logits(torch.tensor(self.at).view(1, 1, 1, 2).expand_as(oracle.x).clone())
        return oracle.x


@pytest.mark.parametrize("memory", [0, 1 << 24])
@pytest.mark.parametrize("farther_first", [True, False])
@pytest.mark.parametrize("cascade", [True, False])
def test_a_search_begins_at_the_nearest_break_that_earlier_stages_saw(
    memory: int, farther_first: bool, cascade: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY", memory)
    _Asks.began.clear()
    near, far = (
        _Asks((0.65, 0.25)),
        _Asks((0.25, 0.75)),
    )  # .4 and .5 from the first sample, over .6 from the other
    suite = [*([far, near] if farther_first else [near, far]), _Asks(begins_at_break=True)]
    x = torch.tensor([[0.25, 0.25], [0.0, 0.0]]).view(2, 1, 1, 2)
    run = Run(
        Target(Corner(), device="cpu"), as_samples((x, torch.zeros(2, dtype=torch.int64)), bounds=(0.0, 1.0)),
        Threat("l2", "0.2"), Settings(),
        stages=[Stage(attack, within=2.6 if attack.begins_at_break else None) for attack in suite],
    )  # fmt: skip
    with run.target:
        run.look()
        for attack in suite:
            run.attack(Stage(attack), cascade=cascade)
    first = [0.45, 0.25] if cascade else [0.25, 0.25]  # alone, an attack starts from nothing
    found = {round(sum(point), 4): point for point in _Asks.began[-2:]}
    assert found[round(sum(first), 4)] == pytest.approx(first)
    assert found[0.0] == [0.0, 0.0]  # too far to be kept
    assert sorted(_Asks.began[:4]) == [[0.0, 0.0]] * 2 + [[0.25, 0.25]] * 2


def test_what_begins_at_breaks_depends_on_neither_batch_order_nor_where_they_are_kept(
    net: nn.Module, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = as_samples(digits, bounds=(0.0, 1.0)).limit(40)

    def statuses(**options: Any) -> list[str]:
        shown = options.pop("of", samples)
        report = robust.evaluate(net, shown, threat="l2:0.5", device="cpu", precision="float32", **options)
        begun = [entry["attacked"] for entry in report.attacks if entry["parameters"].get("inward")]
        assert begun[0] > 0
        return report.verdicts.sort_values("sample_id").status.tolist()  # type: ignore[no-any-return]

    reference = statuses()
    assert statuses(batch_size=3) == reference
    assert statuses(of=samples.take(torch.arange(39, -1, -1))) == reference
    monkeypatch.setattr(spool, "IN_MEMORY", 0)
    assert statuses() == reference
