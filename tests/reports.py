"""Reports and records whose counts are given, figures reported elsewhere; everything else is plain."""

from __future__ import annotations

import json
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from robust import evaluate
from robust.leaderboard import Record, Store, examples_bytes, sha256, verify
from robust.leaderboard.outcome import Outcome
from robust.report import Report
from robust.sources import load_data
from robust.target import Target
from robust.threat import Threat

DEFENSE: dict[str, Any] = {"name": "none", "parameters": {}}
UNRELIABLE = {"check": "randomized", "severity": "unreliable", "message": "m"}
FGSM, PGD, MARGIN, CW = "fgsm", "pgd", "pgd(loss=margin)", "cw(steps=60,binary_search_steps=4)"
FINDINGS: dict[str, list[dict[str, str]]] = {
    "trusted": [],
    "suspect": [{"check": "short-search", "severity": "suspect", "message": "m"}],
    "unreliable": [{"check": "zero-gradient", "severity": "unreliable", "message": "m"}],
}
ROWS: list[dict[str, Any]] = [  # as RobustBench lists them
    {"dataset_dir": "cifar10", "threat": "Linf", "id": "First", "link": "https://a.example/1", "name": "A <b>paper</b>",
     "authors": "A. Uthor", "additional_data": True, "number_forward_passes": 1, "dataset": "cifar10", "venue": "V 2030",
     "architecture": "Net-1", "eps": "8/255", "clean_acc": "90.10", "reported": "70.5", "autoattack_acc": "70.20",
     "external": "61.30", "footnote": None, "unreliable": False},
    {"dataset_dir": "cifar10", "threat": "Linf", "id": "Second", "link": "javascript:alert(1)", "architecture": "Net-2",
     "eps": "8/255", "clean_acc": 88, "reported": "", "autoattack_acc": "65.00", "dataset": "cifar10"},
    {"dataset_dir": "cifar10", "threat": "Linf", "id": "Third", "architecture": "Net-2", "eps": "8/255",
     "clean_acc": "88.1", "reported": "65.0", "dataset": "cifar10"},
    {"dataset_dir": "cifar10", "threat": "Linf", "id": "Masked", "architecture": "Net-3", "eps": "0.031",
     "clean_acc": "80", "autoattack_acc": "18.5", "external": "7.4", "unreliable": True, "dataset": "cifar10"},
    {"dataset_dir": "cifar100", "threat": "corruptions", "id": "Fog", "architecture": "Net-4", "eps": None,
     "clean_acc": "70", "reported": "null", "corruptions_acc": "50.5", "dataset": "cifar10"},
    {"dataset_dir": "cifar100", "threat": "corruptions", "id": "Rain", "architecture": "Net-4", "eps": "8/255",
     "clean_acc": "n/a", "reported": "", "dataset": "cifar100"},
    {"dataset_dir": "cifar10", "threat": "L2", "id": "First", "architecture": "Net-1", "eps": None,
     "clean_acc": "90", "autoattack_acc": "70", "dataset": "cifar10"},
]  # fmt: skip
Alone = dict[str, int | None]  # attack label -> robust count under it, None: not run


def make_report(
    *,
    n: int = 100,
    wrong: int = 10,
    robust: int = 40,
    error: int = 0,
    alone: Alone | None = None,
    **changes: Any,
) -> Report:
    """A report whose counts are given; everything else is plain."""
    changes = {"findings": FINDINGS[changes.get("trust", "trusted")], **changes}
    clean = n - wrong
    statuses = (
        ["misclassified"] * wrong
        + ["broken"] * (clean - robust - error)
        + ["survived"] * robust
        + ["error"] * error
    )
    verdicts = pd.DataFrame(
        {
            "sample_id": range(n),
            "label": [1] * n,
            "prediction": [0] * wrong + [1] * clean,
            "status": statuses,
            "attack": ["pgd" if status == "broken" else "" for status in statuses],
            "prediction_adv": [0] * (n - robust - error) + [1] * (robust + error),
            "distance": [0.5 if status == "broken" else float("nan") for status in statuses],
            "forwards": [30] * n,
            "backwards": [12] * n,
        }
    )
    attacks = [
        {
            "name": label.partition("(")[0], "label": label, "parameters": {"label": label, "sizes": (1, 2)},
            "access": "gradient", "selection": {"near": None},
            "attacked": 0 if left is None else clean, "broke": 0 if left is None else clean - left,
            "survived": left or 0, "rejected": 0, "errors": 0, "forwards": 9, "backwards": 8, "seconds": 0.25,
        }
        for label, left in (alone or {FGSM: min(robust + 20, clean), PGD: robust}).items()
    ]  # fmt: skip
    fields: dict[str, Any] = {
        "threat": Threat("linf", "8/255"), "suite": "standard", "seed": 0, "verdicts": verdicts,
        "attacks": attacks, "trust": "trusted", "findings": [],
        "checks": {"forwards": 0, "backwards": 0, "seconds": 0.0},
        "model": {"spec": "builtin:net", "sha256": "ab" * 32, "architecture": "Net", "parameters": 1234},
        "data": {"spec": "builtin:digits", "sha256": "cd" * 32}, "device": "cpu",
        "versions": {"torch": "2.5"}, "seconds": 1.5, "cascade": False,
    }  # fmt: skip
    return Report(**{**fields, **changes})


def make_record(
    *, name: str = "net", defense: str = "none", options: dict[str, Any] | None = None, **changes: Any
) -> Record:
    return Record.from_report(
        make_report(**changes),
        name=name,
        defense={"name": defense, "parameters": options or {}, "trained_threat": None},
    )


def sealed(record: Record, **changes: Any) -> Record:
    """The record of a forger, who changes what it says and seals it anew."""
    forged = Record.model_validate({**record.model_dump(mode="json"), **changes})
    assert Record.loads(forged.dumps()) == forged, "a record that claims too much is still read"
    return forged


def as_schema_1(record: Record) -> str:
    """The text of the file that a record without classes had before schema 2."""
    content = record.model_dump(mode="json")
    content["schema_version"] = 1
    for key in ("classes", "groups", "fairness", "paper"):
        del content[key]
    kept = {
        "model": "name spec architecture parameters weights_sha256",
        "defense": "name parameters trained_threat",
        "data": "spec sha256 n",
        "threat": "norm eps radius bounds",
        "cost": "forwards backwards seconds device",
    }
    for part, names in kept.items():
        content[part] = {name: content[part][name] for name in names.split()}
    old = ["name", "label", "parameters", "attacked", "broke", "survived", "forwards", "backwards", "seconds"]
    content["attacks"] = [{name: attack[name] for name in old} for attack in content["attacks"]]
    file = content["artefacts"]["verdicts_file_sha256"]
    content["artefacts"] = {"verdicts_sha256": file, "examples_sha256": None}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    outcome = json.loads(canonical)
    for key in ("created", "command", "environment"):
        del outcome[key]
    for key in ("seconds", "device"):
        del outcome["cost"][key]
    for attack in outcome["attacks"]:
        del attack["seconds"]
    id_ = sha256(json.dumps(outcome, sort_keys=True, separators=(",", ":")).encode())
    whole = {"id": id_, "checksum": sha256(canonical), "record": json.loads(canonical)}
    return json.dumps(whole, indent=1) + "\n"


def filed(folder: Path, model: nn.Module, *, forge: bool = False, examples: bool = False) -> Path:
    """The file of a record of 60 digits; forged, what was broken survived, and the model is said to draw."""
    report = evaluate(
        model, load_data("builtin:digits").limit(60), threat="linf:0.16", suite="quick",
        keep_examples=examples, device="cpu",
    )  # fmt: skip
    if forge:
        table = report.verdicts
        broken = table["status"] == "broken"
        table.loc[broken, ["status", "attack", "distance", "nearest"]] = ["survived", "", nan, nan]
        for entry in report.attacks:
            entry.update(broke=0, attacked=report.clean_correct, survived=report.clean_correct, errors=0)
        report.findings, report.trust = [UNRELIABLE], "unreliable"
    kept = None if report.examples is None else examples_bytes(report.examples)
    record = Record.from_report(report, name="net", defense=DEFENSE, examples=kept)
    Store(folder).add(record, report.verdicts, examples=kept)
    return folder / "records" / f"{record.id}.json"


def lines(path: Path, model: nn.Module, **options: Any) -> dict[str, Outcome]:
    """What `verify` says of a file of a record, by the names of its lines."""
    return {o.check: o for o in verify(*Store.locate(path), target=Target(model, device="cpu"), **options)}
