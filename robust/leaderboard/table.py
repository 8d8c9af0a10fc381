"""Records as ranked tables. Never ranks across different threats, data or suites."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import groupby, pairwise
from textwrap import fill
from typing import Any, Final

import pandas as pd

from robust.errors import InputError
from robust.leaderboard.artefacts import sha256
from robust.leaderboard.layout import board_text, csv_text, notes_text, plain, suite_text
from robust.leaderboard.rank import Survived, ranks
from robust.leaderboard.record import Record
from robust.leaderboard.reference import Reference
from robust.leaderboard.schema import TRAINING, AttackInfo, canonical
from robust.leaderboard.trust import reasons, shown_trust

FORMATS: Final = ("terminal", "markdown", "csv", "latex", "json")
_NAMED: Final = 6  # names of each kind, where nothing fits what was asked for
_LISTED: Final = 160  # characters of attacks that a heading has room for
FIXED: Final = (
    "board", "rank", "model", "defense", "variant", "clean", "robust", "low", "high", "worst", "passes", "trust", "checks", "n", "id",
)  # fmt: skip


def leaderboard_frame(
    records: Iterable[Record], *, references: Iterable[Reference] = (), survived: Survived | None = None
) -> pd.DataFrame:
    """A row per record and per reference, ranked within its board.

    Records share a board where norm, eps as written, bounds, data (by hash) and suite (its attacks with
    their parameters, whom each is shown, and whether the nearest points are searched for) are the same. Within it the higher robust accuracy comes first; unreliable records
    come last and have the rank "-". A rank is a range, "1-2", between those surely better and those
    surely worse; see `ranks`. References have boards of their own (norm, eps as written, data set, where
    they come from), for nothing says on which samples and with what attacks they were measured.

    Args:
        records: what was measured here.
        references: what others reported.
        survived: which samples survived, from `survivors`, for paired tests.

    Returns:
        Columns board, rank, model, defense, variant (what tells rows of one model and defense apart),
        clean, robust, low, high (fractions), worst (robust accuracy of the worst class), passes (forward
        and backward, per sample), trust ("unreliable" where the stated one does not hold, see `objections`),
        checks (those that fired, and objections), n, id, then one per attack: robust
        accuracy under it, NaN where it was not run.
    """
    rows: list[dict[str, Any]] = [
        {"board": heading, "rank": rank, "variant": variant, **_row(record)}
        for heading, group in boards(records)
        for record, rank, variant in zip(group, ranks(group, survived), _variants(group), strict=True)
    ]
    rows += reference_rows(references)
    frame = pd.DataFrame(rows, columns=None if rows else list(FIXED))
    return frame[[*FIXED, *_in_order([[name for name in row if name not in FIXED] for row in rows])]]


def _in_order(lists: list[list[str]]) -> list[str]:
    """All names once, each after those that it follows in any of the lists; in the order seen where lists disagree."""
    graph: dict[str, set[str]] = {name: set() for names in lists for name in names}
    for names in lists:
        for before, name in pairwise(names):
            graph[name].add(before)
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError:
        return list(graph)


def boards(records: Iterable[Record]) -> list[tuple[str, list[Record]]]:
    """Heading and records, the best first, of each board."""
    groups = [list(members) for _, members in groupby(sorted(records, key=_order), key=_board_key)]
    return list(zip(_headings(groups), groups, strict=True))


def render(
    records: Iterable[Record],
    fmt: str = "terminal",
    *,
    width: int | None = None,
    references: Iterable[Reference] = (),
    survived: Survived | None = None,
    chosen: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
) -> str:
    """The ranked table as text: one table per board, with a heading that says what it is of.

    Names are stripped of control characters and escaped for the format, except in JSON, which keeps
    them as they are.

    Args:
        fmt: "terminal", "markdown", "csv", "latex" or "json".
        width: columns of the terminal, taken as 60 where fewer; 80 if not given.
        references, survived: as for `leaderboard_frame`.
        chosen: takes the ranked frame and returns what of it to show, see `choose`.

    Raises:
        InputError: another format.
    """
    if fmt not in FORMATS:
        raise InputError(f"format: expected one of {', '.join(FORMATS)}, got {fmt!r}")
    frame = leaderboard_frame(records, references=references, survived=survived)
    shown = frame if chosen is None else chosen(frame)
    if shown.empty and not frame.empty and fmt not in ("json", "csv"):
        return _nothing_of(frame, max(width or 80, 60))
    return render_frame(shown, fmt, width=width)


def _nothing_of(frame: pd.DataFrame, width: int) -> str:
    """That nothing was chosen, and what there is to choose from."""
    lines = ["no records fit what was asked for; there are"]
    for column in ("board", "model", "defense", "trust"):
        names = list(dict.fromkeys(map(str, frame[column])))
        more = f"; and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        text = f"{column}: {'; '.join(map(plain, names[:_NAMED]))}{more}"
        lines.append(fill(text, width, initial_indent="  ", subsequent_indent="    "))
    return "\n".join(lines)


def render_frame(frame: pd.DataFrame, fmt: str, *, width: int | None = None) -> str:
    """A `leaderboard_frame` as text; see `render`."""
    width = max(width or 80, 60)
    if fmt == "json":
        return frame.to_json(orient="records", indent=1, force_ascii=False, double_precision=15)
    if fmt == "csv":
        return _csv(frame)
    if frame.empty:
        return "no records"
    texts = [board_text(str(name), rows, fmt, width) for name, rows in frame.groupby("board", sort=False)]
    notes = notes_text(frame, width) if fmt == "terminal" else ""
    return "\n\n".join([*texts, *([notes] if notes else [])])


def reference_rows(references: Iterable[Reference]) -> list[dict[str, Any]]:
    """Rows of `leaderboard_frame` for what others reported: ranked by score alone, ties as ranges."""
    rows = []
    for key, members in groupby(sorted(references, key=_reference_order), key=_reference_board):
        group = list(members)
        scores = [ref.robust for ref in group if ref.robust is not None and not ref.unreliable]
        for reference in group:
            score = None if reference.unreliable else reference.robust
            rank = "-"
            if score is not None:
                first = 1 + sum(other > score for other in scores)
                last = first + scores.count(score) - 1
                rank = str(first) if first == last else f"{first}-{last}"
            rows.append({"board": reference_heading(key), "rank": rank, **_reference_row(reference)})
    return rows


def choose(
    frame: pd.DataFrame,
    *,
    threat: str | None = None,
    data: str | None = None,
    suite: str | None = None,
    model: str | None = None,
    defense: str | None = None,
    trust: str | None = None,
    sort: str = "robust",
    limit: int | None = None,
) -> pd.DataFrame:
    """The rows of a `leaderboard_frame` that fit, with the ranks that they have among all.

    Args:
        threat, data, suite: text in the board's heading: threat its beginning ("linf", "linf:8/255").
        model, defense: text in the name, whatever its case.
        trust: the exact verdict.
        sort: a column: "robust", "clean", "worst" (the highest first), "passes", "model", "defense".
            Within each board; unreliable rows stay below.
        limit: so many rows per board.
    """
    keep = pd.Series(True, index=frame.index)
    heading = frame["board"].astype(str)
    if threat is not None:
        keep &= (heading + ",").str.match(rf"{re.escape(threat.lower())}[:, ]")
    if data:
        keep &= heading.str.contains(data, case=False, regex=False)
    if suite:
        keep &= heading.str.contains(rf"suite {re.escape(suite)}(?: version \d+)?,", case=False)
    for column, text in (("model", model), ("defense", defense)):
        if text is not None:
            keep &= frame[column].astype(str).str.contains(text, case=False, regex=False)
    if trust is not None:
        keep &= frame["trust"] == trust
    rows = frame[keep]
    if sort != "robust":
        falling = sort in ("clean", "worst")
        order = rows.assign(_board=pd.factorize(rows["board"])[0], _low=rows["trust"] == "unreliable")
        order = order.sort_values(
            ["_board", "_low", sort], ascending=[True, True, not falling], kind="stable"
        )
        rows = rows.loc[order.index]
    return rows if limit is None else rows.groupby("board", sort=False).head(limit)


def _board_key(record: Record) -> tuple[Hashable, ...]:
    """What records must share to be ranked against each other."""
    threat = record.threat
    where = (threat.norm, threat.radius, threat.eps, threat.bounds, record.data.sha256, record.data.n)
    return *where, threat.targeted, *map(canonical, record.search.values())


def _order(record: Record) -> tuple[Any, ...]:
    unreliable = shown_trust(record) == "unreliable"
    worth = (unreliable, -record.robust.value, -record.clean.value)
    return *_board_key(record), *worth, record.model.name, record.defense.name, record.id


def _headings(boards: list[list[Record]]) -> list[str]:
    """A heading per board; a digest is added where two would read the same."""
    short = [_heading(group[0]) for group in boards]
    often = Counter(short)
    return [
        f"{text} #{sha256(repr(_board_key(group[0])).encode())[:6]}" if often[text] > 1 else text
        for text, group in zip(short, boards, strict=True)
    ]


def _heading(record: Record) -> str:
    threat, data = record.threat, record.data
    bounds = "" if threat.bounds == (0.0, 1.0) else f" in [{threat.bounds[0]:g}, {threat.bounds[1]:g}]"
    return (
        f"{threat.norm}:{threat.eps}{bounds}, {data.spec} (n = {data.n}, sha256 {data.sha256[:8]}), "
        f"suite {_suite(record)}"
    )


def _suite(record: Record) -> str:
    """The suite in a heading: its attacks, unless its version says them in fewer words."""
    suite, labels = record.suite, [attack.label for attack in record.attacks]
    attacks = ", ".join(labels)
    how = "in turn" if suite.cascade else "each alone"
    if suite.version is not None and len(attacks) > _LISTED:
        return f"{suite_text(suite)}, {how}"
    return f"{suite.name}, {how}" if suite.name == attacks else f"{suite.name}, {how}: {attacks}"


def _variants(group: list[Record]) -> list[str]:
    """For rows that share model and defense: the settings in which they differ, else the id."""
    keys = [(*_names(record), canonical(_settings(record))) for record in group]
    often = Counter(keys)
    return [
        ", ".join(filter(None, (text, record.id[:8] if often[key] > 1 else "")))
        for record, text, key in zip(group, settings_apart(group), keys, strict=True)
    ]


def settings_apart(group: Sequence[Record]) -> list[str]:
    """For records that share model and defense: the settings in which they differ, such as "steps=5"; else nothing."""
    settings: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in group:
        settings.setdefault(_names(record), []).append(_settings(record))
    out = []
    for record in group:
        mine, others = _settings(record), settings[_names(record)]
        differing = [key for key in mine if any(other.get(key) != mine[key] for other in others)]
        out.append(", ".join(f"{key}={mine[key]}" for key in differing))
    return out


def _names(record: Record) -> tuple[str, str]:
    return record.model.name, record.defense.name


def _settings(record: Record) -> dict[str, Any]:
    trained = record.defense.trained_threat
    settings = {**record.defense.parameters, "seed": record.seed}
    training = settings.pop(TRAINING, None)
    settings = {**(training if isinstance(training, dict) else {}), **settings}
    return settings if trained is None else {"trained": trained, **settings}


def _row(record: Record) -> dict[str, object]:
    return {
        "model": record.model.name,
        "defense": record.defense.name,
        "clean": record.clean.value,
        "robust": record.robust.value,
        "low": record.robust.low,
        "high": record.robust.high,
        "worst": math.nan if record.fairness is None else record.fairness.value,
        "passes": (record.cost.forwards + record.cost.backwards) / record.data.n,
        "trust": shown_trust(record),
        "checks": " ".join(reasons(record)),
        "n": record.data.n,
        "id": record.short_id,
        **{
            _column(attack): count / record.data.n
            for attack, count in zip(record.attacks, record.standing, strict=True)
            if attack.attacked
        },
    }


def _reference_board(reference: Reference) -> tuple[str, ...]:
    return reference.norm, reference.eps or "", reference.dataset, reference.origin


def reference_heading(key: tuple[str, ...]) -> str:
    """Heading of a board of references."""
    norm, eps, dataset, origin = key
    threat = f"{norm}:{eps}" if eps else norm
    return f"{threat}, {dataset}, reported by {origin}, not measured here"


def _reference_order(reference: Reference) -> tuple[Any, ...]:
    score = math.inf if reference.robust is None else -reference.robust
    return *_reference_board(reference), reference.unreliable, score, reference.name, reference.id


def _reference_row(reference: Reference) -> dict[str, object]:
    return {
        "model": reference.name,
        "defense": reference.architecture,
        "variant": "",
        "clean": math.nan if reference.clean is None else reference.clean,
        "robust": math.nan if reference.robust is None else reference.robust,
        **dict.fromkeys(("low", "high", "worst", "passes"), math.nan),
        "trust": "unreliable" if reference.unreliable else "unknown",
        "checks": "",
        "n": None,
        "id": reference.short_id,
        **{
            f"{name} (reported)" if name != "reported" else name: value
            for name, value in reference.scores.items()
        },
    }


def _column(attack: AttackInfo) -> str:
    return f"attack {attack.label}" if attack.label in FIXED else attack.label


def _csv(frame: pd.DataFrame) -> str:
    text = frame.copy()
    for name in ("board", "model", "defense", "variant", "checks"):  # in the words of whoever made the record
        text[name] = text[name].map(csv_text)
    return text.rename(columns=csv_text).to_csv(index=False, lineterminator="\n").rstrip("\n")
