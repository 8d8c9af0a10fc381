"""The zoo: every planted flaw trips its named check, honest models trip none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from toy import ENOUGH

import robust
from robust.attacks import FGSM, PGD, Attack, SigmaZero
from robust.diagnose import CHECKS, Subject, checks_page, review, review_passes
from robust.diagnose.preflight import preflight
from robust.diagnose.probes import monotone, step_size
from robust.errors import InputError
from robust.oracle import Oracle
from robust.report import Report
from robust.run import Run, Settings
from robust.sources import as_samples, load_data
from robust.suites import Stage, resolve
from robust.target import Target
from robust.threat import Threat
from robust.transforms import JPEG


class Wrap(nn.Module):
    """A model with something in front of it and behind it."""

    def __init__(
        self, net: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


def same(t: Tensor) -> Tensor:
    return t


def batch_statistics(x: Tensor) -> Tensor:
    return (x - x.mean(0, keepdim=True)) / (x.std(0, keepdim=True, correction=0) + 0.1)


def descend(x: Tensor) -> Tensor:
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(point.square().sum(), point)
    return x - 0.01 * gradient


def by_mode(x: Tensor) -> Tensor:
    return x if torch.is_grad_enabled() else (x * 3).round() / 3


def winners(x: Tensor) -> Tensor:
    """k-WTA: of the pixels only the highest fifth, which ones jumps with the smallest change."""
    flat = (x + 0.3 * (x * 997).sin()).flatten(1)
    least = flat.topk(flat.shape[1] // 5, dim=1).values[:, -1:]
    return (flat * (flat >= least)).view_as(x)


class Backwards(torch.autograd.Function):
    """Passes inputs through and gradients turned round."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return -gradient


def turned(x: Tensor) -> Tensor:
    out: Tensor = Backwards.apply(x)  # type: ignore[no-untyped-call]
    return out


def halves(x: Tensor) -> Tensor:
    return (2 * x).round() / 2


FLAWS: dict[str, tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "noise at inference": ("randomized", lambda x: x + 0.05 * torch.randn_like(x), same),
    "dropout at inference": ("randomized", lambda x: nn.functional.dropout(x, 0.2, training=True), same),
    "batch statistics": ("batch-dependent", batch_statistics, same),
    "softmax": ("probabilities", same, lambda z: z.softmax(1)),
    "detached": ("detached-graph", same, lambda z: z.detach()),
    "bit depth": ("zero-gradient", lambda x: (x * 7).round() / 7, same),
    "logits x 1e3": ("logit-scale", same, lambda z: z * 1e3),
    "logits x 1e6": ("logit-scale", same, lambda z: z * 1e6),
    "optimises at inference": ("dynamic-defense", descend, same),
    "deployed with quantised inputs": ("gradient-model", by_mode, same),
    "k winners take all": ("unstable-loss", winners, same),
    "JPEG": ("detached-graph", lambda x: JPEG(quality=75)(x), same),
    "bit depth, searched in the whole box": ("unbounded", lambda x: (x * 7).round() / 7, same),
}


def test_watching_autograd_in_two_threads_leaves_it_as_it_was(digits: tuple[Tensor, Tensor]) -> None:
    """The second would begin while the first is in its model, and end after it."""
    inside, second = threading.Event(), threading.Event()

    def first_pass(x: Tensor) -> Tensor:
        inside.set()
        second.wait(0.2)
        return x

    def second_pass(x: Tensor) -> Tensor:
        if not second.is_set():
            second.set()
            time.sleep(0.2)
        return x

    def watch(before: Callable[[Tensor], Tensor]) -> None:
        model = Wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), before, same)
        with Target(model, device="cpu") as target:
            preflight(target, *digits)

    grad, backward = torch.autograd.grad, torch.autograd.backward
    threads = [threading.Thread(target=watch, args=(before,)) for before in (first_pass, second_pass)]
    try:
        threads[0].start()
        inside.wait(10)
        threads[1].start()
        for thread in threads:
            thread.join()
        assert (torch.autograd.grad, torch.autograd.backward) == (grad, backward)
    finally:
        torch.autograd.grad, torch.autograd.backward = grad, backward


def look(model: nn.Module, digits: tuple[Tensor, Tensor]) -> Report:
    return robust.evaluate(model, digits, threat="linf:0.05", suite=ENOUGH, device="cpu")


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_planted_flaw_trips_its_check(flaw: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    check, before, after = FLAWS[flaw]
    with torch.random.fork_rng():
        report = look(Wrap(net, before, after).eval(), digits)
    assert check in {finding["check"] for finding in report.findings}
    assert report.trust != "trusted"


class Adapting(nn.Module):
    """A net that moves a little towards what it is asked, as adaptation at test time does."""

    def __init__(self, net: nn.Module, rate: float) -> None:
        super().__init__()
        self.net, self.rate = net, rate
        self.register_buffer("centre", torch.zeros(1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.centre, Tensor)
        self.centre.add_(self.rate * (x.detach().mean(0) - self.centre))
        out: Tensor = self.net(x - self.centre)
        return out


def test_a_model_that_changes_while_it_is_attacked_is_told(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    report = robust.evaluate(Adapting(net, 1e-5).eval(), digits, threat="linf:0.05", device="cpu")
    assert [finding["check"] for finding in report.findings] == ["stateful"]
    assert report.trust == "unreliable"


@dataclass(frozen=True)
class Spoiling(FGSM):
    """Writes into the model's weights, through a reference of its own."""

    weight: ClassVar[Tensor]

    def run(self, oracle: Oracle) -> Tensor:
        self.weight.mul_(-1)
        return super().run(oracle)


def test_an_attack_that_writes_into_the_weights_is_told(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    Spoiling.weight = next(iter(net.parameters())).data
    report = robust.evaluate(net, digits, threat="linf:0.05", suite=[Spoiling()], device="cpu")
    assert "stateful" in {finding["check"] for finding in report.findings}
    assert report.trust == "unreliable"


def distilled(teacher: nn.Module, temperature: float) -> nn.Module:
    """A student of a small net's soft labels at that temperature, deployed at 1 (Papernot et al. 2016)."""
    x = load_data("builtin:digits:train").rows(slice(None))
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(student.parameters(), 5e-3)
    with torch.no_grad():
        soft = teacher(x).softmax(1)
    for _ in range(150):
        for rows in torch.randperm(len(x)).split(256):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(student(x[rows]) / temperature, soft[rows])
            loss.backward()
            optimizer.step()
    return student.eval()


def test_defensive_distillation_at_a_high_temperature_is_told(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = distilled(net, 100.0)
    suite = [{"name": "pgd", "steps": 10}, {"name": "pgd", "steps": 10, "loss": "margin"}]
    report = robust.evaluate(student, digits, threat="linf:0.15", suite=suite, cascade=False, device="cpu")
    assert report.clean_accuracy > 0.9
    assert {"loss-gap", "logit-scale"} <= {finding["check"] for finding in report.findings}
    assert report.trust != "trusted"


HONEST: dict[str, Callable[[nn.Module], nn.Module]] = {
    "trained": lambda net: net,
    "untrained": lambda _: nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.GELU(), nn.Linear(20, 10)),
    "linear": lambda _: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    "small logits": lambda net: Wrap(net, same, lambda z: z / 50),
    "log-softmax": lambda net: Wrap(net, same, lambda z: z.log_softmax(1)),
    "smooth input": lambda net: Wrap(net, lambda x: nn.functional.avg_pool2d(x, 3, 1, 1), same),
}


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_model_trips_none(kind: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        report = look(HONEST[kind](net).eval(), digits)
    assert report.findings == []
    assert report.trust == "trusted"


def test_random_search_exposes_gradients_that_lead_nowhere(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    suite = [{"name": "pgd", "steps": 10, "random_start": False}, {"name": "square", "queries": 300}]
    masked = robust.evaluate(
        Wrap(net, turned, same).eval(), digits, threat="linf:0.12", suite=suite, device="cpu"
    )
    honest = robust.evaluate(net, digits, threat="linf:0.12", suite=suite, device="cpu")
    assert "black-box-wins" in {finding["check"] for finding in masked.findings}
    assert "black-box-wins" not in {finding["check"] for finding in honest.findings}


@pytest.mark.parametrize(("threat", "before"), [("l1:4", halves), ("l0:20", turned)], ids=["l1", "l0"])
def test_standard_probes_at_random_in_l1_and_l0_too(
    threat: str, before: Callable[[Tensor], Tensor], net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    masked = robust.evaluate(Wrap(net, before, same).eval(), digits, threat=threat, device="cpu")
    assert "black-box-wins" in {finding["check"] for finding in masked.findings}, masked.findings
    assert robust.evaluate(net, digits, threat=threat, device="cpu").trust == "trusted"


def waves(x: Tensor) -> Tensor:
    return x + 0.2 * (x * 40).sin()


SEARCHED: dict[str, tuple[set[str], Callable[[Tensor], Tensor], Attack | str, str]] = {
    "steps too small": ({"not-converged", "doubled-budget", "step-size"}, same, PGD(steps=10, step_size=0.02), "linf:0.1"),
    "gradients turned round": ({"random-noise", "binarization"}, turned, "quick", "linf:0.3"),
    "a surface of waves": ({"monotone"}, waves, "quick", "linf:0.1"),
    "k winners take all": ({"doubled-budget", "monotone", "binarization"}, winners, "quick", "linf:0.05"),
}  # fmt: skip


@pytest.mark.parametrize("flaw", SEARCHED)
def test_a_flaw_is_found_by_checks_that_search(
    flaw: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    expected, before, suite, threat = SEARCHED[flaw]
    report = robust.evaluate(
        Wrap(net, before, same).eval(), digits, threat=threat, suite=suite, device="cpu", diagnose="full"
    )
    assert expected <= {finding["check"] for finding in report.findings}
    assert report.checks["forwards"] > 0
    assert report.failures == []


@pytest.mark.parametrize("threat", ["linf:0.1", "l2:0.5", "l2:1"])
def test_an_honest_model_passes_the_checks_that_search(
    threat: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    digits = digits[0][:24], digits[1][:24]
    plain = robust.evaluate(net, digits, threat=threat, device="cpu")
    report = robust.evaluate(net, digits, threat=threat, device="cpu", diagnose="full")
    assert report.findings == []
    assert report.failures == []
    assert report.verdicts.status.equals(plain.verdicts.status)


@pytest.mark.parametrize("threat", ["linf:0.1", "l2:0.5"])
def test_the_longest_search_of_standard_is_traced(
    threat: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """Whichever way it asks: without a trace `not-converged` has nothing to judge."""
    x, y = digits[0][:8], digits[1][:8]
    attacks = [stage.attack for stage in resolve("standard", Threat.parse(threat))[1]]
    with Target(net, device="cpu") as target:
        survived = torch.ones(8, dtype=torch.bool)
        subject = Subject(target, Threat.parse(threat), x, y, torch.arange(8), survived, attacks, 8, 0)
        assert subject.longest is not None
        trace = subject.trace(subject.longest, torch.arange(8))
    assert len(trace) >= subject.longest.steps  # type: ignore[attr-defined]
    assert bool((trace[1:] >= trace[:-1]).all())


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
    assert [finding.check for finding in found] == ["black-box-wins"] * fires


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


@pytest.mark.parametrize("draws", [None, 4])
def test_what_one_evaluation_finds_of_the_outputs_the_next_one_finds_again(
    draws: int | None, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    target = Target(Wrap(net, same, lambda logits: logits.softmax(1)).eval(), device="cpu")
    threats = ("linf:0.1", "linf:0.1", "l2:0.5")
    reports = [robust.evaluate(target, digits, threat=threat, suite="fgsm", eot=draws) for threat in threats]
    assert all("probabilities" in {f["check"] for f in report.findings} for report in reports)
    assert reports[0].findings == reports[1].findings
    declared = Target(target.model, device="cpu", probabilities=True)
    quiet = robust.evaluate(declared, digits, threat="linf:0.1", suite="fgsm")
    assert "probabilities" not in {f["check"] for f in quiet.findings}


def test_probes_of_the_step_leave_alone_what_pgd_does_not_know(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    report = robust.evaluate(net, digits, threat="l0:4", device="cpu", diagnose="full")
    assert not {"step-size", "monotone"} & {finding["check"] for finding in report.findings}
    x, y = digits[0][:8], digits[1][:8]
    with Target(net, device="cpu") as target:
        subject = Subject(
            target, Threat.parse("l0:4"), x, y, torch.arange(8), torch.ones(8, dtype=torch.bool), [SigmaZero()], 8, 0
        )  # fmt: skip
        assert (step_size(subject), monotone(subject), subject.forwards) == (None, None, 0)


def test_searches_for_the_nearest_point_pass_no_break_in_silence(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    for threat in ("linf:0.1", "l2:0.6"):
        found = robust.evaluate(net, digits, threat=threat, device="cpu", minimize=True).findings
        assert "silent-success" not in {finding["check"] for finding in found}


def test_diagnose_is_named_when_it_is_wrong(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match="diagnose: expected 'standard' or 'full', got 'all'"):
        robust.evaluate(net, digits, threat="linf:0.1", diagnose="all")  # type: ignore[arg-type]


def test_the_page_of_checks_is_the_registry() -> None:
    page = (Path(__file__).parent.parent / "docs" / "checks.md").read_text(encoding="utf-8")
    assert page == checks_page()


def test_every_check_says_what_to_do() -> None:
    for name in CHECKS:
        check = CHECKS[name]
        finding = check.finding("something was seen")
        assert check.rule
        assert check.detects
        assert check.advice in finding.message


def test_without_gradients_nothing_is_claimed(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    report = look(Wrap(net, same, lambda z: z.detach()).eval(), digits)
    assert report.trust == "unreliable"
    assert all(entry["attacked"] == 0 for entry in report.attacks)
    blind = robust.evaluate(
        Wrap(net, same, lambda z: z.detach()).eval(), digits, threat="linf:0.15",
        suite=[{"name": "square", "queries": 200}], device="cpu",
    )  # fmt: skip
    assert blind.statuses["broken"] > 3


def test_probabilities_are_attacked_on_their_logarithm(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    plain = look(net, digits)
    soft = look(Wrap(net, same, lambda z: z.softmax(1)).eval(), digits)
    assert abs(plain.statuses["survived"] - soft.statuses["survived"]) <= 1


def test_the_same_attack_with_another_loss_exposes_masking(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    suite = [{"name": "pgd", "steps": 10}, {"name": "pgd", "steps": 10, "loss": "margin"}]
    report = robust.evaluate(
        Wrap(net, same, lambda z: z * 1e6).eval(),
        digits,
        threat="linf:0.15",
        suite=suite,
        cascade=False,
        device="cpu",
    )
    assert {"loss-gap", "logit-scale"} <= {finding["check"] for finding in report.findings}
