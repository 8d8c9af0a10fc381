"""Parts of an evaluation, joined, are the evaluation of the whole."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import robust
from robust.errors import InputError
from robust.leaderboard import Record
from robust.parts import Part, Plan, attack_part, join
from robust.run import Settings
from robust.sources import Samples, as_samples
from robust.suites import SUITES, resolve
from robust.target import Target
from robust.threat import Threat

RADII = {"linf": "linf:0.15", "l2": "l2:0.9", "l1": "l1:4", "l0": "l0:3"}
# Suites of thousands of passes get few samples; nothing else sets the cases apart.
SIZES = {"thorough": 6, "autoattack": 6, "standard": 14}


def _cases() -> list[tuple[str, str]]:
    cases = []
    for suite in SUITES:
        for norm, threat in RADII.items():
            try:
                resolve(suite, Threat.parse(threat))
            except robust.RobustError:
                continue
            cases.append((suite, norm))
    return cases


class Small(nn.Module):
    """Two layers of fixed weights, so that thousands of passes take a second."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(torch.randn(24, 16, generator=draw) * 0.7)
        self.last = nn.Parameter(torch.randn(5, 24, generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh((x.flatten(1) - 0.5) @ self.first.T) @ self.last.T


def _samples(n: int) -> Samples:
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = Small()(x).argmax(1)
    y[::7] = (y[::7] + 1) % 5
    return as_samples((x, y))


def _of(samples: Samples) -> dict[str, Any]:
    return {"data": {"spec": samples.spec, "sha256": samples.sha256}, "n": len(samples)}


def _plan(suite: str, threat: str, *, cascade: bool = True) -> Plan:
    parsed = Threat.parse(threat)
    return Plan(parsed, *resolve(suite, parsed), cascade)


def _joined(samples: Samples, plan: Plan, cuts: list[int], micro_batch: int) -> robust.Report:
    with_seed = Settings(seed=2, micro_batch=micro_batch, precision="float32")
    ends = [0, *cuts, len(samples)]
    ranges = [range(a, b) for a, b in pairwise(ends)]
    random.Random(0).shuffle(ranges)
    target = Target(Small(), device="cpu")
    parts = [attack_part(target, samples, plan, with_seed, rows) for rows in ranges]
    return join(parts, plan, **_of(samples), seed=2)


def _record(report: robust.Report) -> str:
    record = Record.from_report(report, name="small", defense={"name": "none", "parameters": {}})
    return record.id


@pytest.mark.parametrize(("suite", "norm"), _cases())
def test_joined_parts_are_the_whole_byte_for_byte(suite: str, norm: str) -> None:
    """With one row a pass the arithmetic is alone too: not even the last bit may differ."""
    samples = _samples(SIZES.get(suite, 24))
    whole = robust.evaluate(
        Small(),
        samples,
        threat=RADII[norm],
        suite=suite,
        seed=2,
        device="cpu",
        batch_size=1,
        precision="float32",
    )
    joined = _joined(samples, _plan(suite, RADII[norm]), [1, 2, 5], 1)
    assert whole.statuses["broken"] > 0
    pd.testing.assert_frame_equal(joined.verdicts, whole.verdicts, check_exact=True)
    assert _record(joined) == _record(whole)
    assert joined.findings == whole.findings
    assert _untimed(joined) == _untimed(whole)


def _untimed(report: robust.Report) -> list[dict[str, object]]:
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in report.attacks]


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, 39), max_size=4, unique=True).map(sorted), micro_batch=st.integers(1, 50))
def test_no_cut_and_no_batch_changes_a_verdict(cuts: list[int], micro_batch: int) -> None:
    samples = _samples(40)
    plan = _plan("standard", RADII["linf"])
    whole = robust.evaluate(Small(), samples, threat=RADII["linf"], seed=2, device="cpu", precision="float32")
    joined = _joined(samples, plan, cuts, micro_batch)
    exact = ["sample_id", "label", "prediction", "status", "attack", "forwards", "backwards"]
    pd.testing.assert_frame_equal(joined.verdicts[exact], whole.verdicts[exact])
    pd.testing.assert_frame_equal(
        joined.verdicts[["margin", "distance"]], whole.verdicts[["margin", "distance"]], rtol=1e-4, atol=1e-5
    )
    assert (joined.forwards, joined.backwards) == (whole.forwards, whole.backwards)


def test_attacks_side_by_side_join_too() -> None:
    samples = _samples(30)
    plan = _plan("demo", RADII["linf"], cascade=False)
    joined, whole = (_joined(samples, plan, cuts, 1) for cuts in ([4, 20], []))
    assert _untimed(joined) == _untimed(whole)
    assert _record(joined) == _record(whole)
    assert len(joined.attacks) == 3
    assert all(entry["attacked"] == joined.clean_correct for entry in joined.attacks)


class Masked(Small):
    """Flat but for rounding: checks must fire."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1e4


def test_findings_come_once_and_in_order() -> None:
    samples = _samples(40)
    plan = _plan("demo", "linf:0.02", cascade=False)
    with_seed = Settings(micro_batch=1, precision="float32")
    reports = [
        join(
            [attack_part(Target(Masked(), device="cpu"), samples, plan, with_seed, r) for r in rows],
            plan,
            **_of(samples),
        )
        for rows in ([range(40)], [range(11, 40), range(11)])
    ]
    assert reports[0].findings == reports[1].findings
    assert reports[0].trust == reports[1].trust == "unreliable"


def _part() -> tuple[Part, Plan, Samples]:
    samples, plan = _samples(8), _plan("quick", RADII["linf"])
    return (
        attack_part(Target(Small(), device="cpu"), samples, plan, Settings(micro_batch=8), range(4)),
        plan,
        samples,
    )


def test_parts_that_are_not_the_whole_are_refused() -> None:
    part, plan, samples = _part()
    with pytest.raises(InputError, match=r"cover the 8 samples once, got \[0, 4\)"):
        join([part], plan, **_of(samples))
    with pytest.raises(InputError, match="cover"):
        join([part, part], plan, **_of(samples))
    other = replace(part, rows=(4, 8), model={**part.model, "sha256": "0" * 64})
    with pytest.raises(InputError, match="differ in model"):
        join([part, other], plan, **_of(samples))
    with pytest.raises(InputError, match="within the 8 samples"):
        attack_part(Target(Small(), device="cpu"), samples, plan, Settings(), range(4, 9))


def test_every_suite_is_tried() -> None:
    assert {suite for suite, _ in _cases()} == set(SUITES)
