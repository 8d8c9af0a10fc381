"""Suites: what they hold, and what they cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toy import Corner

import robust
from robust.attacks import APGD, FAB
from robust.defenses import make_defense
from robust.errors import InputError, UnsupportedError
from robust.suites import SUITES, resolve, resolve_below
from robust.threat import Threat


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_the_default_suite_works_for_every_norm_it_claims(
    norm: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    eps = {"linf": "0.08", "l2": "0.5", "l1": "0.8", "l0": "1"}[norm]
    report = robust.evaluate(net, digits, threat=f"{norm}:{eps}", device="cpu")
    assert report.suite == "standard"
    assert 0 < report.statuses["survived"] < report.clean_correct


@pytest.mark.parametrize(
    "threat", ["linf:0.08", "l2:0.5", "l1:1", "l0:2", "spatial:40,0.2", "corruptions:1-5", "patch:3x4"]
)
def test_a_smoke_test_works_under_every_threat_for_no_more_passes(
    threat: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    quick, standard = (
        robust.evaluate(net, digits, threat=threat, suite=suite, device="cpu")
        for suite in ("quick", "standard")
    )
    assert standard.robust_accuracy <= quick.robust_accuracy < quick.clean_accuracy
    assert quick.forwards + quick.backwards <= standard.forwards + standard.backwards


# The label's logit is brought down; a line's end, its halvings, and three points from where it crosses the boundary.
FAR = (6 + 1) + (1 + 6 + 3)


@pytest.mark.parametrize(
    ("norm", "passes"), [("linf", 11 + 9 + 7 + 13 + 55 + FAR), ("l2", 8 + 12 + 8 + 55 + FAR)]
)
def test_what_is_far_from_its_boundary_costs_little(
    norm: str, passes: int, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """Of these margins hardly move, which could be a plateau: nine classes of six passes are a part of it."""
    report = robust.evaluate(net, digits, threat=f"{norm}:0.001", suite="standard", device="cpu")
    survivors = report.verdicts[report.verdicts.status == "survived"]
    assert len(survivors) > 50
    assert 1 + passes <= survivors.forwards.median() <= 2 + passes
    assert survivors.forwards.max() <= 1 + passes + 200  # random search sees a few per cent
    assert survivors.backwards.max() <= passes


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_two_classes_are_enough(norm: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    model = nn.Sequential(net, nn.Linear(10, 2))
    with torch.no_grad():
        model[1].weight.copy_((torch.arange(10) // 5 == torch.arange(2)[:, None]).float())
        labels = model.eval()(digits[0]).argmax(1)
    report = robust.evaluate(model, (digits[0], labels), threat=f"{norm}:0.2", device="cpu")
    assert report.failures == []
    assert report.statuses["error"] == 0


def test_two_classes_leave_nothing_to_a_search_of_others() -> None:
    x, y = torch.tensor([[0.2, 0.2]]).view(1, 1, 1, 2), torch.zeros(1, dtype=torch.int64)
    others = FAB(targets=6, skip=2)
    (spent,) = robust.evaluate(Corner(), (x, y), threat="l2:0.1", suite=[others], device="cpu").attacks
    assert (spent["forwards"], spent["backwards"]) == (0, 0)
    report = robust.evaluate(Corner(), (x.repeat(8, 1, 1, 1), y.repeat(8)), threat="l2:0.01", device="cpu")
    assert "short-search" not in {finding["check"] for finding in report.findings}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_sample_costs_more_than_is_stated(
    norm: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    eps = {"linf": "0.05", "l2": "0.25"}[norm]
    verdicts = robust.evaluate(net, digits, threat=f"{norm}:{eps}", suite="standard", device="cpu").verdicts
    spent = verdicts.forwards + verdicts.backwards
    assert spent.max() <= 5000
    standing = spent[verdicts.status == "survived"]
    assert standing.median() < 600
    assert standing.median() < standing.max()


@pytest.mark.parametrize(
    ("threat", "labels"),
    [
        ("linf:8/255", ["apgd", "apgd(targets=9)", "fab", "square(stretched=False)"]),
        ("l2:0.5", ["apgd", "apgd(targets=9)", "fab", "square(stretched=False)"]),
        ("l1:12", ["apgd(restarts=5)", "apgd(targets=5)", "fab", "square(stretched=False)"]),
    ],
)
def test_autoattack_has_the_original_budgets(threat: str, labels: list[str]) -> None:
    attacks = [stage.attack for stage in resolve("autoattack", Threat.parse(threat))[1]]
    assert [attack.label for attack in attacks] == labels
    found = [attack.parameters for attack in attacks]
    assert [found[0]["steps"], found[1]["steps"], found[2]["steps"], found[2]["targets"], found[3]["queries"]] == [
        100, 100, 100, 9, 5000,
    ]  # fmt: skip


@pytest.mark.parametrize("threat", ["l0:5", "patch:3x3", "spatial:10"])
def test_a_suite_of_some_norms_is_refused_by_its_own_name_under_others(threat: str) -> None:
    with pytest.raises(
        UnsupportedError, match=r"suite 'autoattack' has 'apgd', .*'standard' is for every threat"
    ):
        resolve("autoattack", Threat.parse(threat))


def test_standard_breaks_no_less_than_its_parts(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    whole = robust.evaluate(net, digits, threat="linf:0.06", suite="standard", device="cpu")
    for stage in resolve("standard", whole.threat)[1][:2]:
        attack = stage.attack
        part = robust.evaluate(net, digits, threat="linf:0.06", suite=attack, device="cpu")
        assert whole.statuses["survived"] <= part.statuses["survived"]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_thorough_begins_as_standard_and_goes_on(norm: str) -> None:
    threat = Threat(norm, "1")
    standard, thorough = resolve("standard", threat)[1], resolve("thorough", threat)[1]
    assert thorough[: len(standard)] == standard
    for_all = [
        stage
        for stage in thorough[len(standard) :]
        if not stage.follows and stage.near is None and getattr(stage.attack, "near", None) is None
    ]
    assert len(for_all) >= 3  # what came near is not all that is searched further


@pytest.mark.parametrize(("norm", "eps"), [("linf", "0.001"), ("l2", "0.001")])
def test_thorough_searches_far_samples_against_every_class_and_without_gradients(
    norm: str, eps: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    few = digits[0][:8], digits[1][:8]
    report = robust.evaluate(net, few, threat=f"{norm}:{eps}", suite="thorough", device="cpu")
    survivors = report.verdicts[report.verdicts.status == "survived"]
    assert len(survivors) > 4
    per_class = 60 + 5 + 1 if norm == "linf" else 60 + 2 + 1
    least = 9 * per_class + 2 * 101 + 1000
    assert survivors.forwards.min() >= least
    spent = survivors.forwards + survivors.backwards
    assert spent.min() < 9760 / 3
    assert spent.max() < 9760 * 0.85  # with 5,000 queries where 1,000 brought it nearer


@pytest.mark.parametrize(("norm", "eps"), [("l1", "1.1"), ("l0", "2")])
def test_sparse_suites_break_all_that_single_attacks_break(
    norm: str, eps: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    def survivors(suite: str) -> set[int]:
        verdicts = robust.evaluate(net, digits, threat=f"{norm}:{eps}", suite=suite, device="cpu").verdicts
        return set(verdicts.sample_id[verdicts.status == "survived"])

    whole = survivors("standard")
    assert len(whole) <= len(survivors("fmn"))
    assert len(whole) < len(survivors("sigma-zero" if norm == "l0" else "pgd"))


def test_every_suite_says_what_it_is() -> None:
    assert all(SUITES[name].__doc__ for name in SUITES)


def test_small_numbers_of_classes_have_fewer_targets() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    report = robust.evaluate(model, (x, y), threat="linf:0.2", device="cpu")
    assert report.statuses["error"] == 0
    assert report.verdicts.forwards.max() <= 1 + 11 + 11 + 2 * (14 + 26 + 4 * 28) + 100 + 2000 + 6 * 150


@pytest.mark.parametrize(
    ("suite", "got"),
    [
        ([{"steps": 3}], "got none beside steps=3;"),
        ([{"nmae": "pgd"}], "got none beside nmae='pgd';"),
        ({"name": None}, "got none;"),
        ({"name": 5}, "got 5;"),
    ],
)
def test_an_attack_without_a_name_is_told_so(suite: object, got: str) -> None:
    with pytest.raises(
        InputError, match=f"attack: expected a mapping with a `name`, {got} `robust list attacks`"
    ):
        resolve(suite, Threat("linf", "0.1"))  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match="defense: expected a mapping with a `name`, got none; `robust list defenses`"
    ):
        make_defense({})


@pytest.mark.parametrize("suite", [3, APGD, None])
def test_a_suite_of_the_wrong_type_is_named(
    suite: object, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(InputError, match="suite: expected the name of a suite"):
        robust.evaluate(net, digits, threat="linf:0.1", suite=suite, device="cpu")  # type: ignore[arg-type]


@pytest.mark.parametrize("threat", ["linf:0.1", "l2:1"])
def test_curves_go_towards_several_classes_as_single_evaluations_do(threat: str) -> None:
    """The likeliest class need not be the nearest: without, curves of recurrent nets lay above single evaluations.

    And without small steps where gradients turn, those of nets behind logarithms.
    """
    below = resolve_below("standard", Threat.parse(threat))
    _, whole = resolve("standard", Threat.parse(threat))
    towards = next(stage for stage in whole if stage.attack.name == "multitargeted")
    assert below is not None
    assert towards in below
    small = [stage for stage in whole if stage.turning is not None]
    assert small == [stage for stage in below if stage.turning is not None] != []


@pytest.mark.parametrize("threat", ["linf:0.1", "l2:1"])
def test_thorough_goes_on_in_curves_as_in_single_evaluations(threat: str) -> None:
    parsed = Threat.parse(threat)
    standard, thorough = (resolve(suite, parsed)[1] for suite in ("standard", "thorough"))
    below, longer = (resolve_below(suite, parsed) for suite in ("standard", "thorough"))
    assert below is not None
    assert longer == [*below, *thorough[len(standard) :]]
    assert resolve_below("quick", parsed) is None


@pytest.mark.parametrize("threat", ["l1:4", "l0:3", "patch:3x4"])
def test_without_searches_that_begin_at_a_break_curves_have_the_suite_itself(threat: str) -> None:
    assert resolve_below("standard", Threat.parse(threat)) is None
