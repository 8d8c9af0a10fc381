"""Verification: an honest record stands; another model, other data and what is said of them do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from forgeries import failed, forge, outcomes
from torch import nn


def test_an_honest_record_stands(means_filed: Path, means: nn.Module) -> None:
    found = outcomes(means_filed, means, rerun=10)
    assert [outcome.check for outcome in found if not outcome.ok] == []
    assert {"record", "verdicts", "rows", "clean", "robust", "statuses", "classes", "fairness", "attacks",
            "passes", "data", "examples", "ball", "fooled", "model", "rerun"} <= {o.check for o in found}  # fmt: skip


def test_without_the_model_it_says_what_was_not_checked(means_filed: Path) -> None:
    found = outcomes(means_filed)
    assert not failed(found)
    assert [outcome.check for outcome in found if outcome.ok is None] == ["model"]
    assert outcomes(means_filed, data="nowhere.npz")[-3].check == "examples"


def test_another_model_is_caught(means_filed: Path, means: nn.Module) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert {"model", "clean", "fooled", "rerun"} <= failed(outcomes(means_filed, other, rerun=20))


def test_other_data_is_caught(means_filed: Path) -> None:
    assert "data" in failed(outcomes(means_filed, data="builtin:digits:train"))


@pytest.mark.parametrize(("key", "value"), [("parameters", 1), ("architecture", "ResNet152")])
def test_a_record_that_says_another_thing_of_the_model_is_caught(
    means_filed: Path, tmp_path: Path, means: nn.Module, key: str, value: Any
) -> None:
    def change(content: dict[str, Any]) -> None:
        content["model"][key] = value

    assert failed(outcomes(forge(means_filed, tmp_path, record=change), means)) == {"model"}
