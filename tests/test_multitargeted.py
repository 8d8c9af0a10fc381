"""MultiTargeted: which classes it runs against, and that coming in from outside pays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust
from robust.attacks import FAB, PGD, Attack, MultiTargeted, Square
from robust.errors import InputError
from robust.ledger import Prior
from robust.oracle import Oracle, State
from robust.sources import Samples
from robust.suites import SUITES, Stage
from robust.target import Target
from robust.threat import Threat

Digits = tuple[Tensor, Tensor]


def correct(net: nn.Module, digits: Digits) -> Digits:
    x, y = digits
    right = net(x).argmax(1) == y
    return x[right], y[right]


@pytest.mark.parametrize("bend", [1.0, 0.5])
def test_only_classes_that_came_near_are_run_against(bend: float, net: nn.Module, digits: Digits) -> None:
    x, y = correct(net, digits)
    with torch.no_grad():
        logits = net(x)
    gaps = (logits - logits.gather(1, y[:, None])).scatter(1, y[:, None], -torch.inf)
    clean = gaps.amax(1)
    near = (gaps >= 1.5 * clean[:, None]).sum(1)
    attack = MultiTargeted(steps=3, odi_steps=1, near=1.5 ** (1 / bend))
    with Target(net, device="cpu") as target:
        threat = Threat("linf", "0.000001")  # so small that no gap moves
        oracle = Oracle(target, x, y, torch.arange(len(x)), threat, prior=Prior(gaps, clean, bend=bend))
        attack(oracle)
    live = ~oracle.ledger.broken
    assert near.unique().numel() > 2
    assert torch.equal(oracle.ledger.forwards[live], 5 * near[live])
    assert torch.equal(oracle.ledger.backwards[live], 4 * near[live])


def test_the_classes_that_a_search_before_went_towards_are_left_out(net: nn.Module, digits: Digits) -> None:
    x, y = correct(net, digits)
    with torch.no_grad():
        logits = net(x)
    gaps = (logits - logits.gather(1, y[:, None])).scatter(1, y[:, None], -torch.inf)
    aimed: list[Tensor] = []

    class Watched(MultiTargeted):
        def _start(self, oracle: Oracle, s: State, rank: int, restart: int) -> None:
            aimed.append(s.aim.clone())
            super()._start(oracle, s, rank, restart)

    attack = Watched(steps=2, odi_steps=1, targets=5, skip=3)
    with Target(net, device="cpu") as target:
        threat = Threat("linf", "0.000001")  # so small that no gap moves
        attack(Oracle(target, x, y, torch.arange(len(x)), threat, prior=Prior(gaps, gaps.amax(1))))
    assert torch.equal(torch.cat(aimed, 1), gaps.topk(5, 1).indices[:, 3:])
    with pytest.raises(InputError, match="skip: expected 0 or more, below targets"):
        MultiTargeted(targets=3, skip=3)


@pytest.mark.parametrize(
    "attack", [MultiTargeted(steps=2, odi_steps=1, skip=2), FAB(steps=2, targets=3, skip=2)], ids=str
)
@pytest.mark.parametrize(("classes", "tried"), [(3, 0), (4, 20)])
def test_where_all_of_the_classes_are_left_out_nobody_is_tried(
    attack: Attack, classes: int, tried: int
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    x = torch.rand(20, 1, 4, 4)
    options = {"threat": "linf:0.001", "suite": [attack], "device": "cpu"}
    entry = robust.evaluate(net, (x, net(x).argmax(1)), **options).attacks[0]
    assert (entry["attacked"], bool(entry["forwards"])) == (tried, bool(tried))


def test_a_second_class_is_for_samples_that_came_near(net: nn.Module, digits: Digits) -> None:
    x, y = correct(net, digits)
    with torch.no_grad():
        logits = net(x)
    gaps = (logits - logits.gather(1, y[:, None])).scatter(1, y[:, None], -torch.inf)
    came_near = torch.arange(len(x)) % 3 == 0
    clean = gaps.amax(1) * torch.where(came_near, 2.0, 1.0)  # as if half the way was gone
    attack = MultiTargeted(steps=3, odi_steps=1, targets=3, worth=0.7)
    with Target(net, device="cpu") as target:
        threat = Threat("linf", "0.000001")  # so small that no gap moves
        oracle = Oracle(target, x, y, torch.arange(len(x)), threat, prior=Prior(gaps, clean))
        attack(oracle)
    live = ~oracle.ledger.broken
    classes = torch.where(came_near, 3, 1)
    assert len(set(classes[live].tolist())) == 2
    assert torch.equal(oracle.ledger.forwards[live], 5 * classes[live])


def test_points_outside_the_threat_do_not_count_as_near(net: nn.Module, digits: Digits) -> None:
    x, y = correct(net, digits)
    attack = MultiTargeted(steps=6, targets=2, odi_steps=1, radii=(30, 20, 1))
    assert not attack.stays_inside
    assert MultiTargeted().stays_inside
    with Target(net, device="cpu") as target:
        oracle = Oracle(
            target, x, y, torch.arange(len(x)), Threat("l2", "0.01"), stays_inside=attack.stays_inside
        )
        attack(oracle)
    ledger = oracle.ledger
    assert (ledger.margin[~ledger.broken] < 0).all()
    assert (ledger.distance[~ledger.broken] > 0.01).all()
    assert ledger.distance.isfinite().sum() > 5  # it was fooled outside


def test_the_order_of_classes_is_that_of_the_gaps(net: nn.Module, digits: Digits) -> None:
    x, y = correct(net, digits)
    with torch.no_grad():
        logits = net(x)
    aims: list[Tensor] = []

    class Watching(Oracle):
        def slope(self, x_adv, weights):  # type: ignore[no-untyped-def]
            aims.append(weights.argmax(1, keepdim=True))
            return super().slope(x_adv, weights)

    with Target(net, device="cpu") as target:
        oracle = Watching(target, x, y, torch.arange(len(x)), Threat("linf", "0.000001"))
        MultiTargeted(steps=1, odi_steps=0, targets=3)(oracle)
    order = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
    assert torch.equal(torch.cat(aims, 1), order[:, :3])


@pytest.mark.parametrize("radii", [(), (2.0,), (3.0, -1.0, 1.0)])
def test_bad_radii_are_refused(radii: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="radii"):
        MultiTargeted(radii=radii)


def test_stages_choose_by_what_is_known_of_each_sample_alone(net: nn.Module, digits: Digits) -> None:
    x, y = digits
    whole = Samples(x, y, torch.arange(64))
    stages = [
        Stage(PGD(steps=5, loss="margin")),
        Stage(Square(queries=20), near=0.5, share=0.2),
        Stage(Square(queries=60, restarts=2), follows=True),
    ]
    SUITES.register("staged-test")(lambda _: stages)
    try:
        options = {"threat": "linf:0.03", "suite": "staged-test", "device": "cpu"}
        report = robust.evaluate(net, whole, **options)
        seen = [entry["attacked"] for entry in report.attacks]
        assert seen[0] > seen[1] > 0
        assert seen[1] >= seen[2]
        costs = report.verdicts.set_index("sample_id")[["status", "forwards", "backwards"]]
        for shard in torch.arange(64).split(23):
            part = robust.evaluate(net, whole.take(shard), **options).verdicts.set_index("sample_id")
            assert (part[costs.columns] == costs.loc[part.index]).all(axis=None)
    finally:
        SUITES._items.pop("staged-test", None)
