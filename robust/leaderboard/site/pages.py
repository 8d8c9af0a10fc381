"""What the templates show: plain values, ready to print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import pandas as pd
from markupsafe import Markup

from robust.attacks.labels import told_apart
from robust.leaderboard.artefacts import sha256
from robust.leaderboard.claims import threat_of
from robust.leaderboard.derive import curve
from robust.leaderboard.layout import FLAGS, percent, plain, suite_text
from robust.leaderboard.record import Record
from robust.leaderboard.reference import Reference
from robust.leaderboard.reforward import preprocessing_of
from robust.leaderboard.schema import Rate, canonical
from robust.leaderboard.site.charts import MANY, range_bar
from robust.leaderboard.table import FIXED

_LAST: Final = 1_000_000  # sorts after every rank


@dataclass
class Board:
    """One table of the site."""

    heading: str
    measured: bool
    threat: str
    data: str
    suite: str
    about: str
    columns: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def file(self) -> str:
        """Its page."""
        return f"board-{sha256(self.heading.encode())[:12]}.html"

    @property
    def heads(self) -> list[tuple[str, list[str]]]:
        """Of each column of an attack or score: its whole name, and the lines to show."""
        lines = told_apart(self.columns) if self.measured else [[name] for name in self.columns]
        return list(zip(self.columns, lines, strict=True))

    @property
    def parts(self) -> list[list[dict[str, Any]]]:
        """The rows that are ranked, then, always below, those that are not to be trusted."""
        low = [row for row in self.rows if row["trust"] == "unreliable"]
        return [part for part in ([row for row in self.rows if row["trust"] != "unreliable"], low) if part]

    @property
    def trusts(self) -> list[str]:
        """Values of trust that occur."""
        return sorted({row["trust"] for row in self.rows})

    @property
    def first(self) -> dict[str, Any] | None:
        """The row to name on the front page."""
        ranked = [row for row in self.rows if row["rank"] != "-"]
        return ranked[0] if ranked else None


def make_boards(frame: pd.DataFrame, by_id: dict[str, Record | Reference]) -> list[Board]:
    """The boards of a `leaderboard_frame`, in its order."""
    attacks = [name for name in frame.columns if name not in FIXED]
    found = []
    for heading, rows in frame.groupby("board", sort=False):
        columns = [name for name in attacks if rows[name].notna().any()]
        entry = by_id[rows["id"].iloc[0]]
        board = Board(heading=str(heading), columns=columns, **described(entry, str(heading)))
        board.rows = [_row(values, columns) for values in rows.to_dict("records")]
        found.append(board)
    return found


def described(entry: Record | Reference, heading: str) -> dict[str, Any]:
    """What a board is of, by one of its entries and its heading."""
    if isinstance(entry, Reference):
        threat = f"{entry.norm}:{entry.eps}" if entry.eps else entry.norm
        about = f"Reported by {entry.origin}, not measured here."
        return {
            "measured": False,
            "threat": threat,
            "data": entry.dataset,
            "suite": entry.origin,
            "about": about,
        }
    digest = heading.rpartition(" #")[2] if " #" in heading[-9:] else ""
    versioned = suite_text(entry.suite)
    suite = versioned if versioned in plain(heading) else entry.suite.name
    return {
        "measured": True,
        "threat": f"{entry.threat.norm}:{entry.threat.eps}",
        "data": plain(f"{entry.data.spec} (n = {entry.data.n})"),
        "suite": plain(f"{suite} {digest and f'#{digest}'}"),
        "about": plain(heading),
    }


def _row(values: dict[Any, Any], columns: Sequence[str]) -> dict[str, Any]:
    rank, low = str(values["rank"]), values["low"]
    measured = not math.isnan(low)
    defense = f"{values['defense']} ({values['variant']})" if values["variant"] else str(values["defense"])
    return {
        "id": values["id"],
        "rank": rank,
        "rank_key": rank.partition("-")[0] or _LAST,
        "model": plain(values["model"]),
        "defense": plain(defense),
        "variant": plain(values["variant"]),
        "name": f"{plain(values['model'])} + {plain(defense)}",
        "interval": f"[{percent(low)}, {percent(values['high'])}]" if measured else "",
        "bar": range_bar(values["robust"], low, values["high"]) if measured else Markup(""),
        "passes": f"{values['passes']:.0f}" if measured else "",
        "passes_key": _key(values["passes"]),
        "trust": values["trust"],
        "flag": FLAGS[values["trust"]] if measured else "",
        "trust_text": f"{FLAGS[values['trust']]} {values['trust']}".strip(),
        "columns": [(_key(values[name]), percent(values[name])) for name in columns],
        **{name: percent(values[name]) for name in ("clean", "robust", "worst")},
        **{f"{name}_key": _key(values[name]) for name in ("clean", "robust", "worst")},
    }


def _key(value: float) -> str:
    return "-1" if math.isnan(value) else f"{value:.6f}"


def class_names(record: Record, size: int) -> list[str]:
    """A name per label below `size`."""
    names = {group.label: plain(group.name) for group in record.classes}
    return [names.get(label, str(label)) for label in range(size)]


def siblings(records: Sequence[Record]) -> dict[tuple[str, ...], list[Record]]:
    """Records of one model under the same conditions but for eps, by `curve_key`."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        found.setdefault(curve_key(record), []).append(record)
    return found


def curve_key(record: Record) -> tuple[str, ...]:
    """What records on one accuracy-against-eps curve share."""
    model, threat = record.model, record.threat
    conditions = (threat.norm, str(threat.bounds), str(record.seed), canonical(record.search))
    pair = (model.name, record.defense.model_dump_json(), model.weights_sha256, str(model.normalize))
    return *pair, record.data.sha256, *conditions


def curve_points(
    record: Record, group: Sequence[Record], verdicts: pd.DataFrame
) -> list[tuple[float, str, Rate]]:
    """Clean accuracy and a point per radius: of the nearest points where they were searched, else of the
    records that differ in eps alone; none where there is one radius only."""
    if record.suite.minimize and "nearest" in verdicts:
        near = [(at, f"{at:.3g}", rate) for at, rate in curve(verdicts, threat_of(record))]
        return [(0.0, "0", record.clean), *near]
    by_radius = {one.threat.radius: one for one in sorted(group, key=lambda one: one.id)}
    if len(by_radius) < 2:
        return []
    points = [(radius, one.threat.eps, one.robust) for radius, one in sorted(by_radius.items())]
    return [(0.0, "0", record.clean), *points]


def curve_text(points: Sequence[tuple[float, str, Rate]]) -> str:
    """Under the curve: what it is made of, and a warning where it rises."""
    shown = ", ".join(f"{percent(rate.value)} % at {written}" for _, written, rate in points)
    rises = any(later[2].value > earlier[2].value for earlier, later in pairwise(points))
    warning = (
        " It rises somewhere, which no robust accuracy does: one of the evaluations missed examples."
        if rises
        else ""
    )
    return f"{shown}.{warning}"


def fairness_text(record: Record) -> str:
    """Under the bars of the classes."""
    fairness = record.fairness
    bars = "Bars: robust accuracy with 95 % interval; orange line: clean accuracy."
    if len(record.classes) > MANY:
        bars += f" The {MANY} lowest of {len(record.classes)} classes."
    if fairness is None:
        return bars
    worst = next(plain(group.name) for group in record.classes if group.label == fairness.worst)
    return (
        f"{bars} Worst class {worst}: "
        f"{percent(fairness.value)} % [{percent(fairness.low)}, {percent(fairness.high)}], the interval for all "
        f"{len(record.classes)} classes together since the worst was picked after looking. Mean of the worst "
        f"tenth {percent(fairness.worst_tenth)} %, best less worst {percent(fairness.spread)} points."
    )


Fact = tuple[str, object, str | None]  # name, value, link


def cost_facts(record: Record) -> list[Fact]:
    """What the evaluation cost."""
    cost, n = record.cost, record.data.n
    return [
        ("forward passes", f"{cost.forwards} ({cost.forwards / n:.0f} a sample)", None),
        ("backward passes", f"{cost.backwards} ({cost.backwards / n:.0f} a sample)", None),
        ("of these for checks", f"{cost.checks.forwards} + {cost.checks.backwards}", None),
        ("seconds", f"{cost.seconds:.1f} on {cost.device}, search on the {cost.engine} model", None),
    ]


def provenance_facts(record: Record) -> list[Fact]:
    """Everything that a stranger needs to check the record."""
    model, defense, paper = record.model, record.defense, record.paper
    parameters = ", ".join(f"{key}={value}" for key, value in defense.parameters.items())
    said: list[Fact] = [
        ("record", record.id, None),
        ("model", f"{model.spec} ({model.architecture}, {model.parameters} parameters)", None),
        ("weights sha256", model.weights_sha256, None),
        ("source", model.source, model.source),
        ("licence", model.licence, None),
        ("extra data", model.extra_data, None),
        ("normalize", model.normalize, None),
        ("preprocessing", preprocessing_of(record), None),
        ("defense", f"{defense.name}{f' ({parameters})' if parameters else ''}", None),
        ("trained against", defense.trained_threat, None),
        ("trained by", defense.trained_by, None),
        ("paper", paper.title if paper else None, paper.url if paper else None),
        ("data", f"{record.data.spec}, n = {record.data.n}", None),
        ("data sha256", record.data.sha256, None),
        ("threat", f"{record.threat.norm}:{record.threat.eps} in {list(record.threat.bounds)}, knowledge: {record.threat.knowledge}", None),
        ("suite", f"{suite_text(record.suite)}, seed {record.seed}", None),
        ("environment", ", ".join(f"{key} {value}" for key, value in sorted(record.environment.items())), None),
        ("created", record.created, None),
        ("command", record.command, None),
    ]  # fmt: skip
    return [(name, plain(value), link) for name, value, link in said if value is not None]


def reference_facts(reference: Reference) -> list[Fact]:
    """What was said of a reference."""
    said: list[Fact] = [
        ("architecture", reference.architecture, None),
        ("paper", reference.title, reference.url),
        ("authors", reference.authors, None),
        ("venue", reference.venue, None),
        ("extra data", reference.extra_data, None),
        *((name, f"{percent(value)} %", None) for name, value in reference.scores.items()),
        ("footnote", reference.footnote, None),
    ]
    return [(name, plain(value), link) for name, value, link in said if value is not None]
