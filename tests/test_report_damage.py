"""A report.json in which something else stands than `Report.save` wrote: it loads, and can be used, or is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robust import evaluate
from robust.errors import RobustError, StoreError
from robust.leaderboard import Record
from robust.report import Report

DEFENSE: dict[str, Any] = {"name": "none", "parameters": {}}
Digits = tuple[Tensor, Tensor]
Place = tuple[str | int, ...]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 2**64, 10**400, 1e308, float("inf"), float("nan"), "x", "l0", "0.1", "gradient"])
    | st.floats()
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture
def saved(tmp_path: Path, net: nn.Module, digits: Digits) -> Path:
    return evaluate(net, digits, threat="linf:0.1", suite="quick", minimize=True, device="cpu").save(tmp_path)


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Every key and position below a value."""
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        yield (*place, step)
        yield from places(inner, (*place, step))


def holder(content: Any, place: Place) -> Any:
    """What holds the last key of a place."""
    for step in place[:-1]:
        content = content[step]
    return content


def write(folder: Path, content: Any) -> None:
    (folder / "report.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("checks",), {}, "checks.forwards: is missing"),
        (("checks",), "l0", "checks: expected an object, got 'l0'"),
        (("checks", "forwards"), "x", "checks.forwards: expected a whole number, got 'x'"),
        (("checks", "seconds"), -1, "checks.seconds: expected greater than or equal to 0, got -1"),
        (("data",), "x", "data: expected an object, got 'x'"),
        (("data", "class_names"), {"a": 1}, "data.class_names: expected a list, got {'a': 1}"),
        (("attacks",), [-1], "attacks.0: expected an object, got -1"),
        (("attacks", 1, "access"), "x", "attacks.1.access: expected 'gradient', 'score' or 'decision', got 'x'"),
        (("findings",), [-1], "findings.0: expected an object, got -1"),
        (("findings",), 1e308, "findings: expected a list, got 1e+308"),
    ],
)  # fmt: skip
def test_the_damaged_key_of_a_report_is_named(saved: Path, place: Place, value: Any, said: str) -> None:
    content = json.loads((saved / "report.json").read_text())
    holder(content, place)[place[-1]] = value
    write(saved, content)
    with pytest.raises(StoreError) as caught:
        Report.load(saved)
    expected = "expected a folder that Report.save wrote"
    assert str(caught.value) == f"report: cannot read {saved}: report.json: {said}; {expected}"


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_report_with_a_changed_key_can_be_used_or_is_refused(saved: Path, data: st.DataObject) -> None:
    whole = saved / "whole.json"
    if not whole.exists():
        (saved / "report.json").rename(whole)
    content = json.loads(whole.read_text())
    place = data.draw(st.sampled_from(sorted(places(content), key=str)))
    if data.draw(st.booleans()) and isinstance(place[-1], str):
        del holder(content, place)[place[-1]]
    else:
        holder(content, place)[place[-1]] = data.draw(VALUES)
    write(saved, content)
    with suppress(RobustError):
        report = Report.load(saved)
        assert str(report)
        assert report.to_dict()
        assert len(report.curve(["0.1"])) == 1
        assert Record.from_report(report, name="net", defense=DEFENSE).dumps()


def test_a_report_nested_too_deep_is_refused(saved: Path) -> None:
    (saved / "report.json").write_text("[" * 100_000)
    with pytest.raises(StoreError, match="cannot read"):
        Report.load(saved)
