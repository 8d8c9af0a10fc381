"""Short memory costs time alone: batches grow smaller, and nothing is lost or counted twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import evaluate
from torch import Tensor, nn
from wrapped import Picky

import robust
from robust import engine
from robust import run as run_module
from robust.attacks import PGD
from robust.audit import Audit, audit_twice
from robust.target import Target

Digits = tuple[Tensor, Tensor]


@pytest.mark.parametrize("room", [40, 20, 1])
@pytest.mark.parametrize("batch_size", [64, "auto"])
def test_short_memory_costs_time_alone(
    room: int, batch_size: int | str, net: nn.Module, digits: Digits
) -> None:
    plain = evaluate(net, digits, suite="pgd")
    report = evaluate(Picky(net, room=room), digits, suite="pgd", batch_size=batch_size)
    assert report.statuses == plain.statuses
    assert report.failures == []


def test_short_memory_in_a_check_makes_it_in_smaller_batches(
    net: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def hungry(subject: robust.diagnose.Subject) -> None:
        sizes.append(subject.micro_batch)
        if subject.micro_batch > 10:
            raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(robust.diagnose, "BRIEF", (hungry,))
    report = evaluate(net, digits, suite="pgd", batch_size=32)
    assert sizes == [32, 16, 8]
    assert report.failures == []


def test_short_memory_while_copies_are_timed_leaves_the_model_as_it_is(
    net: nn.Module, digits: Digits
) -> None:
    with Target(Picky(net, room=2), device="cpu") as target:
        assert engine.fastest(target, *digits, rows=10_000) == (target, engine.PLAIN)


def test_short_memory_while_claims_are_judged_counts_nothing_twice(
    net: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = evaluate(net, digits, suite=PGD(steps=3), batch_size=16)
    asked: list[int] = []

    def short_once(*args: Any, **options: Any) -> tuple[Audit, Tensor]:
        asked.append(1)
        if len(asked) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return audit_twice(*args, **options)

    monkeypatch.setattr(run_module, "audit_twice", short_once)
    report = evaluate(net, digits, suite=PGD(steps=3), batch_size=16)
    assert len(asked) > 2
    counts = ("broke", "survived", "rejected", "errors", "forwards", "backwards")
    for entry, wanted in zip(report.attacks, plain.attacks, strict=True):
        assert [entry[key] for key in counts] == [wanted[key] for key in counts]
    assert report.verdicts.forwards.tolist() == plain.verdicts.forwards.tolist()
    assert report.checks["forwards"] > plain.checks["forwards"]
