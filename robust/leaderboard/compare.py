"""Two records on the same samples: paired difference with interval and p-value, per class too."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from tabulate import SEPARATING_LINE, tabulate

from robust.errors import InputError
from robust.leaderboard.layout import TIGHT, percent, plain
from robust.leaderboard.record import Record
from robust.leaderboard.table import settings_apart
from robust.leaderboard.trust import shown_trust
from robust.stats import holm, mcnemar, paired_interval

Flags = npt.NDArray[np.bool_]
_WIDTH: Final = 80
_LONGEST, _SHORTEST = 16, 8  # characters of a class's name


@dataclass(frozen=True)
class Paired:
    """How often A and B were robust on the same n samples.

    `difference` is A's robust accuracy less B's, `low` and `high` its 95 % interval (Tango 1998), `p` of
    the exact McNemar test; `p_holm` is p adjusted for all the classes tested.
    """

    name: str
    n: int
    both: int
    only_a: int
    only_b: int
    neither: int
    difference: float
    low: float
    high: float
    p: float
    p_holm: float

    @staticmethod
    def of(name: str, a: Flags, b: Flags) -> Paired:
        """From what was robust, (n,) each."""
        only_a, only_b, both = int((a & ~b).sum()), int((b & ~a).sum()), int((a & b).sum())
        low, high = paired_interval(only_a, only_b, len(a))
        p = mcnemar(only_a, only_b)
        difference = (only_a - only_b) / len(a)
        neither = len(a) - both - only_a - only_b
        return Paired(name, len(a), both, only_a, only_b, neither, difference, low, high, p, p)


@dataclass(frozen=True)
class Comparison:
    """Two records on the same samples, whole and per class; `differs` names conditions that differ."""

    a: Record
    b: Record
    whole: Paired
    classes: list[Paired]
    differs: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The object that `--json` writes."""
        sides = {
            side: {"id": record.id, "model": record.model.name, "defense": record.defense.name}
            for side, record in (("a", self.a), ("b", self.b))
        }
        classes = [asdict(part) for part in self.classes]
        return {**sides, "whole": asdict(self.whole), "classes": classes, "differs": self.differs}


def compare(a: Record, b: Record, verdicts_a: pd.DataFrame, verdicts_b: pd.DataFrame) -> Comparison:
    """Compare two records by their verdict tables. Samples that ended in an error count as not robust.

    Raises:
        InputError: the records are not of the same samples.
    """
    left, right = (table.set_index("sample_id") for table in (verdicts_a, verdicts_b))
    if a.data.sha256 != b.data.sha256 or not left.index.equals(right.index):
        raise InputError(
            f"compare: {a.short_id} is of {plain(a.data.spec)} (sha256 {a.data.sha256[:8]}, n = {a.data.n}), "
            f"{b.short_id} of {plain(b.data.spec)} ({b.data.sha256[:8]}, n = {b.data.n}); "
            "only the same samples can be paired"
        )
    robust_a, robust_b = ((table["status"] == "survived").to_numpy() for table in (left, right))
    labels = left["label"].to_numpy()
    names = {group.label: group.name for group in a.classes}
    classes = [
        Paired.of(names.get(label, str(label)), robust_a[labels == label], robust_b[labels == label])
        for label in sorted({int(label) for label in labels})
    ]
    adjusted = holm([part.p for part in classes])
    classes = [Paired(**{**asdict(part), "p_holm": p}) for part, p in zip(classes, adjusted, strict=True)]
    return Comparison(a, b, Paired.of("all", robust_a, robust_b), classes, _differs(a, b))


def _differs(a: Record, b: Record) -> list[str]:
    """Conditions, beside the model and defense, in which two records differ."""
    sides: list[dict[str, Any]] = [
        {
            "threat": f"{record.threat.norm}:{record.threat.eps} in {list(record.threat.bounds)}",
            **record.search,
            "seed": record.seed,
        }
        for record in (a, b)
    ]
    shown = {"threat", "suite", "cascade", "minimize", "seed"}
    return [
        f"{key} ({plain(sides[0][key])} and {plain(sides[1][key])})" if key in shown else key
        for key in sides[0]
        if sides[0][key] != sides[1][key]
    ]


def comparison_text(found: Comparison) -> str:
    """For a terminal of 80 columns."""
    from textwrap import fill

    sides = [("A", found.a), ("B", found.b)]
    apart = [f" ({plain(text)})" if text else "" for text in settings_apart([found.a, found.b])]
    lines = [
        fill(
            f"{side}: {plain(r.model.name)} + {plain(r.defense.name)}{setting}, {r.short_id}, trust: {shown_trust(r)}",
            _WIDTH,
        )
        for (side, r), setting in zip(sides, apart, strict=True)
    ]
    if found.differs:
        lines.append(fill(f"not under the same conditions: {'; '.join(found.differs)}", _WIDTH))
    lines.append(fill(f"on {plain(found.a.data.spec)}, n = {found.whole.n}, the same samples", _WIDTH))
    lines += ["", _table(found), ""]
    lines.append(fill(_verdict(found), _WIDTH))
    return "\n".join(lines)


def _table(found: Comparison) -> str:
    """A line per class, names cut to what the numbers leave of the width."""
    heads = ("class", "n", "A %", "B %", "A - B [95 %]", "only A/B", "p", "p Holm")
    aligns = ("left", *["right"] * 7)
    rows = [_row(part) for part in (*found.classes, found.whole)]
    rows[-1][-1] = ""  # the whole is one test, not one of many

    def table(room: int) -> str:
        cut = [[_cut(name, room), *numbers] for name, *numbers in rows]
        return tabulate(
            [heads, SEPARATING_LINE, *cut], tablefmt=TIGHT, disable_numparse=True, colalign=aligns
        )

    text = table(_LONGEST)
    excess = max(map(len, text.splitlines())) - _WIDTH
    used = max(len(_cut(row[0], _LONGEST)) for row in rows)
    text = table(max(used - excess, _SHORTEST)) if excess > 0 else text
    return "\n".join(line.rstrip() for line in text.splitlines())


def _cut(name: str, room: int) -> str:
    return name if len(name) <= room else f"{name[: room - 3]}..."


def _row(part: Paired) -> list[str]:
    a, b = ((part.both + only) / part.n for only in (part.only_a, part.only_b))
    difference, low, high = (f"{100 * value:+.1f}" for value in (part.difference, part.low, part.high))
    return [
        plain(part.name),
        str(part.n),
        percent(a),
        percent(b),
        f"{difference} [{low}, {high}]",
        f"{part.only_a}/{part.only_b}",
        f"{part.p:.2g}",
        f"{part.p_holm:.2g}",
    ]


def _verdict(found: Comparison) -> str:
    whole = found.whole
    better = "A" if whole.difference > 0 else "B"
    verdict = "held on more samples, under other conditions" if found.differs else "is more robust"
    first = (
        f"{better} {verdict} (p = {whole.p:.2g})"
        if whole.p < 0.05
        else f"no difference shown (p = {whole.p:.2g})"
    )
    if unreliable := [side for side, r in (("A", found.a), ("B", found.b)) if shown_trust(r) == "unreliable"]:
        first += f", but {' and '.join(unreliable)} must not be trusted"
    classes = [plain(part.name) for part in found.classes if part.p_holm < 0.05]
    return f"{first}; classes that differ after Holm's adjustment: {', '.join(classes) or 'none'}"
