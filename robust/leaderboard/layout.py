"""How a board is set: escaping, short headings, and a table that fits the terminal."""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
from collections.abc import Hashable, Iterator
from itertools import product, zip_longest
from typing import Any, Final

import pandas as pd
from tabulate import SEPARATING_LINE, DataRow, Line, TableFormat, tabulate

from robust.attacks.labels import told_apart
from robust.leaderboard.schema import SuiteInfo

FLAGS: Final = {"trusted": "", "suspect": "?", "unreliable": "!", "unknown": "*"}  # in the table, by trust
_MEANING: Final = {
    "suspect": "suspect, read the findings before believing the number",
    "unreliable": "unreliable and not ranked, the number is not to be trusted",
    "unknown": "not measured here",
}
_LAST_FIXED: Final = "id"  # columns of the frame after this one are attacks
_LONGEST: Final = 60  # characters of a name on the terminal
_SHORT, _WHOLE = 8, 14  # characters of a word in an attack's head, where room is short and where it is not
_Row = dict[Hashable, Any]


def _format(gap: str) -> TableFormat:
    rule, row = Line("", "-", gap, ""), DataRow("", gap, "")
    return TableFormat(None, rule, None, None, row, row, padding=0, with_header_hide=None)


ROOMY: Final = _format("  ")
TIGHT: Final = _format(" ")


def suite_text(suite: SuiteInfo) -> str:
    """A suite's name with its version."""
    return plain(suite.name) + ("" if suite.version is None else f" version {suite.version}")


def board_text(heading: str, rows: pd.DataFrame, fmt: str, width: int) -> str:
    """One board of `leaderboard_frame` (rows with one value of `board`) under its heading."""
    columns = list(rows.columns)
    attacks = [name for name in columns[columns.index(_LAST_FIXED) + 1 :] if rows[name].notna().any()]
    if fmt == "terminal":
        return f"{_fill(plain(heading), width)}\n{_fit(rows, attacks, width)}"
    escape = markdown_text if fmt == "markdown" else plain  # tabulate escapes for LaTeX itself
    heads = ["#", "model", "defense", "clean %", "robust % [95 %]", *map(escape, attacks), "passes", "trust"]
    table = [
        [
            row["rank"],
            escape(row["model"]),
            escape(_defense(row)),
            percent(row["clean"]),
            " ".join(filter(None, _robust(row))),
            *(percent(row[attack]) for attack in attacks),
            _passes(row),
            f"{row['trust']} {FLAGS[row['trust']]}".strip(),
        ]
        for row in rows.to_dict("records")
    ]
    if fmt == "markdown":
        return f"**{escape(heading)}**\n\n{tabulate(table, heads, tablefmt='github', disable_numparse=True)}"
    return f"% {plain(heading)}\n{tabulate(table, heads, tablefmt='latex_booktabs', disable_numparse=True)}"


def notes_text(rows: pd.DataFrame, width: int) -> str:
    """What the flags of a `leaderboard_frame` mean, and which checks raised them for whom; may be empty."""
    notes = []
    for trust, meaning in _MEANING.items():
        flagged = rows[rows["trust"] == trust]
        checks: dict[str, set[str]] = {}
        for row in flagged.to_dict("records"):
            checks.setdefault(f"{row['model']} + {_defense(row)}", set()).update(row["checks"].split())
        whom = [f"{name} ({', '.join(sorted(found))})" if found else name for name, found in checks.items()]
        if trust == "unknown" and len(flagged):  # whole boards of them
            notes.append(f"{FLAGS[trust]} {meaning}")
        elif whom:
            notes.append(_fill(plain(f"{FLAGS[trust]} {meaning}: {'; '.join(whom)}"), width))
    return "\n".join(notes)


def short_heads(labels: list[str], longest: int = _SHORT) -> list[str]:
    """Attack labels on short lines, with the parameters that tell attacks of one name apart.

    "pgd", "pgd(loss=margin)", "cw(steps=9)" -> "pgd", "pgd / loss= / margin", "cw". Of a list of values the ends are shown.
    Words of more than `longest` characters are cut.
    """
    return ["\n".join(_narrow(line, longest) for line in lines) for lines in told_apart(labels)]


def plain(text: object) -> str:
    """Without control characters, line breaks or directional marks, which could forge a table."""
    text = str(text)
    if text.isascii() and text.isprintable():
        return text.strip()
    kept = ((" " if unicodedata.category(c) in _BREAKS else c) for c in text)
    return " ".join("".join(kept).split(" ")).strip()


_BREAKS: Final = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def markdown_text(text: object) -> str:
    """`plain`, with what Markdown or HTML would read as markup escaped."""
    return re.sub(r"([\\|`*\[\]])", r"\\\1", plain(text).replace("&", "&amp;").replace("<", "&lt;"))


def csv_text(text: object) -> str:
    """`plain`, with a quote before what a spreadsheet would run as a formula."""
    safe = plain(text)
    return f"'{safe}" if safe[:1] in ("=", "+", "-", "@") else safe


def percent(value: float) -> str:
    """A fraction in per cent with one digit, "-" for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _fit(rows: pd.DataFrame, attacks: list[str], width: int) -> str:
    """The table in the roomiest layout that fits; attacks that find no room go into a table below."""
    layouts = [
        (_wide, 24, ROOMY), (_wide, 24, TIGHT), (_wide, 14, TIGHT),
        (_stacked, 20, ROOMY), (_stacked, 14, ROOMY), (_stacked, 14, TIGHT), (_stacked, 10, TIGHT),
    ]  # fmt: skip
    for (layout, room, style), longest in product(layouts, (_WHOLE, _SHORT)):
        text = layout(rows, attacks, room, style, longest)
        if _columns(text) <= width:
            return text
    for fitting in range(len(attacks) - 1, 0, -1):
        text = _stacked(rows, attacks[:fitting], 14, TIGHT, _SHORT)
        if _columns(text) <= width or fitting == 1:
            return f"{text}\n\n{_fit(rows, attacks[fitting:], width)}"
    return text


def _wide(rows: pd.DataFrame, attacks: list[str], room: int, style: TableFormat, longest: int) -> str:
    """A line per record where names are no longer than `room`."""
    table = [
        [
            row["rank"],
            _cut(row["model"], room),
            _cut(_defense(row), room),
            percent(row["clean"]),
            " ".join(filter(None, _robust(row))),
            *_rest(row, attacks),
        ]
        for row in rows.to_dict("records")
    ]
    return _table(
        table,
        ["#", "model", "defense", "clean\n%", "robust %\n[95 %]"],
        short_heads(attacks, longest),
        "rllrl",
        style,
    )


def _stacked(rows: pd.DataFrame, attacks: list[str], room: int, style: TableFormat, longest: int) -> str:
    """Two lines and more per record: the defense under the model, the interval under the number."""
    table = [
        [
            row["rank"],
            f"{_cut(row['model'], room)}\n{_cut('+ ' + _defense(row), room)}",
            percent(row["clean"]),
            "\n".join(_robust(row)),
            *_rest(row, attacks),
        ]
        for row in rows.to_dict("records")
    ]
    return _table(
        table,
        ["#", "model\n+ defense", "clean\n%", "robust %\n[95 %]"],
        short_heads(attacks, longest),
        "rlrl",
        style,
    )


def _rest(row: _Row, attacks: list[str]) -> list[str]:
    numbers = [percent(row[attack]) for attack in attacks]
    return [*numbers, _passes(row), FLAGS[row["trust"]]]


def _table(table: list[list[str]], first: list[str], last: list[str], sides: str, style: TableFormat) -> str:
    """The first columns have the heads `first` and are aligned to `sides` (l or r), the attacks' `last`, to the right.

    The heads go in as rows, because tabulate makes columns two wider than their heads; cells of several
    lines as several rows, because it sets those in its own formats only.
    """
    heads = [*first, *last, "fwd+\nbwd", ""]
    if not any(cells[-1] for cells in table):
        table, heads = [cells[:-1] for cells in table], heads[:-1]
    align = [{"l": "left", "r": "right"}[side] for side in sides] + ["right"] * (len(heads) - len(sides))
    body = [line for cells in table for line in _lines(cells)]
    text = tabulate(
        [*_lines(heads), SEPARATING_LINE, *body], tablefmt=style, disable_numparse=True, colalign=align
    )
    return "\n".join(line.rstrip() for line in text.splitlines())


def _lines(cells: list[str]) -> list[tuple[str, ...]]:
    """One row of cells of several lines as several rows."""
    return list(zip_longest(*(cell.split("\n") for cell in cells), fillvalue=""))


def _defense(row: _Row) -> str:
    return f"{row['defense']} ({row['variant']})" if row["variant"] else str(row["defense"])


def _robust(row: _Row) -> tuple[str, str]:
    low, high = (percent(row[end]) for end in ("low", "high"))
    return percent(row["robust"]), "" if math.isnan(row["low"]) else f"[{low}, {high}]"


def _passes(row: _Row) -> str:
    return "-" if math.isnan(row["passes"]) else f"{row['passes']:.0f}"


def _cut(name: object, room: int) -> str:
    text = plain(name)
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    return "\n".join(textwrap.wrap(text, room)) or "-"


def _narrow(option: str, longest: int) -> str:
    """A name or option on lines of about eight characters, broken where words end: see `_words`."""
    lines: list[str] = []
    for word in _words(plain(option), longest):
        if lines and len(lines[-1]) + len(word) <= _SHORT and not lines[-1].endswith("="):
            lines[-1] += word
        else:
            lines.append(word)
    return "\n".join(lines)


def _words(text: str, longest: int) -> Iterator[str]:
    """Its words, each with the "=", "_", "-" or ":" after it; what is longer than `longest` loses its end to a full stop.

    What is no word, such as a number, is cut into pieces instead: the end of it matters.
    """
    for part in re.findall(r"[^=_:-]+[=_:-]?|[=_:-]", text):
        for word in re.split(r"(?<=[a-z])(?=[A-Z])", part):
            body, mark = (word[:-1], word[-1]) if word[-1] in "=_:-" else (word, "")
            if len(word) <= longest:
                yield word
            elif body.isalpha():
                yield f"{body[: longest - 1 - len(mark)]}.{mark}"
            else:
                yield from re.findall(f".{{1,{longest}}}", word)


def _columns(text: str) -> int:
    return max(map(len, text.splitlines()))


def _fill(text: str, width: int) -> str:
    """Lines of at most that width, which break at spaces and after commas."""
    lines = textwrap.wrap(re.sub(r",(?=\S)", ",\0 ", text), width, break_on_hyphens=False)
    return "\n".join(line.replace("\0 ", "").rstrip("\0") for line in lines)
