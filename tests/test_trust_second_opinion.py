"""The second opinion of random search on what gradients left standing."""

from __future__ import annotations

import pytest
from torch import Tensor, nn
from wrapped import PartlyDetached

import robust
from robust.attacks import PGD
from robust.diagnose import review
from robust.parts import Plan, attack_part, join
from robust.report import Report
from robust.run import Run, Settings
from robust.run_checks import second_opinion
from robust.sources import as_samples
from robust.suites import Stage
from robust.target import Target
from robust.threat import Threat


def test_random_search_gives_a_second_opinion(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    suite = [{"name": "pgd", "steps": 25, "loss": "margin"}]
    masked = robust.evaluate(PartlyDetached(net), digits, threat="linf:0.1", suite=suite, device="cpu")
    honest = robust.evaluate(net, digits, threat="linf:0.05", suite=suite, device="cpu")
    assert "black-box-wins" in {finding["check"] for finding in masked.findings}
    assert masked.trust == "unreliable"
    assert honest.findings == []
    assert honest.checks["asked"] > 3
    assert honest.checks["nearer"] == 0


def test_the_second_opinion_is_on_what_much_was_spent_on(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    samples = as_samples(digits, bounds=(0.0, 1.0))
    run = Run(Target(net, device="cpu"), samples, Threat.parse("linf:0.02"), Settings())
    with run.target:
        run.look()
        run.verdicts.forwards += 480  # half of them are to be asked
        second_opinion(run, [Stage(PGD(steps=10))])
    assert 0.3 * run.verdicts.standing < run.checks["asked"] < 0.7 * run.verdicts.standing
    assert run.checks["nearer"] > 2  # no gradient was ever used here


def test_what_the_second_opinion_breaks_is_said(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    run = Run(
        Target(net, device="cpu"), as_samples(digits, bounds=(0.0, 1.0)), Threat.parse("linf:0.3"), Settings()
    )
    with run.target:
        run.look()
        second_opinion(run, [Stage(PGD(steps=10))])
    crossed = run.checks["crossed"]
    assert 0 < crossed <= run.checks["asked"]
    (finding,) = review([], run.correct, cascade=True, checks=run.checks)
    assert f", {crossed} of them across the boundary" in finding.message


def test_the_second_opinion_is_the_same_in_parts(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    samples, settings = as_samples(digits, bounds=(0.0, 1.0)), Settings(micro_batch=16)
    threat = Threat.parse("linf:0.1")
    plan = Plan(threat, "pgd", [Stage(PGD(steps=10, loss="margin"))], True)

    def report(*ranges: range) -> Report:
        target = Target(PartlyDetached(net).eval(), device="cpu")
        parts = [attack_part(target, samples, plan, settings, rows) for rows in ranges]
        return join(parts, plan, data=samples.about, n=len(samples))

    whole, cut = report(range(64)), report(range(20), range(20, 64))
    assert whole.findings == cut.findings
    assert whole.checks["asked"] == cut.checks["asked"]
    assert whole.checks["nearer"] == cut.checks["nearer"]
    assert whole.checks["crossed"] == cut.checks["crossed"]


@pytest.mark.parametrize("attack", ["fmn", "fab", "ddn"])
def test_minimum_norm_searches_alone_get_no_second_opinion(
    attack: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """They raise no margin inside the threat, so that random search seems to come nearer."""
    report = robust.evaluate(net, digits, threat="l2:0.3", suite=attack, device="cpu")
    assert report.checks["asked"] == 0
    assert "black-box-wins" not in {finding["check"] for finding in report.findings}
