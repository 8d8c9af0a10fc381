"""Score and decision attacks: known answers, budgets, nowhere to begin, interruption."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Linear
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import robust
from robust.attacks import (
    ATTACKS,
    SPSA,
    Attack,
    HopSkipJump,
    Noise,
    RayS,
    SparseRS,
    Square,
    Transfer,
    make_attack,
    sparse_rs,
    square,
)
from robust.errors import InputError
from robust.evaluation import Interrupted
from robust.ledger import Ledger, Prior
from robust.oracle import Oracle
from robust.report import Report
from robust.rng import Streams
from robust.run import Progress
from robust.target import Target
from robust.threat import Threat


def plane(values: int, n: int = 2) -> tuple[Linear, Tensor, Tensor, Tensor]:
    """A two-class linear model, points in the middle of the box, labels, and (w_y - w_other)."""
    generator = torch.Generator().manual_seed(values)
    model = Linear(torch.randn(2, values, generator=generator), torch.zeros(2))
    x = 0.5 + 0.05 * torch.randn(n, values, generator=generator)
    with torch.no_grad():
        y = model(x).argmax(1)
        gap = model.weight[y] - model.weight[1 - y]
    return model, x, y, gap


def search(attack: object, model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Ledger:
    with Target(model, device="cpu") as target:
        oracle = Oracle(
            target, x, y, torch.arange(len(x)), threat, access=attack.access, minimize=True,  # type: ignore[attr-defined]
        )  # fmt: skip
        attack(oracle)  # type: ignore[operator]
    return oracle.ledger


@pytest.mark.parametrize(
    ("attack", "norm", "slack"),
    [
        (HopSkipJump(queries=1500, probes=30), "l2", 1.1),
        (HopSkipJump(queries=1500, probes=30), "linf", 1.25),
        (RayS(queries=800), "linf", 1.15),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_decision_attacks_come_near_the_minimal_perturbation(
    attack: HopSkipJump, norm: str, slack: float
) -> None:
    model, x, y, gap = plane(16)
    distance = (x * gap).sum(1).abs() / gap.norm(p=1 if norm == "linf" else 2, dim=1)
    ledger = search(attack, model, x, y, Threat(norm, "0.0001"))
    ratio = ledger.distance / distance
    assert (ratio >= 1 - 1e-4).all()
    assert (ratio <= slack).all(), ratio
    assert (ledger.forwards <= attack.queries).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_hopskipjump_comes_near_each_class_it_aims_at(norm: str) -> None:
    """Class 1 lies .3 away along one value, class 2 .1 along another."""
    weight = torch.zeros(3, 16)
    weight[1, 0] = weight[2, 1] = 1.0
    model, x, y = (
        Linear(weight, torch.tensor([0.0, -0.8, -0.6])),
        torch.full((1, 16), 0.5),
        torch.zeros(1).long(),
    )
    nearest = [torch.inf] * 3

    class Watching(Oracle):
        def _record(self, x_adv: Tensor, logits: Tensor) -> None:
            label = int(logits.argmax())
            nearest[label] = min(nearest[label], float(self.threat.distance(x_adv, self.x)))
            super()._record(x_adv, logits)

    attack = HopSkipJump(queries=1500, probes=30, targets=2)
    with Target(model, device="cpu") as target:
        oracle = Watching(
            target, x, y, torch.arange(1), Threat(norm, "0.001"), access="decision", minimize=True
        )
        attack(oracle)
    assert 0.3 <= nearest[1] <= 0.33
    assert 0.1 <= nearest[2] <= 0.11
    assert attack.queries < oracle.ledger.forwards <= 2 * attack.queries


def test_a_class_that_no_start_falls_into_is_not_aimed_at() -> None:
    model, x, y, _ = plane(16)
    attack = HopSkipJump(queries=200, probes=10)
    one, three = (
        search(replace(attack, targets=targets), model, x, y, Threat("l2", "0.0001")) for targets in (1, 3)
    )
    assert torch.equal(one.x_adv, three.x_adv)
    assert (three.forwards - one.forwards <= attack.start_tries).all()


@pytest.mark.parametrize(
    ("image", "size"), [((9, 7), (5, 5)), ((9, 7), (7, 7)), ((8, 6), (7, 6)), ((1, 20), (1, 5))], ids=str
)
@pytest.mark.parametrize("power", [2, 1])
def test_squares_bump_fills_its_window_and_nothing_else(
    image: tuple[int, int], size: tuple[int, int], power: int
) -> None:
    unit, (height, width) = torch.rand(30, 2, generator=torch.Generator().manual_seed(0)), image
    shape = torch.Size((30, 2, height, width))
    places, bumps = square._places(shape, size, unit), square._bumps(size, unit.device, power)
    ways = (
        [square._bump(*size, unit.device, power)]
        if len(bumps) == 1
        else [bump := square._bump(*size, unit.device, power), bump.T]
    )
    assert len(ways) == 1 + (size[0] == size[1])
    torch.testing.assert_close(bumps.norm(p=power, dim=2), torch.ones(len(ways), 1))
    for i, corner in enumerate(unit.tolist()):
        top, left = int(corner[0] * (height - size[0] + 1)), int(corner[1] * (width - size[1] + 1))
        way = i % len(ways)
        expected = torch.zeros(2, height, width)
        expected[:, top : top + size[0], left : left + size[1]] = ways[way]
        placed = torch.zeros(2 * height * width).scatter(0, places[i], bumps[way].expand(2, -1).flatten())
        assert torch.equal(placed.view_as(expected), expected)


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 9, 14), (40,)], ids=str)
@pytest.mark.parametrize(("norm", "power"), [("l2", 2), ("l1", 1)])
def test_squares_move_keeps_the_norm_and_all_else(shape: tuple[int, ...], norm: str, power: int) -> None:
    """Inside a wide box, what one window loses and what is unspent is in the other; no other value grows.

    In l2 each channel keeps its own norm; in l1 what is drawn back leaves fewer values.
    """
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.zeros(50, *shape), 2.0
    unit = Streams(0, torch.arange(50), ("move",)).uniform((5 + square._as_images(x).shape[1],))
    x_adv = x + 0.1 * torch.randn(50, *shape, generator=generator)
    x_adv *= (0.9 * eps / x_adv.flatten(1).norm(p=power, dim=1)).view(-1, *[1] * len(shape))
    there = square._move_mass(x_adv, x, Threat(norm, str(eps), (-9.0, 9.0)), 0.05, unit)
    torch.testing.assert_close(there.flatten(1).norm(p=power, dim=1), torch.full((50,), eps))
    before, after = (square._as_images(point).flatten(2) for point in (x_adv, there))
    if norm == "l2":
        spare = eps**2 * (1 - 0.9**2) / before.shape[1]
        torch.testing.assert_close(
            after.square().sum(2), before.square().sum(2) + spare, rtol=1e-4, atol=1e-5
        )
    side = max(3, round((0.05 * square._as_images(x)[0, 0].numel()) ** 0.5)) | 1
    grown = (after.abs() - before.abs()).gt(1e-5) if norm == "l1" else (after - before).abs().gt(1e-5)
    assert (grown.sum((1, 2)) >= 1).all()
    assert (grown.sum(2) <= 2 * side**2).all()


@given(values=st.integers(1, 40), data=st.data())
def test_what_comes_is_distinct_and_was_not_there(values: int, data: st.DataObject) -> None:
    most = data.draw(st.integers(0, values - 1))
    count = data.draw(st.integers(1, values - most))
    seed = data.draw(st.integers(0, 99))
    generator = torch.Generator().manual_seed(seed)
    places = torch.stack([torch.randperm(values, generator=generator)[:most] for _ in range(4)])
    coming = sparse_rs.outside(places, torch.rand(4, count, generator=generator), values - most)
    for had, came in zip(places.tolist(), coming.tolist(), strict=True):
        assert len(set(came)) == count
        assert not set(came) & set(had)
        assert set(came) <= set(range(values))


@pytest.mark.parametrize("eps", [1, 5, 63, 64, 80])
def test_sparse_rs_changes_no_more_values_than_it_may_and_to_the_ends_of_the_box(eps: int) -> None:
    x, y, seen = torch.rand(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64), []

    class Seen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return torch.stack([x.flatten(1).sum(1) + 99, -x.flatten(1).sum(1)], 1)

    search(SparseRS(queries=60), Seen(), x, y, Threat("l0", str(eps)))
    for points in seen[-59:]:
        changed = (points != x).flatten(1)
        assert (changed.sum(1) <= eps).all()
        assert set(points.flatten(1)[changed].unique().tolist()) <= {0.0, 1.0}
    assert len({str(points) for points in seen[-59:]}) > 40


def test_sparse_rs_comes_near_the_fewest_values() -> None:
    """Two classes, linear: the fewest values are those that gain most by going to an end of the box."""
    model, x, y, gap = plane(64, n=8)
    gains = torch.where(gap > 0, gap * x, -gap * (1 - x)).sort(1, descending=True).values.cumsum(1)
    least = 1 + (gains <= (x * gap).sum(1, keepdim=True)).sum(1)
    reached = []
    for i, fewest in enumerate(least.tolist()):
        for eps, list_ in ((fewest - 1, None), (fewest + 1, reached)):
            if eps:
                broken = search(
                    SparseRS(queries=3000, proposals=4), model, x[[i]], y[[i]], Threat("l0", str(eps))
                ).broken
                assert list_ is not None or not broken.any()
                reached += broken.tolist() if list_ is not None else []
    assert sum(reached) >= 7, (least, reached)


def test_spsa_follows_the_slope() -> None:
    model, x, y, gap = plane(16, n=1)
    for norm, dual in (("linf", 1), ("l2", 2)):
        exact = (x * gap).sum(1).abs() / gap.norm(p=dual, dim=1)
        for i in range(len(x)):
            for share, breaks in ((0.999, False), (1.15, True)):
                threat = Threat(norm, repr(float(share * exact[i])))
                ledger = search(SPSA(queries=900, samples=6), model, x[i : i + 1], y[i : i + 1], threat)
                assert ledger.broken.item() is breaks
                assert ledger.forwards.item() <= 900


def test_spsa_goes_where_there_is_no_gradient(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = net((x * 50).round() / 50)
            return out

    attack = SPSA(queries=400, samples=12, delta=0.05)
    report = robust.evaluate(
        Steps(), digits, threat="linf:0.2", suite=["pgd", attack], cascade=False, device="cpu", batch_size=64
    )
    blind, estimated = report.attacks
    assert blind["broke"] <= 3  # by its random start alone
    assert estimated["broke"] > 30


class Stubborn(nn.Module):
    """Class 0 everywhere but on the samples themselves."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.register_buffer("known", x.flatten(1)[1:])

    def forward(self, x: Tensor) -> Tensor:
        seen = (torch.cdist(x.flatten(1), self.known) < 1e-3).any(1).float()  # type: ignore[arg-type]
        return torch.stack([1 - seen, seen], 1)


@pytest.mark.parametrize(
    "attack", [HopSkipJump(queries=100, start_tries=12), RayS(queries=60)], ids=lambda a: a.name
)
def test_nowhere_to_begin_is_said(attack: HopSkipJump, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:4], torch.tensor([0, 1, 1, 1])
    report = robust.evaluate(Stubborn(x), (x, y), threat="linf:0.3", suite=attack, device="cpu")
    (entry,) = report.attacks
    assert (entry["attacked"], entry["broke"], entry["unstarted"]) == (4, 3, 1)
    assert report.verdicts["status"].tolist() == ["survived", "broken", "broken", "broken"]
    assert "no-start" in {finding["check"] for finding in report.findings}
    assert report.trust != "trusted"


# Of 100 steps, looked at every five, the last of samples whose best share is 4, 10, 20 and 40 %: the first at which the share
# times the part of the steps is over the pace, or the share is over early / (early + part).
@pytest.mark.parametrize(
    ("attack", "threat", "last"),
    [
        (Square(queries=404, proposals=4, pace=0.05), "linf:0.000001", {4: 100, 10: 56, 20: 31, 40: 16}),
        (
            SparseRS(queries=404, proposals=4, early=0.12),
            "l1:0.000001",
            {4: 100, 10: 100, 20: 51, 40: 21},
        ),
        (
            SparseRS(queries=404, proposals=4, early=0.12, pace=0.05),
            "l1:0.000001",
            {4: 100, 10: 56, 20: 31, 40: 16},
        ),
    ],
    ids=["pace", "early", "both"],
)
def test_searches_that_are_behind_end(
    attack: Attack, threat: str, last: dict[int, int], net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    with torch.no_grad():
        logits = net(x)
    gaps = (logits - logits.gather(1, y[:, None])).scatter(1, y[:, None], -torch.inf)
    right = gaps.amax(1) < 0
    x, y, gaps = x[right], y[right], gaps[right]
    share = torch.tensor([0.04, 0.1, 0.2, 0.4]).repeat(len(x))[: len(x)]  # of the clean margin, made up
    prior = Prior(gaps, gaps.amax(1) / share)
    with Target(net, device="cpu") as target:  # a threat so small that no gap moves
        oracle = Oracle(target, x, y, torch.arange(len(x)), Threat.parse(threat), access="score", prior=prior)
        attack(oracle)
    expected = [4 * (1 + last[round(100 * own)]) for own in share.tolist()]
    assert oracle.ledger.forwards.tolist() == expected


@pytest.mark.parametrize("name", ["hopskipjump", "rays", "spsa", "square"])
def test_progress_within_a_search_and_ctrl_c_keeps_what_was_found(
    name: str, net: nn.Module, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robust.run._TELL_EVERY", 0.0)
    shown: list[Progress] = []

    def stop(step: Progress) -> None:
        shown.append(step)
        if step.stage.startswith(name) and step.surviving < 64 and step.done >= 3:
            raise KeyboardInterrupt

    attack = ATTACKS[name](queries=4000)  # type: ignore[call-arg]
    with pytest.raises(KeyboardInterrupt) as caught:
        robust.evaluate(
            net,
            digits,
            threat="linf:0.12",
            suite=["fgsm", attack],
            device="cpu",
            batch_size=64,
            progress=stop,
        )
    assert isinstance(caught.value, Interrupted)
    report = caught.value.report
    within = [step.done for step in shown if step.stage.startswith(name)]
    assert len(within) > 3
    assert within == sorted(within)
    assert sum(report.statuses.values()) == 64
    assert report.statuses["survived"] == 0
    assert report.statuses["broken"] >= report.attacks[0]["broke"] > 0
    assert report.statuses["error"] > 0
    assert report.failures == [
        f"interrupted: {report.statuses['error']} samples were not attacked to the end"
    ]


def test_what_showing_progress_raises_is_no_crash_of_the_attack(
    net: nn.Module, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robust.run._TELL_EVERY", 0.0)

    def enough(step: Progress) -> None:
        if step.stage.startswith("square"):
            raise TimeoutError("enough")

    attack = ATTACKS["square"](queries=4000)  # type: ignore[call-arg]
    with pytest.raises(TimeoutError, match="enough"):
        robust.evaluate(
            net, digits, threat="linf:0.12", suite=["fgsm", attack], device="cpu", progress=enough
        )


@pytest.mark.parametrize(("norm", "eps"), [("linf", "0.1"), ("l2", "0.5"), ("l1", "3"), ("l0", "2")])
def test_searches_side_by_side_cost_the_same_queries_and_break_as_many(
    norm: str, eps: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:

    calls: list[int] = []
    handle = net.register_forward_hook(lambda *_: calls.append(1))

    def run(proposals: int, seed: int) -> robust.Report:
        attack = (SparseRS if norm == "l0" else Square)(queries=200, proposals=proposals)
        return robust.evaluate(
            net, digits, threat=f"{norm}:{eps}", suite=attack, device="cpu", seed=seed, batch_size=256
        )

    one = [run(1, seed) for seed in range(3)]
    before = len(calls)
    four = [run(4, seed) for seed in range(3)]
    handle.remove()
    assert before > 3 * 200
    assert len(calls) - before < before / 2  # a quarter, and what the checks ask
    for report in four:
        standing = report.verdicts[report.verdicts.status == "survived"]
        assert set(standing.forwards) == {1 + 200}
    left = [sum(report.statuses["survived"] for report in reports) for reports in (one, four)]
    assert 0 < left[1] <= left[0] + 9  # of 192
    assert left[1] < 3 * one[0].clean_correct


def test_transfer_needs_and_names_its_surrogate(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match="needs a surrogate"):
        robust.evaluate(net, digits, threat="linf:0.1", suite="transfer")
    with pytest.raises(InputError, match="expected a model SPEC"):
        Transfer(surrogate=3)
    own = Transfer(surrogate=Target(net, device="cpu"))
    assert own.label == "transfer(Sequential)"
    longer = Transfer(surrogate=own.surrogate, steps=40, loss="margin")
    assert longer.label == "transfer(Sequential,steps=40,loss=margin)"
    report = robust.evaluate(net, digits, threat="linf:0.15", suite=own, device="cpu", batch_size=64)
    assert report.robust_accuracy < 0.4
    assert report.backwards <= report.checks["backwards"]
    assert report.to_dict()["attacks"][0]["parameters"]["surrogate"] == "Sequential"


def test_another_surrogate_in_the_same_file_is_another(
    net: nn.Module, digits: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    code, file = tmp_path / "surrogate.py", tmp_path / "surrogate.safetensors"
    code.write_text("from conftest import _small_net as net\n")
    attack = Transfer(surrogate=f"{code}:net", weights=str(file))

    def run(weights: Mapping[str, Tensor]) -> Report:
        save_file(dict(weights), file)
        return robust.evaluate(net, digits, threat="linf:0.15", suite=attack, device="cpu", batch_size=64)

    blind, own = run({key: 0 * value for key, value in net.state_dict().items()}), run(net.state_dict())
    assert own.robust_accuracy < blind.robust_accuracy == blind.clean_accuracy
    notes = own.attacks[0]["notes"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() in notes[1]
    assert [note != before for note, before in zip(notes, blind.attacks[0]["notes"], strict=True)] == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("surrogate", "said"),
    [
        (nn.Linear(5, 10), r"fails on samples of shape \(1, 8, 8\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "has 3 classes, and a label is 9"),
        (
            Target(nn.Identity(), bounds=(0, 255), device="cpu"),
            r"its bounds are \(0(\.0)?, 255(\.0)?\), the threat's",
        ),
    ],
    ids=["shape", "classes", "bounds"],
)
def test_a_surrogate_of_other_data_is_refused(
    surrogate: object, said: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(InputError, match=f"transfer: surrogate: {said}"):
        robust.evaluate(net, digits, threat="linf:0.1", suite=Transfer(surrogate=surrogate), device="cpu")


def test_noise_is_the_floor(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    report = robust.evaluate(
        net, digits, threat="linf:0.15", suite=[Noise(), "pgd"], cascade=False, device="cpu", batch_size=64
    )
    floor, strong = report.attacks
    assert 0 < floor["broke"] < strong["broke"]
    assert floor["forwards"] <= 64 * 101 + floor["broke"]


@pytest.mark.parametrize(
    ("attack", "change"),
    [
        (SPSA(), {"queries": 10}),
        (SPSA(), {"delta": 0}),
        (RayS(), {"tolerance": 1}),
        (HopSkipJump(), {"queries": 60}),
        (HopSkipJump(), {"targets": -1}),
        (Noise(), {"queries": 0}),
        (Square(), {"proposals": 0}),
        (Square(), {"pace": 0.0}),
        (Square(), {"queries": 15, "proposals": 8}),
        (SparseRS(), {"p_init": 0}),
        (SparseRS(), {"early": 0.0}),
        (Transfer(), {"steps": 0}),
    ],
    ids=str,
)
def test_bad_parameters_are_refused(attack: Square, change: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{attack.name}: expected"):
        replace(attack, **change)


@pytest.mark.parametrize("name", ["rays", "spsa", "noise", "fgsm", "pgd"])
@pytest.mark.parametrize("option", ["targets", "targeted"])
def test_where_no_class_can_be_aimed_at_it_is_said(name: str, option: str) -> None:
    with pytest.raises(
        InputError,
        match=f"attack '{name}': no option '{option}'; it has no targeted variant.*`multitargeted`",
    ):
        make_attack(name, **{option: "3"})


@pytest.mark.parametrize(("attack", "threat"), [(Square(queries=400, proposals=4), "l2:1"), (SparseRS(queries=400), "l0:8")])  # fmt: skip
def test_random_search_ends_at_a_break_where_nearer_points_are_asked_for(
    attack: Attack, threat: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """Its changes are as large as eps, or what the box leaves of it: looking for smaller ones is others' work."""
    settings: dict[str, Any] = {"suite": [attack], "device": "cpu", "precision": "float32"}
    plain = robust.evaluate(net, digits, threat=threat, **settings).verdicts
    nearest = robust.evaluate(net, digits, threat=threat, minimize=True, **settings)
    searched = next(entry for entry in nearest.attacks if entry["name"] == attack.name)
    assert (plain["status"] == "broken").sum() > 0
    assert (nearest.verdicts["status"] == plain["status"]).all()
    assert searched["forwards"] <= plain["forwards"].sum() + 5 * 4 * len(plain)
