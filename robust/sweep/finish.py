"""What the shards of a cell become: a record with its files, or a curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import pandas as pd
import torch
from safetensors.torch import load

from robust.defenses import make_defense
from robust.hardening import listed
from robust.leaderboard import Record, examples_bytes, with_clean
from robust.parts import Part, Plan, join
from robust.report import Report
from robust.suites import resolve
from robust.sweep.cells import Cell, CurveCell, suite_title
from robust.sweep.curves import CurvePart, points
from robust.sweep.held import Held, map_samples
from robust.sweep.tasks import ModelRef
from robust.threat import Threat

Anyhow = Cell | CurveCell


class Failure(NamedTuple):
    """What could not be done, and why, in one line."""

    title: str  # of the cell or pair
    reason: str
    kept: Path | None = None  # file of a result with errors: found by every further run while it is there

    def __str__(self) -> str:
        return f"{self.title}: {self.reason}"


@dataclass
class SweepResult:
    """What a sweep left behind.

    Attributes:
        records: of the cells that are done; curves: as in their files, in the order of the plan.
        computed, reused: cells and curves done now, and found done.
        failures: a title and a reason for each that failed; missing: titles of all that are not there.
        stopped: why the sweep ended before its time, as on a full disk; None where it did not.
    """

    records: list[Record] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    computed: int = 0
    reused: int = 0
    failures: list[Failure] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    stopped: str | None = None


@dataclass
class Open:
    """A cell whose shards are being computed.

    Attributes:
        ranges: of all its shards; parts, examples: what is there of them.
        failed: a shard failed, so that the others are not wanted.
    """

    cell: Anyhow
    key: str
    ref: ModelRef
    held: Held
    ranges: list[tuple[int, int]]
    parts: dict[tuple[int, int], Part | CurvePart] = field(default_factory=dict)
    examples: dict[tuple[int, int], bytes | None] = field(default_factory=dict)
    failed: bool = False

    @property
    def missing(self) -> list[tuple[int, int]]:
        """Shards that are not there."""
        return [rows for rows in self.ranges if rows not in self.parts]


def counts(part: Part | CurvePart) -> dict[str, int]:
    """Samples of a shard, those classified correctly, and those that stood (at the smallest radius)."""
    if isinstance(part, Part):
        survived = int((part.verdicts["status"] == "survived").sum())
        return {"samples": len(part.verdicts), "correct": part.correct, "survived": survived}
    table = part.table
    correct = int((table["prediction"] == table["label"]).sum())
    return {"samples": len(table), "correct": correct, "survived": int((table["falls_at"] > 0).sum())}


def make_record(
    opened: Open, cell: Cell, keep_examples: int, command: str | None
) -> tuple[Report, Record, bytes | None]:
    """The report of all shards, its record, and the file of the adversarial examples that are kept with it."""
    threat = Threat.parse(cell.threat)
    pair, held = cell.pair, opened.held
    report = join(
        cast("Sequence[Part]", list(opened.parts.values())),
        Plan(threat, *resolve(cell.suite, threat), cell.cascade),
        data={"spec": held.spec, "sha256": held.sha256},
        n=held.n,
        seed=cell.seed,
        model_spec=str(pair.model.spec),
    )
    made = make_defense(str(pair.defense.name), **pair.defense.options)
    examples = _examples(opened, keep_examples)
    record = Record.from_report(
        report,
        name=pair.model.title,
        defense={
            "name": made.title,
            "parameters": listed(made, pair.defense.training),
            "trained_threat": None if pair.as_is else pair.defense.threat,
        },
        command=command,
        examples=examples,
        class_names=map_samples(held.folder).class_names,
    )
    return report, record, examples


def _examples(opened: Open, keep: int) -> bytes | None:
    """The first `keep` examples of all shards with their clean points; None where there are none."""
    files = [content for _, content in sorted(opened.examples.items()) if content is not None]
    shards = [load(content) for content in files]
    if not any(len(shard["sample_id"]) for shard in shards):
        return None
    whole = {key: torch.cat([shard[key] for shard in shards]) for key in shards[0]}
    return examples_bytes(with_clean(whole, opened.held.samples, limit=keep))


def make_curve(opened: Open, cell: CurveCell) -> tuple[dict[str, Any], pd.DataFrame]:
    """The curve of all shards, as its file holds it, and its table."""
    parts = sorted(cast("list[CurvePart]", list(opened.parts.values())), key=lambda part: part.rows)
    table = pd.concat([part.table for part in parts], ignore_index=True)
    findings = {finding.check: asdict(finding) for part in parts for finding in part.findings}
    held = opened.held
    curve = {
        "title": cell.title,
        "model": cell.pair.model.title,
        "defense": cell.pair.defense.title,
        "norm": cell.curve.norm,
        "suite": suite_title(cell.curve.suite),
        "seed": cell.seed,
        "data": {"spec": held.spec, "sha256": held.sha256, "n": held.n},
        "clean": float((table["prediction"] == table["label"]).mean()),
        "points": points(table, cell.curve.threats),
        "errors": int((table["falls_at"] == -2).sum()),
        "findings": list(findings.values()),
        "forwards": int(table["forwards"].sum()),
        "backwards": int(table["backwards"].sum()),
        "seconds": sum(part.seconds for part in parts),
    }
    return curve, table
