"""Records as ranked tables. Never ranks across different threats, data or suites."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable
from itertools import groupby
from typing import Any, Final

import pandas as pd

from robust.errors import InputError
from robust.leaderboard.artefacts import sha256
from robust.leaderboard.layout import board_text, csv_text, notes_text
from robust.leaderboard.record import Record
from robust.leaderboard.schema import AttackInfo

FORMATS: Final = ("terminal", "markdown", "csv", "latex", "json")
FIXED: Final = (
    "board", "rank", "model", "defense", "variant", "clean", "robust", "low", "high", "passes", "trust", "checks", "n", "id",
)  # fmt: skip


def leaderboard_frame(records: Iterable[Record]) -> pd.DataFrame:
    """A row per record, ranked within its board.

    Records share a board where norm, eps as written, bounds, data (by hash) and suite (its attacks with
    their parameters) are the same. Within it the higher robust accuracy comes first; unreliable records
    come last and have the rank "-". A rank is a range, "1-2", where 95 % intervals overlap: between
    those surely better and those surely worse.

    Returns:
        Columns board, rank, model, defense, variant (what tells rows of one model and defense apart),
        clean, robust, low, high (fractions), passes (forward and backward, per sample), trust, checks
        (those that fired), n, id, then one per attack: robust accuracy under it, NaN where it was not run.
    """
    boards = [list(members) for _, members in groupby(sorted(records, key=_order), key=_board_key)]
    headings = _headings(boards)
    rows = [
        {"board": heading, "rank": rank, "variant": variant, **_row(record)}
        for group, heading in zip(boards, headings, strict=True)
        for record, rank, variant in zip(group, _ranks(group), _variants(group), strict=True)
    ]
    frame = pd.DataFrame(rows, columns=None if rows else list(FIXED))
    return frame[[*FIXED, *(name for name in frame.columns if name not in FIXED)]]


def render(records: Iterable[Record], fmt: str = "terminal", *, width: int | None = None) -> str:
    """The ranked table as text: one table per board, with a heading that says what it is of.

    Names are stripped of control characters and escaped for the format, except in JSON, which keeps
    them as they are.

    Args:
        fmt: "terminal", "markdown", "csv", "latex" or "json".
        width: columns of the terminal, taken as 60 where fewer; 80 if not given.

    Raises:
        InputError: another format.
    """
    if fmt not in FORMATS:
        raise InputError(f"format: expected one of {', '.join(FORMATS)}, got {fmt!r}")
    width = max(width or 80, 60)
    frame = leaderboard_frame(records)
    if fmt == "json":
        return frame.to_json(orient="records", indent=1, force_ascii=False, double_precision=15)
    if fmt == "csv":
        return _csv(frame)
    if frame.empty:
        return "no records"
    boards = [board_text(str(name), rows, fmt, width) for name, rows in frame.groupby("board", sort=False)]
    notes = notes_text(frame, width) if fmt == "terminal" else ""
    return "\n\n".join([*boards, *([notes] if notes else [])])


def _board_key(record: Record) -> tuple[Hashable, ...]:
    """What records must share to be ranked against each other."""
    threat, suite = record.threat, record.suite
    attacks = json.dumps([[attack.name, attack.parameters] for attack in record.attacks], sort_keys=True)
    where = (threat.norm, threat.radius, threat.eps, threat.bounds, record.data.sha256, record.data.n)
    return *where, suite.name, suite.cascade, attacks


def _order(record: Record) -> tuple[Any, ...]:
    unreliable = record.trust == "unreliable"
    worth = (unreliable, -record.robust.value, -record.clean.value)
    return *_board_key(record), *worth, record.model.name, record.defense.name, record.id


def _headings(boards: list[list[Record]]) -> list[str]:
    """A heading per board; a digest is added where two would read the same."""
    plain = [_heading(group[0]) for group in boards]
    often = Counter(plain)
    return [
        f"{text} #{sha256(repr(_board_key(group[0])).encode())[:6]}" if often[text] > 1 else text
        for text, group in zip(plain, boards, strict=True)
    ]


def _heading(record: Record) -> str:
    threat, data, suite = record.threat, record.data, record.suite
    bounds = "" if threat.bounds == (0.0, 1.0) else f" in [{threat.bounds[0]:g}, {threat.bounds[1]:g}]"
    attacks = ", ".join(attack.label for attack in record.attacks)
    how = "in turn" if suite.cascade else "each alone"
    listed = f"{how}: {attacks}" if suite.name != attacks else how
    return (
        f"{threat.norm}:{threat.eps}{bounds}, {data.spec} (n = {data.n}, sha256 {data.sha256[:8]}), "
        f"suite {suite.name}, {listed}"
    )


def _ranks(group: list[Record]) -> list[str]:
    ranked = [record.robust for record in group if record.trust != "unreliable"]
    out = []
    for record in group:
        first = 1 + sum(other.low > record.robust.high for other in ranked)
        last = len(ranked) - sum(other.high < record.robust.low for other in ranked)
        span = str(first) if first == last else f"{first}-{last}"
        out.append("-" if record.trust == "unreliable" else span)
    return out


def _variants(group: list[Record]) -> list[str]:
    """For rows that share model and defense: the settings in which they differ, else the id."""
    out = []
    for record in group:
        same = [other for other in group if _names(other) == _names(record)]
        mine, others = _settings(record), [_settings(other) for other in same]
        differing = [key for key in mine if any(other.get(key) != mine[key] for other in others)]
        text = ", ".join(f"{key}={mine[key]}" for key in differing)
        if len(same) > 1 and others.count(mine) > 1:
            text = f"{text}, {record.id[:8]}" if text else record.id[:8]
        out.append(text)
    return out


def _names(record: Record) -> tuple[str, str]:
    return record.model.name, record.defense.name


def _settings(record: Record) -> dict[str, Any]:
    trained = record.defense.trained_threat
    settings = {**record.defense.parameters, "seed": record.seed}
    return settings if trained is None else {"trained": trained, **settings}


def _row(record: Record) -> dict[str, object]:
    return {
        "model": record.model.name,
        "defense": record.defense.name,
        "clean": record.clean.value,
        "robust": record.robust.value,
        "low": record.robust.low,
        "high": record.robust.high,
        "passes": (record.cost.forwards + record.cost.backwards) / record.data.n,
        "trust": record.trust,
        "checks": " ".join(sorted({finding.check for finding in record.findings})),
        "n": record.data.n,
        "id": record.short_id,
        **{_column(attack): attack.survived / record.data.n for attack in record.attacks if attack.attacked},
    }


def _column(attack: AttackInfo) -> str:
    return f"attack {attack.label}" if attack.label in FIXED else attack.label


def _csv(frame: pd.DataFrame) -> str:
    text = frame.copy()
    for name in ("board", "model", "defense", "variant"):
        text[name] = text[name].map(csv_text)
    return text.rename(columns=csv_text).to_csv(index=False, lineterminator="\n").rstrip("\n")
