"""Reports and records whose counts are given; everything else is plain."""

from __future__ import annotations

from typing import Any

import pandas as pd

from robust.leaderboard import (
    Record,
)
from robust.report import Report
from robust.threat import Threat

FGSM, PGD, MARGIN, CW = "fgsm", "pgd", "pgd(loss=margin)", "cw(steps=60,binary_search_steps=4)"
FINDINGS: dict[str, list[dict[str, str]]] = {
    "trusted": [],
    "suspect": [{"check": "short-search", "severity": "suspect", "message": "m"}],
    "unreliable": [{"check": "zero-gradient", "severity": "unreliable", "message": "m"}],
}
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
            "distance": [0.5 if status == "broken" else float("nan") for status in statuses],
            "forwards": [30] * n,
            "backwards": [12] * n,
        }
    )
    attacks = [
        {
            "name": label.partition("(")[0], "label": label, "parameters": {"label": label, "sizes": (1, 2)},
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
