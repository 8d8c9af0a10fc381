"""Minimum-norm attacks against linear models, whose nearest adversarial point an exact solver knows."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Linear
from scipy.optimize import brentq, linprog
from torch import Tensor, nn

from robust import Report, evaluate
from robust.attacks import ATTACKS, FMN, Attack, make_attack
from robust.attacks.planes import plane_distance, project_on_plane
from robust.errors import InputError, ThreatError
from robust.leaderboard import Record
from robust.leaderboard.derive import curve as derived_curve
from robust.leaderboard.verify import row_problems
from robust.ledger import Ledger
from robust.oracle import Oracle
from robust.projections import project
from robust.target import Target
from robust.threat import Threat

SHAPES = [(1, 4, 4), (3, 4, 4), (20,)]
MINIMUM_NORM = [
    (name, norm)
    for name in ATTACKS
    if ATTACKS[name].minimum_norm and ATTACKS[name].access == "gradient"  # test_black_box has the others
    for norm in ATTACKS[name].norms
]
# What reaches the nearest boundary of ten classes: the paper's best case, a run for each near class.
OPTIONS: dict[str, dict[str, object]] = {
    "cw": {"targets": 1},
    "ddn": {"steps": 200, "loss": "margin", "targets": 1},
    "ead": {"binary_search_steps": 6},
    "fab": {"steps": 10},
    "fmn": {"targets": 1},
    "sigma-zero": {"targets": 1},
    "vfga": {"loss": "margin", "targets": 3},
}
WITHIN = {"linf": 1.05, "l2": 1.05, "l1": 1.25, "l0": 1.25}


@functools.cache
def problem(classes: int, shape: tuple[int, ...], n: int = 3) -> tuple[Linear, Tensor, Tensor]:
    """A linear classifier, points well inside the unit box, and their labels."""
    generator = torch.Generator().manual_seed(classes)
    weight = torch.randn(classes, math.prod(shape), generator=generator)
    model = Linear(weight, 0.05 * torch.randn(classes, generator=generator))
    x = 0.5 + 0.1 * torch.randn(n, *shape, generator=generator)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


@functools.cache
def exact(norm: str, classes: int, shape: tuple[int, ...]) -> Tensor:
    """Distance of the nearest other class within the unit box, (N,)."""
    model, x, y = problem(classes, shape)
    flat, weight = x.flatten(1).double().numpy(), model.weight.detach().double().numpy()
    logits = model(x).detach().double().numpy()
    return torch.tensor(
        [
            min(
                _to_plane(norm, weight[k] - weight[label], logits[i, label] - logits[i, k], flat[i])
                for k in range(classes)
                if k != label
            )
            for i, label in enumerate(y.tolist())
        ]
    )


def _to_plane(norm: str, w: np.ndarray, gap: float, x: np.ndarray) -> float:
    """The least norm of d with <w, d> >= gap and x + d in the unit box."""
    d = len(w)
    if norm == "l2":
        t = brentq(lambda t: w @ (t * w).clip(-x, 1 - x) - gap, 0, 1e3)  # Karush, Kuhn and Tucker's condition
        return float(np.linalg.norm((t * w).clip(-x, 1 - x)))
    if norm == "l0":
        gains = np.sort(np.where(w > 0, w * (1 - x), -w * x))[::-1]
        return float(1 + (gains.cumsum() < gap).sum())
    sizes = d if norm == "l1" else 1  # |d_i| <= t_i, or all <= one t
    above = np.hstack([np.eye(d), -np.eye(d) if norm == "l1" else -np.ones((d, 1))])
    below = np.hstack([-np.eye(d), above[:, d:]])
    reach = np.concatenate([-w, np.zeros(sizes)])[None]
    found = linprog(
        np.concatenate([np.zeros(d), np.ones(sizes)]),
        A_ub=np.vstack([above, below, reach]),
        b_ub=np.concatenate([np.zeros(2 * d), [-gap]]),
        bounds=[*zip(-x, 1 - x, strict=True), *[(0, None)] * sizes],
    )
    return float(found.fun)


def minimize(attack: Attack, model: Linear, x: Tensor, y: Tensor, norm: str, eps: str = "1") -> Ledger:
    with Target(model, device="cpu") as target:
        oracle = Oracle(
            target, x, y, torch.arange(len(x)), Threat(norm, eps), purpose=attack.label, minimize=True,
            stays_inside=False,
        )  # fmt: skip
        attack(oracle)
    return oracle.ledger


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "norm"), MINIMUM_NORM)
def test_reaches_the_minimal_perturbation(name: str, norm: str, shape: tuple[int, ...], classes: int) -> None:
    model, x, y = problem(classes, shape)
    known = exact(norm, classes, shape)
    ratio = minimize(make_attack(name, **OPTIONS.get(name, {})), model, x, y, norm).distance / known
    assert (ratio >= 1 - 1e-4).all()
    rounding = 1e-4 if norm != "l0" else (known + 1).floor() / known - WITHIN["l0"]  # one value more at least
    assert (ratio <= WITHIN[norm] + torch.as_tensor(rounding).clamp_min(0)).all()


@pytest.mark.parametrize("tightness", [0.1, 0.6, 0.95])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_the_distance_to_a_plane_is_the_least_within_the_box(norm: str, tightness: float) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(6, 1, 4, 4, generator=generator)
    x[:3] = x[:3].round()  # half of them sit in the box's corners
    w = torch.randn(x.shape, generator=generator)
    reach = torch.where(w > 0, w * (1 - x), -w * x).flatten(1).sum(1)  # the most that the box allows
    gap = tightness * reach
    known = [
        _to_plane(norm, w[i].flatten().double().numpy(), float(gap[i]), x[i].flatten().double().numpy())
        for i in range(len(x))
    ]
    found = plane_distance(x, w, gap, norm, (0.0, 1.0)).double()
    if norm == "l0":  # whole values, and how fully they are used
        assert ((torch.tensor(known) - found).abs() < 1).all()
        return
    torch.testing.assert_close(found, torch.tensor(known).double(), rtol=1e-3, atol=1e-5)
    d = project_on_plane(x, w, gap, norm, (0.0, 1.0))
    torch.testing.assert_close((d * w).flatten(1).sum(1), gap, rtol=1e-4, atol=1e-5)
    assert ((x + d >= -1e-6) & (x + d <= 1 + 1e-6)).all()
    beyond = project_on_plane(x, w, 1.1 * reach, norm, (0.0, 1.0))
    torch.testing.assert_close((beyond * w).flatten(1).sum(1), reach, rtol=1e-4, atol=1e-5)
    assert (plane_distance(x, w, 1.1 * reach, norm, (0.0, 1.0)) > found).all()


@pytest.mark.parametrize(
    ("name", "norm"), [("fmn", "l1"), ("fmn", "l0"), ("pdpgd", "l1"), ("deepfool", "linf")]
)
def test_few_steps_come_near_where_the_box_is_in_the_way(name: str, norm: str) -> None:
    """Corners of the box: half of all directions are shut, and steps that forget it fall short."""
    model, x, _ = problem(3, (3, 4, 4))
    x = x.sub(0.5).mul(1e3).add(0.5).clamp(0, 1)
    y = model(x).detach().argmax(1)
    flat, weight, logits = (
        x.flatten(1).double().numpy(),
        model.weight.detach().double().numpy(),
        model(x).detach(),
    )
    known = []
    for i, label in enumerate(y.tolist()):
        others = [k for k in range(3) if k != label]
        gaps = {k: float(logits[i, label] - logits[i, k]) for k in others}
        known.append(min(_to_plane(norm, weight[k] - weight[label], gaps[k], flat[i]) for k in others))
    options = {"steps": 30} if name == "deepfool" else {"steps": 44}
    ratio = minimize(make_attack(name, **options), model, x, y, norm).distance / torch.tensor(known)
    assert (ratio <= 1.5).all(), ratio


@pytest.mark.parametrize(
    ("name", "norm", "shape", "bound"), [("cw", "l2", (20,), 1.1), ("ead", "l1", (3, 4, 4), 1.25)]
)
def test_few_steps_a_constant_suffice_since_one_goes_on_where_the_last_ended(
    name: str, norm: str, shape: tuple[int, ...], bound: float
) -> None:
    model, x, y = problem(3, shape)
    attack = make_attack(name, binary_search_steps=6, steps=8)
    ratio = minimize(attack, model, x, y, norm).distance / exact(norm, 3, shape)
    assert (ratio <= bound).all(), ratio


def test_vfga_breaks_no_more_than_what_it_changes_within_the_threat() -> None:
    model, x, y = problem(10, (20,), n=40)
    found = minimize(make_attack("vfga", steps=8), model, x, y, "l0", "2")
    within = found.distance <= 2
    assert torch.equal(found.broken, within)
    assert within.any()
    assert (found.distance.isfinite() & ~within).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool_goes_backward_only_from_where_the_boundary_is_not_crossed_yet(norm: str) -> None:
    model, x, y = problem(10, (20,))
    found = minimize(make_attack("deepfool"), model, x, y, norm)
    assert found.distance.isfinite().all()
    assert (found.forwards == 3).all()  # at x for what it is, for the slopes, and across
    assert (found.backwards == 9).all()


def test_deepfool_leaves_alone_what_is_misclassified_already() -> None:
    model, x, y = problem(10, (20,))
    found = minimize(make_attack("deepfool"), model, x, (y + 1) % 10, "l2")
    assert (found.forwards == 1).all()
    assert (found.backwards == 0).all()
    assert (found.distance == 0).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_a_projection_with_a_radius_per_row_is_that_of_each_row(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(5, 1, 3, 3, generator=generator)
    far = x + torch.randn(5, 1, 3, 3, generator=generator)
    eps = torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0])
    together = project(far, x, norm, eps)
    for i, radius in enumerate(eps.tolist()):
        alone = project(far[i : i + 1], x[i : i + 1], norm, radius)
        torch.testing.assert_close(together[i : i + 1], alone)


def test_jacobian_is_that_of_a_linear_model_and_is_counted() -> None:
    model, x, y = problem(10, (20,))
    with Target(model, device="cpu") as target:
        oracle = Oracle(target, x, y, torch.arange(len(x)), Threat("l2", "1"))
        classes, gaps, gradients = oracle.jacobian(x, 4)
    logits = model(x).detach()
    order = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)[:, :4]
    assert torch.equal(classes, order)
    torch.testing.assert_close(gaps, logits.gather(1, order) - logits.gather(1, y[:, None]))
    torch.testing.assert_close(gradients, (model.weight[order] - model.weight[y][:, None]).detach())
    assert oracle.ledger.forwards.tolist() == [2] * 3  # one to learn how many classes there are
    assert oracle.ledger.backwards.tolist() == [4] * 3


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("sigma-zero", "steps", 0), ("sigma-zero", "sigma", 0), ("sigma-zero", "threshold", 1),
        ("fmn", "gamma", 1), ("fmn", "targets", -1),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(name: str, option: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"{name}: .*{option}"):
        make_attack(name, **{option: value})


def test_one_run_gives_the_whole_curve(net: nn.Module, digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    options: dict[str, Any] = {"suite": ["pgd", FMN(steps=40)], "device": "cpu", "precision": "float32"}
    report = evaluate(net, digits, threat="linf:0.08", minimize=True, **options)
    radii = [0, 0.02, 0.05, "0.08", 0.12, 0.2, 1]
    curve = report.curve(radii)
    assert curve["eps"].tolist() == [float(eps) for eps in radii]
    assert curve["robust_accuracy"].is_monotonic_decreasing
    assert curve["robust_accuracy"][0] == report.clean_accuracy
    assert curve["robust_accuracy"][3] == report.robust_accuracy
    assert curve["robust_accuracy"].iloc[-1] == 0
    assert 0 < curve["robust_accuracy"][4] < report.robust_accuracy
    assert ((curve["low"] <= curve["robust_accuracy"]) & (curve["robust_accuracy"] <= curve["high"])).all()
    for eps in ("0.05", "0.12"):  # what a search at that radius alone leaves standing
        alone = evaluate(net, digits, threat=f"linf:{eps}", **options).robust_accuracy
        assert abs(alone - report.curve([eps])["robust_accuracy"][0]) <= 2 / len(digits[0])
    pd.testing.assert_frame_equal(Report.load(report.save(tmp_path)).curve(radii), curve)


def test_a_curve_in_a_wide_box_has_the_tolerance_of_the_verdicts() -> None:
    """Rounding at 255 is far over that at 1: who breaks at the edge of the ball is broken in the curve and the record too."""
    draw = torch.Generator().manual_seed(0)
    x = 255 * torch.rand(200, 20, generator=draw)
    model, threat = (
        Linear(torch.randn(2, 20, generator=draw), torch.zeros(2)),
        Threat("linf", "0.3", (0.0, 255.0)),
    )
    report = evaluate(model, (x, model(x).argmax(1)), threat=threat, suite="pgd", minimize=True, device="cpu")
    assert (report.verdicts["distance"] > 0.3 + 2e-6).any(), "rounding carries none past the edge"
    assert report.curve(["0.3"])["robust_accuracy"][0] == report.robust_accuracy
    record = Record.from_report(report, name="linear", defense={"name": "none", "parameters": {}})
    assert list(row_problems(record, report.verdicts)) == []
    assert derived_curve(report.verdicts, threat)[-1][1].value == report.robust_accuracy


def test_nearest_points_are_audited_and_independent_of_the_batch(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    whole = evaluate(net, (x, y), threat="l2:0.3", suite="fmn", minimize=True, device="cpu").verdicts
    small = evaluate(net, (x, y), threat="l2:0.3", suite="fmn", minimize=True, device="cpu", batch_size=7)
    wrong = whole["status"] == "misclassified"
    assert (whole["nearest"][wrong] == 0).all()
    assert ((whole["nearest"] <= 0.3 + 1e-6) == (whole["status"] != "survived")).all()
    close = np.isclose(whole["nearest"], small.verdicts["nearest"], rtol=0.05)
    assert close.mean() > 0.95  # another batch, other rounding


def test_a_curve_needs_a_search_that_went_there(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    plain = evaluate(net, digits, threat="linf:0.05", suite="fgsm", device="cpu")
    with pytest.raises(InputError, match="minimize=True"):
        plain.curve([0.01])
    bounded = evaluate(net, digits, threat="linf:0.05", suite="fgsm", device="cpu", minimize=True)
    assert bounded.curve([0.05])["robust_accuracy"][0] == plain.robust_accuracy
    assert bounded.curve([0])["robust_accuracy"][0] == plain.clean_accuracy
    for radius in (0.06, 0.02):  # a search at eps alone tells nothing of less
        with pytest.raises(InputError, match=r"expected 0\.05, at which alone these attacks search"):
            bounded.curve([radius])
    with pytest.raises(ThreatError, match="eps"):
        bounded.curve(["much"])
    for alone in (0.05, "0.05"):
        with pytest.raises(InputError, match=r"curve: eps: expected a list of radii such as \[0, 0.05\]"):
            bounded.curve(alone)  # type: ignore[arg-type]
    turned = evaluate(net, digits, threat="spatial:10", minimize=True, device="cpu")
    with pytest.raises(InputError, match="expected a threat in linf, l2, l1 or l0, got spatial"):
        turned.curve([5])


def test_a_curve_of_a_suite_that_searches_at_eps_alone_has_a_minimum_norm_attack_too(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    report = evaluate(net, digits, threat="linf:0.1", minimize=True, device="cpu")
    for eps, found in zip(("0.02", "0.05"), report.curve([0.02, 0.05]).robust_accuracy, strict=True):
        direct = evaluate(net, digits, threat=f"linf:{eps}", device="cpu").robust_accuracy
        assert abs(found - direct) < 0.04
