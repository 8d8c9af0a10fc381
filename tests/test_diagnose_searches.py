"""Checks that search on their own: random search where gradients lead nowhere, and those of diagnose='full'."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from wrapped import Wrap, same, winners, with_gradient

import robust
from robust.attacks import PGD, Attack, SigmaZero
from robust.diagnose import Subject
from robust.diagnose.probes import monotone, step_size
from robust.suites import resolve
from robust.target import Target
from robust.threat import Threat

turned = with_gradient(torch.neg)


def halves(x: Tensor) -> Tensor:
    return (2 * x).round() / 2


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
def test_standard_searches_at_random_for_few_values_in_l1_and_l0(
    threat: str, before: Callable[[Tensor], Tensor], net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    masked = robust.evaluate(Wrap(net, before, same).eval(), digits, threat=threat, device="cpu")
    assert "sparse-search-wins" in {finding["check"] for finding in masked.findings}, masked.findings
    assert masked.trust.startswith("unreliable"), masked.trust
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
