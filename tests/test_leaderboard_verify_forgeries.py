"""Verification against a forger who seals what he changed in the record, the table or the examples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from forgeries import failed, file_alone, forge, outcomes
from reports import as_schema_1
from torch import nn

from robust import evaluate
from robust.leaderboard import Store
from robust.leaderboard.derive import derive
from robust.leaderboard.record import _place
from robust.sources import load_data


def _count_again(content: dict[str, Any], verdicts: pd.DataFrame) -> None:
    """Make a record's derived numbers those of a table."""
    parts = {key: value for key, value in derive(verdicts).items() if not key.startswith("artefacts")}
    _place(content, json.loads(json.dumps(parts, default=lambda part: part.model_dump(mode="json"))))


def test_accuracies_that_are_not_the_tables_are_caught(means_filed: Path, tmp_path: Path) -> None:
    def better(content: dict[str, Any]) -> None:
        honest = Store(means_filed).records()[0]
        better = Store(means_filed).verdicts(honest)
        first = better.index[better["status"] == "broken"][0]
        better.loc[first, ["status", "attack", "distance"]] = ["survived", "", float("nan")]
        _count_again(content, better)
        for attack in content["attacks"]:
            attack["survived"] = max(attack["survived"], content["robust"]["k"])
            attack["attacked"] = max(attack["attacked"], attack["survived"])
            attack["broke"] = min(attack["broke"], attack["attacked"] - attack["survived"])

    found = outcomes(forge(means_filed, tmp_path, record=better))
    assert {"statuses", "robust", "classes"} <= failed(found)


@pytest.mark.parametrize(
    ("path", "value", "check"),
    [
        ("data.indices_sha256", "0" * 64, "data.indices_sha256"),
        ("data.indices_sha256", None, "record"),
        ("artefacts.verdicts_sha256", "0" * 64, "artefacts.verdicts_sha256"),
        ("artefacts.verdicts_sha256", None, "record"),
        ("classes", [], "record"),
        ("fairness", None, "record"),
        ("data.sha256", "0" * 64, "data"),
        ("classes.0.name", "ten", None),
        ("fairness.worst", 99, "fairness"),
        ("fairness.worst_tenth", 0.9, "fairness"),
        ("fairness.low", 0.0, "fairness"),
        ("cost.forwards", 1, "passes"),
        ("cost.checks.backwards", 1, "passes"),
        ("attacks.1.forwards", 10**6, "passes"),
        ("attacks.0.broke", 0, "attacks"),
        ("attacks.0.errors", 1, "attacks"),
        ("attacks.0.label", "other", "rows"),
        ("threat", {"norm": "linf", "eps": "0.01", "radius": 0.01, "bounds": [0.0, 1.0]}, "rows"),
        ("threat", {"norm": "linf", "eps": "0.08", "radius": 0.08, "bounds": [0.2, 1.0]}, "ball"),
        ("threat", {"norm": "linf", "eps": "0.08", "radius": 0.08, "bounds": [0.0, 1e308]}, "record"),
        ("threat.knowledge", "decision", "threat"),
        ("attacks.0.selection", {"beyond": "far"}, "review"),
        ("threat.targeted", True, "threat"),
        ("data.name", "imagenet", "data.name"),
        ("data.split", "validation", "data.name"),
    ],
)
def test_a_sealed_change_of_the_record_is_caught(
    means_filed: Path, tmp_path: Path, path: str, value: Any, check: str | None
) -> None:
    def change(content: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        holder: Any = content
        for key in parents:
            holder = holder[int(key) if key.isdigit() else key]
        assert holder[last] != value
        holder[last] = value

    found = failed(outcomes(forge(means_filed, tmp_path, record=change)))
    assert check in found if check else not found  # names of classes follow from nothing


def test_survivors_of_an_attack_that_are_called_errors_are_caught(means_filed: Path, tmp_path: Path) -> None:
    def lose_one(content: dict[str, Any]) -> None:
        last = content["attacks"][-1]
        last |= {"survived": last["survived"] - 1, "errors": 1}
        last["selection"] = {"follows": True}  # shown a part of the samples, it may count fewer than survived

    assert "attacks" in failed(outcomes(forge(means_filed, tmp_path, record=lose_one)))


@pytest.mark.parametrize(("key", "value"), [("access", None), ("selection", {})])
def test_a_record_that_leaves_out_what_attacks_saw_is_refused(
    means_filed: Path, tmp_path: Path, key: str, value: Any
) -> None:
    found = outcomes(
        forge(means_filed, tmp_path, record=lambda content: content["attacks"][1].update({key: value}))
    )
    assert failed(found) == {"record"}
    assert f"attacks.1.{key}: missing, which no record of this schema leaves out" in found[0].message


def test_a_table_that_leaves_out_what_examples_were_taken_for_is_refused(
    means_filed: Path, tmp_path: Path
) -> None:
    """Without it no saved example is held to the class that it was taken for."""
    dropped = forge(means_filed, tmp_path, table=lambda verdicts: verdicts.pop("prediction_adv"))
    assert "rows" in failed(outcomes(dropped))


def test_who_leaves_out_what_attacks_saw_is_spared_no_finding(tmp_path: Path, net: nn.Module) -> None:
    """Random search alone makes a suspect verdict, which a record may not hide by the schema that has no access."""
    report = evaluate(
        net, load_data("builtin:digits").limit(40), threat="linf:0.03", suite={"name": "square", "queries": 60},
        keep_examples=True, device="cpu",
    )  # fmt: skip
    assert [finding["check"] for finding in report.findings] == ["black-box-alone"]
    filed = file_alone(report, tmp_path / "honest")
    assert not failed(outcomes(filed))
    (path,) = (filed / "records").glob("*.json")
    honest = Store(filed).read(path.name)
    text = as_schema_1(honest.model_copy(update={"findings": [], "trust": "trusted"}))
    path.with_name(f"{json.loads(text)['id']}.json").write_text(text)
    path.unlink()
    (review,) = (line for line in outcomes(filed) if line.check == "review")
    assert (review.ok, "black-box-alone" in review.message) == (None, True)


def test_passes_that_no_search_took_are_caught_by_a_rerun(
    means_filed: Path, tmp_path: Path, means: nn.Module
) -> None:
    """A suite too short to prove anything makes a suspect verdict; more passes in the table would hide it."""

    def lengthen(verdicts: pd.DataFrame) -> None:
        verdicts.loc[verdicts["status"] == "survived", "forwards"] += 60

    def hide(content: dict[str, Any]) -> None:
        (honest,) = Store(means_filed).records()
        assert [finding.check for finding in honest.findings] == ["short-search"]
        content["cost"]["forwards"] += 60 * honest.statuses.survived
        content |= {"findings": [], "trust": "trusted"}

    forged = forge(means_filed, tmp_path, record=hide, table=lengthen)
    assert failed(outcomes(forged, means, rerun=30)) == {"rerun"}


def test_groups_of_the_table_that_the_record_leaves_out_are_caught(means_filed: Path, tmp_path: Path) -> None:
    def split(verdicts: pd.DataFrame) -> None:
        verdicts["group"] = ["north", "south"] * 30

    assert failed(outcomes(forge(means_filed, tmp_path, table=split))) == {"groups"}


def _set(column: str, status: str, value: Any) -> Callable[[pd.DataFrame], None]:
    def change(verdicts: pd.DataFrame) -> None:
        verdicts.loc[verdicts.index[verdicts["status"] == status][0], column] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("status", "survived", "broken"), _set("status", "broken", "survived"), _set("status", "broken", "fine"),
        _set("distance", "broken", 0.09), _set("distance", "broken", float("nan")), _set("distance", "broken", 0.01),
        _set("distance", "survived", 0.01), _set("attack", "broken", "magic"), _set("attack", "survived", "fgsm"),
        _set("sample_id", "survived", 10**6), _set("label", "survived", 99), _set("forwards", "survived", -1),
        _set("forwards", "survived", 7), _set("prediction", "survived", 99), _set("distance", "broken", -0.01),
        _set("nearest", "broken", 0.2), _set("nearest", "broken", float("nan")), _set("nearest", "broken", -0.01),
        _set("nearest", "survived", 0.05),
        lambda verdicts: verdicts.pop("label"),
        lambda verdicts: verdicts.__setitem__("sample_id", 5),
    ],
)  # fmt: skip
def test_a_sealed_change_of_the_table_is_caught(
    means_filed: Path, tmp_path: Path, change: Callable[[pd.DataFrame], None]
) -> None:
    assert failed(outcomes(forge(means_filed, tmp_path, table=change)))


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda saved: saved["x_adv"][0].mul_(1.5), "ball"),
        (lambda saved: saved["x_adv"][0].fill_(float("nan")), "ball"),
        (lambda saved: saved["x_adv"][0].sub_(1e-3), "ball"),
        (lambda saved: saved["x"][0].fill_(0.5), "ball"),
        (lambda saved: saved["sample_id"][:1].fill_(10**6), "examples"),
        (lambda saved: saved["sample_id"][:1].copy_(saved["sample_id"][1:2]), "examples"),
        (lambda saved: saved.pop("x_adv"), "examples"),
        (lambda saved: saved["x_adv"].copy_(saved["x"]), "ball"),
    ],
)
def test_a_sealed_change_of_the_examples_is_caught(
    means_filed: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any], check: str
) -> None:
    assert check in failed(outcomes(forge(means_filed, tmp_path, examples=change)))


def test_an_example_that_fools_nobody_is_caught(means_filed: Path, tmp_path: Path, means: nn.Module) -> None:
    """Moved by as much, elsewhere: only the model can tell."""

    def elsewhere(saved: dict[str, torch.Tensor]) -> None:
        far = (saved["x_adv"] - saved["x"]).abs().flatten(1).amax(1).view(-1, 1, 1, 1)
        saved["x_adv"] = saved["x"] + torch.where(saved["x"] > 0.5, -far, far) * (torch.arange(8) == 0)

    folder = forge(means_filed, tmp_path, examples=elsewhere)
    assert failed(outcomes(folder, means)) >= {"fooled"}
