"""`robust list attacks`: all by source, one library's, or one attack in full."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from itertools import zip_longest
from textwrap import wrap
from typing import TYPE_CHECKING

from robust.cli import common

if TYPE_CHECKING:
    from robust.attacks import Attack
    from robust.attacks.adapters import Library

_WIDTHS = (34, 14, 9, 23)  # name, norms, access, paper: 80 columns
_BATCH = "may depend on the batch; group=1 gives each sample alone"


def show(name: str | None) -> int:
    """Print everything, the attacks of one source, or one attack."""
    from robust.attacks import ATTACKS
    from robust.attacks.adapters import LIBRARIES

    if name is not None and name not in LIBRARIES:
        print(_one(name, ATTACKS[name]))
        return 0
    if name is None:
        by_source: dict[str, list[str]] = {}
        for each in ATTACKS:
            by_source.setdefault(ATTACKS[each].__module__.partition(".")[0], []).append(each)
        for source in sorted(by_source, key=lambda s: (s != "robust", s)):
            _table(source, [_row(each, ATTACKS[each]) for each in by_source[source]])
    for library in LIBRARIES.values():
        if name in (None, library.name):
            _library(library)
    for reason in ATTACKS.broken.values():
        print(f"robust: {reason}", file=sys.stderr)
    print("`robust list attacks NAME` shows one with its options and what to know of it.")
    return 0


def _row(name: str, cls: type[Attack]) -> tuple[str, ...]:
    return name, " ".join(cls.norms), cls.access, cls.paper


def _library(library: Library) -> None:
    state = library.version or f'not installed: pip install "robust-harness[{library.extra}]"'
    rows = [(f"{library.name}:{n}", p.norms, p.access, p.paper) for n, p in sorted(library.peers.items())]
    _table(f"{library.name} {state}", rows, _BATCH)


def _table(title: str, rows: Sequence[tuple[str, ...]], remark: str = "") -> None:
    """A titled table of at most 80 columns; a name too long for its column has a line to itself."""
    print(f"source: {title}" + (f"\n{remark}" if remark else "") + "\n")
    for row in [("attack", "norms", "access", "paper"), tuple("-" * (w - 2) for w in _WIDTHS), *rows]:
        cells = [
            wrap(cell, width - 1, break_long_words=False) for cell, width in zip(row, _WIDTHS, strict=True)
        ]
        if len(row[0]) >= _WIDTHS[0]:
            print(row[0])
            cells[0] = []
        for line in zip_longest(*cells, fillvalue=""):
            print("".join(f"{c:{w}}" for c, w in zip(line, _WIDTHS, strict=True)).rstrip())
    print()


def _one(name: str, cls: type[Attack]) -> str:
    attack = cls()
    options = [f"{f.name}={getattr(attack, f.name)}" for f in fields(attack)]
    notes = [*attack.notes, *([_BATCH] if attack.batch_dependent else [])]
    lines = [name, "", common.described(cls), ""]
    facts = [
        ("norms", " ".join(cls.norms)),
        ("access", cls.access),
        ("source", attack.source),
        ("paper", cls.paper),
        ("options (--set)", ", ".join(options) or "none"),
    ]
    lines += [common.wrapped(f"{key}: {value}", "  ") for key, value in facts]
    lines += [common.wrapped(f"- {note}", "  ") for note in notes]
    return "\n".join(lines)
