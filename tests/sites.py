"""A store to publish, with names that would break a page, and pages as a parser reads them."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path
from typing import Any

import torch
from reports import ROWS, make_report

from robust.leaderboard import Record, Store, examples_bytes, read_robustbench
from robust.threat import Threat

NASTY = "<script>alert(1)</script>\"'&</textarea>\u202e\x1b[31m"


def file_report(store: Store, name: str, robust: int, *, shift: int = 0, **changes: Any) -> Record:
    """File a record of 100 samples of ten classes, the broken ones taken for the next class."""
    report = make_report(robust=robust, **changes)
    verdicts = report.verdicts
    statuses = verdicts.drop(columns="sample_id").to_dict("list")
    for column, values in statuses.items():
        verdicts[column] = values[shift:] + values[:shift]
    verdicts["label"] = [index % 10 for index in range(100)]
    verdicts["prediction"] = (verdicts["label"] + (verdicts["status"] == "misclassified")) % 10
    verdicts["prediction_adv"] = (verdicts["label"] + (verdicts["status"] != "survived")) % 10
    verdicts["distance"] = verdicts["distance"] * 0.02
    ids = verdicts["sample_id"][verdicts["status"] == "broken"].to_numpy()[:3]
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    examples = examples_bytes({"sample_id": torch.tensor(ids), "x_adv": (x + 0.01).clamp(0, 1), "x": x})
    record = Record.from_report(
        report, name=name, defense={"name": "none", "parameters": {}}, examples=examples, command=f"robust {name}",
        model={"source": "https://host.example/weights"}, paper={"title": name, "url": "https://paper.example/1"},
    )  # fmt: skip
    store.add(record, verdicts, examples=examples)
    return record


def fill(folder: Path) -> Store:
    """A store of five records, one of them masked, and of figures reported elsewhere."""
    store = Store(folder)
    finding = {"check": "zero-gradient", "severity": "unreliable", "message": f"{NASTY} seen"}
    file_report(store, "strong", 60)
    file_report(store, "strong", 45, threat=Threat("linf", "16/255"))
    file_report(store, "middle", 40, shift=30)
    file_report(store, NASTY, 40)
    file_report(store, "masked", 85, wrong=10, trust="unreliable", findings=[finding])
    entries = folder / "entries.jsonl"
    entries.write_text("".join(json.dumps({**row, "name": NASTY}) + "\n" for row in ROWS))
    for reference in read_robustbench(entries).references:
        store.add_reference(reference)
    return store


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
