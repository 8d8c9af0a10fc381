"""Verification of whole curves: nearest points, and the search that was added for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from forgeries import failed, file_alone, forge, outcomes
from safetensors.torch import load
from torch import nn

from robust import evaluate
from robust.leaderboard import Record, Store
from robust.leaderboard.claims import check_suite
from robust.leaderboard.verify import Outcome
from robust.sources import load_data
from robust.suites import VERSIONS


@pytest.mark.parametrize(
    ("suite", "threat", "named"),
    [
        ("standard", "linf:0.1", "standard+fmn"),
        ("quick", "linf:0.1", "quick+fmn"),
        ("quick", "l2:0.5", "quick+fmn"),
        ("standard", "l2:0.5", "standard"),
        (["fgsm", "fmn"], "linf:0.1", "fgsm+fmn"),
    ],
)
def test_a_record_of_a_whole_curve_stands(
    means: nn.Module, tmp_path: Path, suite: Any, threat: str, named: str
) -> None:
    """The nearest points that were found are its examples, one a sample, and a search added for the curve is known."""
    found = outcomes(minimized(means, tmp_path, suite, threat), means, rerun=5)
    assert [outcome for outcome in found if not outcome.ok] == []
    (record,) = Store(tmp_path).records()
    assert (record.suite.name, record.suite.version) == (named, VERSIONS.get(str(suite)))
    (path,) = (tmp_path / "examples").iterdir()
    assert len(load(path.read_bytes())["sample_id"]) == record.statuses.broken > 0


def minimized(model: nn.Module, folder: Path, suite: Any, threat: str, **options: Any) -> Path:
    samples = load_data("builtin:digits").limit(40)
    report = evaluate(
        model, samples, threat=threat, suite=suite, minimize=True, keep_examples=True, device="cpu", **options
    )
    return file_alone(report, folder)


def test_of_a_curve_too_the_attacks_side_by_side_stand(means: nn.Module, tmp_path: Path) -> None:
    found = outcomes(minimized(means, tmp_path, "standard", "linf:0.1", cascade=False), means, rerun=5)
    assert [outcome for outcome in found if not outcome.ok] == []


def test_a_curve_of_points_that_a_fresh_search_finds_nearer_is_caught(
    means: nn.Module, tmp_path: Path
) -> None:
    def farther(verdicts: pd.DataFrame) -> None:
        broken = verdicts["status"] == "broken"
        verdicts.loc[broken, ["distance", "nearest"]] = 0.0999

    def forget(saved: dict[str, torch.Tensor]) -> None:
        saved |= {name: rows[:0] for name, rows in saved.items()}

    honest = minimized(means, tmp_path / "honest", "quick", "linf:0.1")
    forged = forge(honest, tmp_path / "forged", table=farther, examples=forget)
    assert not failed(outcomes(forged, means))
    found = {outcome.check: outcome for outcome in outcomes(forged, means, rerun=20)}
    assert found["rerun"].ok is False
    assert "have nearer adversarial points than the record says" in found["rerun"].message


def test_a_curve_without_its_points_is_caught(means: nn.Module, tmp_path: Path) -> None:
    honest = minimized(means, tmp_path / "honest", "quick", "linf:0.1")
    forged = forge(honest, tmp_path / "forged", table=lambda verdicts: verdicts.pop("nearest"))
    assert failed(outcomes(forged, means)) == {"rows"}


def test_a_search_added_for_a_curve_is_held_to_its_suite(means: nn.Module, tmp_path: Path) -> None:
    (record,) = Store(minimized(means, tmp_path, "quick", "linf:0.1")).records()
    content = record.model_dump(mode="json")

    def suite(change: Callable[[dict[str, Any]], Any]) -> Outcome:
        forged = json.loads(json.dumps(content))
        change(forged)
        return check_suite(Record.model_validate(forged))

    assert suite(lambda c: None).ok is True
    assert suite(lambda c: c["attacks"][2]["parameters"].update(steps=1)).ok is False
    assert suite(lambda c: c["attacks"].pop(2)).ok is False
    assert suite(lambda c: c["suite"].update(minimize=False)).ok is None
    assert suite(lambda c: c["suite"].update(version=1)).ok is True  # in linf it was the same
    assert suite(lambda c: (c["suite"].update(version=1), c["attacks"].pop(0))).ok is False
    assert (
        suite(lambda c: (c["suite"].update(version=1), c["attacks"][2]["parameters"].update(steps=1))).ok
        is None
    )
