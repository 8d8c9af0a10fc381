"""Ctrl-C in the checks and around an attack: the verdicts that were reached are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import evaluate
from torch import Tensor, nn

from robust import run_checks
from robust.attacks import FGSM, PGD
from robust.evaluation import Interrupted
from robust.oracle import Oracle
from robust.report import Report
from robust.run import Progress, Run

Digits = tuple[Tensor, Tensor]


def test_ctrl_c_in_the_checks_keeps_the_verdicts(
    net: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = evaluate(net, digits)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def stop_at_checks(now: Progress) -> None:
        if now.stage == "checks":
            raise KeyboardInterrupt

    def cut(**options: Any) -> Report:
        with pytest.raises(Interrupted) as caught:
            evaluate(net, digits, **options)
        return caught.value.report

    in_probes = cut(progress=stop_at_checks)
    monkeypatch.setattr(run_checks, "_search_blindly", stop)
    for report in (in_probes, cut()):
        assert report.verdicts.status.tolist() == plain.verdicts.status.tolist()
        assert report.trust == "unreliable"
        assert "interrupted" in {finding["check"] for finding in report.findings}


@pytest.mark.parametrize("place", ["_chosen", "load", "_watch", "_judge"])
def test_ctrl_c_around_an_attack_keeps_the_verdicts(
    place: str, net: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = [FGSM(), PGD(steps=3)]
    plain = evaluate(net, digits, suite=suite)
    original = getattr(Run, place)

    def stop_in_the_second(self: Run, *args: Any, **options: Any) -> object:
        if len(self.entries) == 1:
            raise KeyboardInterrupt
        return original(self, *args, **options)

    monkeypatch.setattr(Run, place, stop_in_the_second)
    with pytest.raises(Interrupted) as caught:
        evaluate(net, digits, suite=suite)
    report = caught.value.report
    assert report.attacks[0]["broke"] == plain.attacks[0]["broke"]
    first = (plain.verdicts.attack == "fgsm").to_numpy()
    assert first.any()
    assert report.verdicts[first].status.tolist() == plain.verdicts[first].status.tolist()
    assert report.statuses["survived"] == 0
    assert "interrupted" in {finding["check"] for finding in report.findings}
    for entry in report.attacks:
        assert entry["attacked"] == entry["broke"] + entry["survived"] + entry["errors"]
    spent = sum(entry["forwards"] for entry in report.attacks) + report.checks["forwards"]
    assert spent >= report.verdicts.forwards.sum() - report.n


def test_ctrl_c_counts_no_sample_as_an_error_twice(net: nn.Module, digits: Digits) -> None:
    """Some gave no numbers in the search that was cut off: they are errors by that alone."""
    clean = digits[0][:4]

    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            moved = torch.stack([(x != one).flatten(1).any(1) for one in clean]).all(0)
            nearest = torch.cdist(x.flatten(1), digits[0].flatten(1)).argmin(1)
            logits: Tensor = net(x)
            return torch.where((moved & (nearest < len(clean)))[:, None], torch.nan, logits)

    class CutOff(PGD):
        def run(self, oracle: Oracle) -> Tensor:
            super().run(oracle)
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        evaluate(Failing(), digits, suite=[CutOff(steps=1, random_start=False)])
    (entry,) = caught.value.report.attacks
    assert entry["broke"] > 0
    assert entry["attacked"] == entry["broke"] + entry["survived"] + entry["errors"]
    assert caught.value.report.failures[0].startswith(entry["label"])  # of logits that are no numbers
