"""Suites: what they hold, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import robust
from robust.attacks import APGD, FAB, FGSM, PGD, Attack
from robust.defenses import make_defense
from robust.errors import InputError, UnsupportedError
from robust.oracle import Access, Oracle
from robust.run import Run, Settings
from robust.sources import as_samples, spool
from robust.suites import SUITES, Stage, resolve, resolve_below
from robust.target import Target
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
    ("norm", "passes", "more"),
    [("linf", 11 + 9 + 7 + 13 + 55 + FAR, 0), ("l2", 8 + 12 + 8 + 55 + 26 + 53 + FAR, 25 + 51 + 61)],
)
def test_what_is_far_from_its_boundary_costs_little(
    norm: str, passes: int, more: int, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """Of these margins hardly move, which could be a plateau: nine classes of six passes are a part of it.

    In l2 DDN goes on where it comes nearer than FAB did: `more`.
    """
    report = robust.evaluate(net, digits, threat=f"{norm}:0.001", suite="standard", device="cpu")
    survivors = report.verdicts[report.verdicts.status == "survived"]
    assert len(survivors) > 50
    assert 1 + passes <= survivors.forwards.median() <= 2 + passes
    assert survivors.forwards.max() <= 1 + passes + more + 200  # random search sees a few per cent
    assert survivors.backwards.max() <= passes + more


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_two_classes_are_enough(norm: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    model = nn.Sequential(net, nn.Linear(10, 2))
    with torch.no_grad():
        model[1].weight.copy_((torch.arange(10) // 5 == torch.arange(2)[:, None]).float())
        labels = model.eval()(digits[0]).argmax(1)
    report = robust.evaluate(model, (digits[0], labels), threat=f"{norm}:0.2", device="cpu")
    assert report.failures == []
    assert report.statuses["error"] == 0


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


class _Corner(nn.Module):
    """Another class where either of two values is over .6."""

    def forward(self, x: Tensor) -> Tensor:
        gap = x.flatten(1).amax(1) - 0.6
        return torch.stack([torch.zeros_like(gap), gap], 1)


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
        Target(_Corner(), device="cpu"), as_samples((x, torch.zeros(2, dtype=torch.int64)), bounds=(0.0, 1.0)),
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


def test_two_classes_leave_nothing_to_a_search_of_others() -> None:
    x, y = torch.tensor([[0.2, 0.2]]).view(1, 1, 1, 2), torch.zeros(1, dtype=torch.int64)
    others = FAB(targets=6, skip=2)
    (spent,) = robust.evaluate(_Corner(), (x, y), threat="l2:0.1", suite=[others], device="cpu").attacks
    assert (spent["forwards"], spent["backwards"]) == (0, 0)
    report = robust.evaluate(_Corner(), (x.repeat(8, 1, 1, 1), y.repeat(8)), threat="l2:0.01", device="cpu")
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


class Gated(nn.Module):
    """Two classes; a hundred of 784 values count, and none of them before it is over .7: three make the second class."""

    def __init__(self) -> None:
        super().__init__()
        counts = torch.randperm(784, generator=torch.Generator().manual_seed(0)) < 100
        self.weight = nn.Parameter(counts / 0.3)

    def forward(self, x: Tensor) -> Tensor:
        score = (torch.relu(x.flatten(1) - 0.7) * self.weight).sum(1) - 2.5
        return torch.stack([-score, score], 1)


def test_in_l1_starts_far_outside_see_what_the_papers_radii_do_not() -> None:
    samples = torch.zeros(20, 1, 28, 28), torch.zeros(20, dtype=torch.int64)
    paper = robust.evaluate(Gated(), samples, threat="l1:3.5", suite=APGD(restarts=5), device="cpu")
    report = robust.evaluate(Gated(), samples, threat="l1:3.5", suite="standard", device="cpu")
    assert report.robust_accuracy < paper.robust_accuracy - 0.2
    assert report.trust != "trusted"  # every one can be broken


def test_in_l0_random_search_sees_what_gradients_do_not() -> None:
    samples = torch.zeros(20, 1, 28, 28), torch.zeros(20, dtype=torch.int64)
    descent = robust.evaluate(Gated(), samples, threat="l0:6", suite="sigma-zero", device="cpu")
    report = robust.evaluate(Gated(), samples, threat="l0:6", suite="standard", device="cpu")
    assert report.robust_accuracy == 0 < descent.robust_accuracy
    assert report.trust != "trusted"


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


class Plateau(nn.Module):
    """Brighter leads over the edge, but until then the label gains more by it than the class that lies behind."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).mean(1) - 0.5
        edge = 100 * (bright - 0.08).clamp_min(0)
        rest = torch.full_like(bright, -0.1)
        return torch.stack([1 + 0.05 * bright, 0.01 * bright + edge, rest, 2 * rest], 1)


@pytest.mark.parametrize("threat", ["linf:0.1", "l2:0.8"])
def test_what_margins_do_not_see_from_a_plateau_is_broken(threat: str) -> None:
    x, y = torch.full((16, 1, 8, 8), 0.5), torch.zeros(16, dtype=torch.int64)
    report = robust.evaluate(Plateau(), (x, y), threat=threat, device="cpu")
    assert report.robust_accuracy == 0
    (off,) = (attack for attack in report.attacks if attack["selection"].get("flat") == 0.95)
    assert off["broke"] >= 1
    assert off["survived"] == 0


class LevelClasses(nn.Module):
    """Nine classes are as unlikely as one another, and gain alike, each along its own signs; the least likely alone has an edge."""

    def __init__(self, length: float) -> None:
        super().__init__()
        signs = torch.randint(0, 2, (9, 64), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
        self.along = signs / length

    def forward(self, x: Tensor) -> Tensor:
        moved = (x.flatten(1) - 0.5) @ self.along.T
        edge = 6 * (moved[:, 8:] - 0.5).clamp_min(0)
        label = torch.ones_like(edge)
        return torch.cat([label, 0.2 + 0.15 * moved[:, :8], 0.199 + 0.15 * moved[:, 8:] + edge], 1)


@pytest.mark.parametrize(("threat", "length"), [("linf:0.1", 64 * 0.1), ("l2:0.8", 8 * 0.8)])
def test_where_the_logits_tell_no_class_from_another_all_are_tried(threat: str, length: float) -> None:
    """Ascents on any loss of all classes go along the signs of several, and steps towards a few likeliest classes miss the one."""
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + 0.002 * torch.randn(12, 1, 8, 8, generator=generator)
    data = x, torch.zeros(12, dtype=torch.int64)
    report = robust.evaluate(LevelClasses(length), data, threat=threat, device="cpu")
    assert report.robust_accuracy == 0
    (towards_nine,) = (
        attack for attack in report.attacks if attack["selection"].get("level") and attack["broke"]
    )
    assert towards_nine["label"] == "apgd(steps=5,targets=9)"
    assert towards_nine["broke"] == 12


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


class Gaussians(nn.Module):
    """How near a hundred centres are."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.rand(100, features))

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(x, self.centres).square() / (2 * 0.01 * x.shape[1]))


def test_in_l2_nets_of_gaussian_units_on_few_features_are_as_weak_as_targeted_ascents_say() -> None:
    """Another class than that in the lead breaks, and of samples that did not come as near as where images break."""
    generator = torch.Generator().manual_seed(99)
    centres, classes = torch.rand(40, 20, generator=generator), torch.randint(4, (40,), generator=generator)
    drawn = torch.randint(40, (2150,), generator=generator)
    x = (centres[drawn] + 0.06 * torch.randn(2150, 20, generator=generator)).clamp(0, 1)
    y = classes[drawn]
    torch.manual_seed(2)
    net = nn.Sequential(Gaussians(20), nn.Linear(100, 4))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(1200):
        rows = slice(100 * (step % 20), 100 * (step % 20 + 1))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    data = x[2000:], y[2000:]
    report = robust.evaluate(net, data, threat="l2:0.626", device="cpu")
    aimed = robust.evaluate(net, data, threat="l2:0.626", suite=APGD(targets=3), device="cpu")
    assert report.statuses["survived"] <= aimed.statuses["survived"] + 1
    (late,) = (entry for entry in report.attacks if entry["selection"]["near"] == 0.15)
    assert late["broke"] > 0
