"""What the site hands on: its records to verify, tables, badges, model cards."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from reports import ROWS

from robust.leaderboard import Store, verify
from robust.leaderboard.site.exports import badge


def test_the_site_is_a_store_that_can_be_verified(site: Path) -> None:
    paths = list((site / "records").glob("*.json"))
    assert len(paths) == 5
    checks = [
        outcome
        for path in paths
        for outcome in verify(*Store.locate(path))
        if outcome.check in ("record", "verdicts")
    ]
    assert [outcome.ok for outcome in checks] == [True] * 10
    assert len(Store(site).references()) == len(ROWS)


def test_exports(site: Path, store: Store) -> None:
    rows = list(csv.DictReader((site / "leaderboard.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 5 + len(ROWS) == len(json.loads((site / "leaderboard.json").read_text()))
    assert r"\begin{tabular}" in (site / "leaderboard.tex").read_text()
    assert "| # | model" in " ".join((site / "leaderboard.md").read_text().split())
    assert json.loads((site / "record.schema.json").read_text())["title"] == "Record"
    strong = next(r for r in store.records() if (r.model.name, r.threat.eps) == ("strong", "8/255"))
    assert json.loads((site / f"badges/{strong.short_id}.json").read_text()) == {
        "schemaVersion": 1, "label": "robust linf:8/255", "message": "60.0 % [50.2, 69.1]", "color": "blue",
    }  # fmt: skip
    masked = next(r for r in store.records() if r.trust == "unreliable")
    assert json.loads(badge(masked))["message"] == "unreliable"


def test_the_model_card_fragment_is_yaml_that_the_hub_reads(site: Path, store: Store) -> None:
    yaml = pytest.importorskip("yaml")
    for record in store.records():
        text = (site / f"cards/{record.short_id}.md").read_text(encoding="utf-8")
        _, front, body = text.split("---\n", 2)
        (model,) = yaml.safe_load(front)["model-index"]
        (result,) = model["results"]
        assert model["name"] == f"{record.model.name} + none"
        assert result["task"]["type"] == "image-classification"
        assert (result["dataset"]["name"], result["dataset"]["type"]) == ("digits", "digits")
        assert [(m["type"], m["value"]) for m in result["metrics"]] == [
            ("accuracy", record.clean.value), ("robust_accuracy", record.robust.value),
        ]  # fmt: skip
        assert record.id in body
        assert "<script" not in body
