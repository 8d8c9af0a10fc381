"""What is read off the attacks' own counts: breaks passed over, too few passes, who breaks what others leave."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from torch import Tensor, nn
from toy import ENOUGH
from wrapped import Wrap, same

import robust
from robust.attacks import FGSM, PGD, Attack, SigmaZero, Square
from robust.diagnose import review, review_access, review_passes
from robust.run import Run, Settings
from robust.sources import as_samples
from robust.suites import Stage
from robust.target import Target
from robust.threat import Threat


def test_points_that_the_search_passed_over_are_told(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """A search copy that takes for misclassified what the model does not: every claim is denied."""
    run = Run(
        Target(net, device="cpu"),
        as_samples(digits, bounds=(0.0, 1.0)),
        Threat("linf", "0.05"),
        Settings(precision="float32"),
    )
    with run.target:
        run.look()
        run.search = run.target.twin(Wrap(net, same, lambda z: z.roll(1, 1)))
        run.attack(Stage(FGSM()), cascade=True)
    found = review(run.entries, run.correct, cascade=True)
    assert [finding.check for finding in found] == ["silent-success"]


SHORT: list[str | Attack] = ["quick", "fgsm", PGD(steps=20)]
LONG: list[str | list[Attack]] = ["standard", ENOUGH]


@pytest.mark.parametrize(
    ("threat", "suite", "findings"),
    [
        *((t, s, ["short-search"]) for t in ("linf:0.02", "l2:0.2", "l1:0.5") for s in SHORT),
        *((t, s, []) for t in ("linf:0.02", "l2:0.2", "l1:0.5") for s in LONG),
        ("l0:1", SigmaZero(steps=20), ["short-search"]),
        ("linf:0.02", Square(queries=60), ["black-box-alone"]),
        ("linf:0.02", [Square(queries=60), PGD(steps=1)], []),
        ("l0:1", "standard", []),
    ],
)
def test_what_stands_after_few_passes_proves_little(
    threat: str,
    suite: str | Attack | list[Attack],
    findings: list[str],
    net: nn.Module,
    digits: tuple[Tensor, Tensor],
) -> None:
    report = robust.evaluate(net, digits, threat=threat, suite=suite, device="cpu")
    assert report.statuses["survived"] > 5
    assert [finding["check"] for finding in report.findings] == findings
    assert report.trust == ("suspect" if findings else "trusted")


def test_two_samples_that_stand_after_few_passes_are_told_with_one_of_them_not() -> None:
    few = pd.DataFrame(
        {"status": ["survived"] * 2 + ["broken"] * 8, "forwards": 30, "backwards": 19}
        | {"label": 2, "prediction": 2, "prediction_adv": 0}
    )
    assert [finding.check for finding in review_passes(few, 1)] == ["short-search"]
    assert review_passes(few.assign(backwards=20), 1) == []
    assert review_passes(few[1:], 1) == []
    two = few.assign(label=1, prediction=1)  # one boundary to search
    assert review_passes(two, 1) == []
    assert review_passes(two.assign(backwards=4), 1) != []
    assert review_passes(few.assign(forwards=300, backwards=190), 10) != []  # ten draws are one answer
    assert review_passes(pd.concat([few, few[2:].sample(40, replace=True)]), 1) == []  # 2 of 50


def test_what_stands_where_no_attack_used_gradients_is_told_from_two_samples_and_a_share_on() -> None:
    table = pd.DataFrame({"status": ["survived"] * 2 + ["broken"] * 38})
    squares, ascent = {"access": "score", "attacked": 40}, {"access": "gradient", "attacked": 40}
    unable, unknown = ascent | {"attacked": 0}, ascent | {"access": None}
    for suite in ([squares], [squares, unable]):
        assert [finding.check for finding in review_access(table, suite)] == ["black-box-alone"]
    assert review_access(table, [squares, ascent]) == []
    assert review_access(table, [squares, unknown]) == []  # of an older record
    assert review_access(table[1:], [squares]) == []
    assert review_access(pd.concat([table, table[2:]]), [squares]) == []  # 2 of 78


@pytest.mark.parametrize(
    ("selection", "broke", "fires"),
    [
        ({"share": 0.03}, 2, True),
        ({"follows": True}, 2, False),
        ({"near": 0.3, "share": 0.03}, 2, False),
        ({"near": 0.3}, 5, True),
    ],
)
def test_what_squares_break_is_a_share_of_what_stood(
    selection: dict[str, Any], broke: int, fires: bool
) -> None:
    """Of six that were chosen because they are near or move still, two are no sign; five of ninety that stood are."""
    ascent = {"label": "pgd", "name": "pgd", "access": "gradient", "attacked": 100, "broke": 10}
    squares = {"label": "square", "name": "square", "access": "score", "attacked": 6, "broke": broke}
    for entry in (ascent, squares):
        entry |= {"rejected": 0, "silent": 0, "selection": selection if entry is squares else {}}
    found = review([ascent, squares], 100, cascade=True)
    assert [finding.check for finding in found] == ["black-box-wins"] * fires


@pytest.mark.parametrize(("by_gradients", "broke", "fires"), [(100, 85, False), (40, 60, True)])
def test_random_search_in_l0_breaks_most_of_what_gradients_leave_on_honest_nets(
    by_gradients: int, broke: int, fires: bool
) -> None:
    descent = {
        "label": "sigma-zero",
        "name": "sigma-zero",
        "access": "gradient",
        "attacked": 200,
        "broke": by_gradients,
    }
    search = {"label": "sparse-rs", "name": "sparse-rs", "access": "score", "attacked": 100, "broke": broke}
    entries = [entry | {"rejected": 0, "silent": 0, "selection": {}} for entry in (descent, search)]
    found = review(entries, 200, cascade=True)
    assert [finding.check for finding in found] == ["sparse-search-wins"] * fires


def test_what_seemed_far_and_breaks_is_told(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    report = robust.evaluate(net, digits, threat="l2:0.1", device="cpu")
    (far,) = (entry for entry in report.attacks if entry["selection"].get("beyond") == 2.5)
    assert far["attacked"] > 10
    assert far["broke"] == 0
    assert report.findings == []
    far |= {"attacked": 60, "broke": 3}
    (finding,) = review(report.attacks, report.clean_correct, cascade=True)
    assert (finding.check, finding.severity) == ("hidden-boundary", "suspect")
    assert (
        "breaks 3 of 60 samples that no search had seen broken within 2.5 times the radius" in finding.message
    )
    broken = sum(entry["broke"] for entry in report.attacks)
    assert review(report.attacks, broken + 2, cascade=True) == []  # next to nothing stands
    far["broke"] = 2
    assert review(report.attacks, report.clean_correct, cascade=True) == []
    far |= {"broke": 3, "selection": {**far["selection"], "within": 1.5}}  # others were shown to it, too
    assert review(report.attacks, report.clean_correct, cascade=True) == []


@pytest.mark.parametrize(
    ("broke", "shown", "stands", "fires"),
    [(2, 60, 3, True), (1, 60, 3, False), (2, 61, 3, False), (2, 60, 2, False)],
)
def test_what_searches_that_follow_no_other_class_break_is_told(
    broke: int, shown: int, stands: int, fires: bool
) -> None:
    """The label's logit is brought down, and then it is looked at from far out; where all are shown to them, others could have."""
    entries = searches(
        ("outer-boundary", 100, 40, {}),
        ("pgd", shown, broke, {"flat": 0.5}),
        ("apgd", 9, 5, {"flat": 0.95}),
        ("outer-boundary", 9, 1, {"closer": True}),
    )
    entries[1]["parameters"]["loss"] = "logit"
    found = review(entries, 40 + broke + 5 + 1 + stands, cascade=True)
    assert [finding.check for finding in found] == ["hidden-boundary"] * fires


def test_searches_for_the_nearest_point_pass_no_break_in_silence(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    for threat in ("linf:0.1", "l2:0.6"):
        found = robust.evaluate(net, digits, threat=threat, device="cpu", minimize=True).findings
        assert "silent-success" not in {finding["check"] for finding in found}


def searches(*rows: tuple[str, int, int, dict[str, Any]], steps: int = 40) -> list[dict[str, Any]]:
    """Entries of a report's attacks: name, samples shown, broken, and the selection."""
    return [
        {"label": name, "name": name, "access": "gradient", "attacked": attacked, "broke": broke}
        | {"rejected": 0, "silent": 0, "selection": selection, "parameters": {"steps": steps}}
        for name, attacked, broke, selection in rows
    ]


@pytest.mark.parametrize(
    ("broke", "after", "correct", "fires"),
    [(2, 1, 100, True), (2, 0, 100, False), (3, 9, 27, False), (3, 9, 28, True)],
)
def test_what_smaller_steps_break_of_samples_whose_gradients_turn_is_told(
    broke: int, after: int, correct: int, fires: bool
) -> None:
    """With what is shown to those that they brought nearer, unless next to nothing stands; squares do not count."""
    turning = {"turning": 0.45}
    entries = searches(
        ("pgd", 100, 8, {}),
        ("pgd", 50, broke, turning),
        ("pgd", 9, after, {"follows": True}),
        ("apgd", 9, 0, turning),
        ("square-ascent", 9, 5, turning),
        ("pgd", 9, 0, {}),
        ("pgd", 9, 0, {"follows": True}),
    )
    found = review(entries, correct, cascade=True)
    assert [finding.check for finding in found] == ["turning-gradients"] * fires
    assert not fires or f"break {broke + after} of 50 samples" in found[0].message
    assert review(entries, correct, cascade=False) == []


@pytest.mark.parametrize(
    ("steps", "broke", "shown", "stands", "fires"),
    [
        (40, 2, 60, 3, True),
        (39, 2, 60, 3, False),
        (40, 1, 60, 3, False),
        (40, 2, 61, 3, False),
        (40, 2, 60, 2, False),
    ],
)
def test_what_longer_ascents_from_inside_break_is_told(
    steps: int, broke: int, shown: int, stands: int, fires: bool
) -> None:
    """Of samples that came near, unless next to nothing stands; what comes in from outside, or sees all, does not count."""
    entries = searches(
        ("apgd", 80, 4, {}),
        ("apgd", 80, 4, {"near": 0.6}),
        ("apgd", shown, broke, {"near": 0.6}),
        ("apgd", 9, 1, {"near": 0.4, "follows": True}),
        ("pgd", 9, 5, {"near": 0.5, "follows": True}),
        steps=steps,
    )
    entries[1]["parameters"]["outside"] = 4
    found = review(entries, 4 + 4 + broke + 1 + 5 + stands, cascade=True)
    assert [finding.check for finding in found] == ["longer-ascent-wins"] * fires


@pytest.mark.parametrize(
    ("shrunk", "standing", "fires"), [(8, 32, True), (8, 33, False), (4, 4, False), (5, 5, True)]
)
def test_logits_shrink_where_much_of_what_stands_came_near_every_class(
    shrunk: int, standing: int, fires: bool
) -> None:
    """Of nets trained to have small gradients a few do at large radii, and no more attacks break these."""
    found = review([], 100, cascade=False, checks={"shrunk": shrunk, "standing": standing})
    assert [finding.check for finding in found] == ["shrinking-logits"] * fires


@pytest.mark.parametrize(("ascended", "turned", "fires"), [(8, 5, True), (8, 4, False), (7, 7, False)])
def test_gradients_that_turn_of_most_samples_are_told(ascended: int, turned: int, fires: bool) -> None:
    found = review([], 0, cascade=False, checks={"ascended": ascended, "turned": turned})
    assert [finding.check for finding in found] == ["turning-gradients"] * fires


@pytest.mark.parametrize(("seen", "ahead", "fires"), [(10, 3, True), (10, 2, False), (7, 7, False)])
def test_searches_inside_far_ahead_of_those_outside_are_told(seen: int, ahead: int, fires: bool) -> None:
    found = review([], 0, cascade=True, checks={"seen": seen, "ahead": ahead})
    assert [finding.check for finding in found] == ["turning-gradients"] * fires
