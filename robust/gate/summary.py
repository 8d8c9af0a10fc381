"""What a session found: for the terminal, as JSON, and as Markdown for a pipeline's page.

Works on plain records, as they come from other processes too, and loads no torch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, Final

from robust.errors import StoreError
from robust.files import why

SCHEMA_VERSION: Final = 1
Record = dict[str, Any]
"""One check, evaluation or comparison of a test; see docs/ci.md for the keys."""
Failure = dict[str, str]
"""A robustness test that failed for another reason than a record's: test and reason."""

_INDENT: Final = " " * 11
_SIGNS: Final = {
    "pass": "pass",
    "fail": "**FAIL**",
    "undecided": "undecided",
    "error": "**ERROR**",
    "done": "measured",
    "written": "baseline written",
}


def lines(records: Sequence[Record]) -> list[str]:
    """For the terminal: a line per record, and what it leaves behind."""
    shown = []
    for record in records:
        shown.append(f"{record.get('xfail') or record['outcome']:>9}  {record['test']}")
        shown += [f"{_INDENT}{line}" for line in _numbers(record)]
        if record["outcome"] not in ("pass", "done", "written"):
            shown.append(filled(f"{_INDENT}{record['reason']}", _INDENT))
        shown += [f"{_INDENT}{key}: {record[key]}" for key in ("baseline", "evidence") if record.get(key)]
    return shown


def overwritten(records: Sequence[Record]) -> list[str]:
    """A line per baseline that comparisons wrote over each other with something else: all but the last then fail."""
    same = ("threat", "suite", "seed", "data_sha256", "model_sha256", "statuses")
    writers: dict[str, dict[str, str]] = {}  # tests by what they wrote, by file
    for record in records:
        if record["outcome"] == "written":
            content = json.dumps([record[key] for key in same])
            writers.setdefault(record["baseline"], {})[content] = record["test"]
    return [
        f"baseline {path}: written by {' and '.join(tests.values())}, each over the other; "
        "give each a `baseline` of its own, or none"
        for path, tests in writers.items()
        if len(tests) > 1
    ]


def filled(line: str, indent: str = "    ") -> str:
    """A line in as many of 80 columns as it takes, where words allow it."""
    return fill(line, 80, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _numbers(record: Record) -> list[str]:
    """One line, or two where one is too long."""
    if record["kind"] == "regression":
        return [
            f"{record['before']:.1%} -> {record['after']:.1%} on {record['n']} samples, "
            f"{len(record['lost'])} lost, {len(record['won'])} won, p = {record['p']:.3g}"
        ]
    goal = f" (at least {record['at_least']:.1%})" if record.get("at_least") is not None else ""
    found = f"{_accuracy(record)}{goal}, {record['threat']}, {record['trust']}"
    samples = f"{record['n']} of {record['population']} samples"
    both = f"{found}, {samples}"
    return [both] if len(both) <= 80 - len(_INDENT) else [f"{found},", samples]


def _accuracy(record: Record) -> str:
    low, high = record["interval"]
    at_most = "" if record.get("complete", True) else "at most "
    return f"{at_most}{record['robust_accuracy']:.1%} [{low:.1%}, {high:.1%}]"


def to_dict(
    records: Sequence[Record], settings: Mapping[str, Any], failures: Sequence[Failure] = ()
) -> dict[str, Any]:
    """The object that --robust-json writes."""
    totals = Counter(record["outcome"] for record in records)
    return {
        "schema_version": SCHEMA_VERSION,
        "settings": dict(settings),
        "totals": {outcome: totals[outcome] for outcome in _SIGNS},
        "results": list(records),
        "failures": list(failures),
    }


def write_json(
    path: Path, records: Sequence[Record], settings: Mapping[str, Any], failures: Sequence[Failure] = ()
) -> None:
    """Write `to_dict`.

    Raises:
        StoreError: the file cannot be written.
    """
    text = json.dumps(to_dict(records, settings, failures), indent=2, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"--robust-json: cannot write {path}: {why(error)}") from error


def markdown(records: Sequence[Record], failures: Sequence[Failure] = ()) -> str:
    """A section with a table, a row per record, and a list of the tests that failed otherwise."""
    rows = [
        "| test | outcome | robust accuracy | asked for | threat | samples | trust |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = [*rows, *(_row(record) for record in records), ""] if records else []
    if failures:
        rows += ["Failed for other reasons:", "", *(_item(failure) for failure in failures), ""]
    return "\n".join(["## Robustness", "", *rows]) + "\n"


def _item(failure: Failure) -> str:
    return "- " + ": ".join(
        _cells((f"`{failure['test']}`", f"**FAIL** `{failure['reason'].replace('`', chr(39))}`"))
    )


def _row(record: Record) -> str:
    outcome = record.get("xfail") or record["outcome"]
    if record["kind"] == "regression":
        accuracy = f"{record['before']:.1%} → {record['after']:.1%}"
        asked = f"fall of at most {100 * record['max_drop']:.3g} points"
        samples = f"{record['n']}; {len(record['lost'])} lost, {len(record['won'])} won"
    else:
        accuracy = _accuracy(record)
        asked = f"{record['at_least']:.1%}" if record.get("at_least") is not None else ""
        samples = f"{record['n']} of {record['population']}"
    cells = (
        f"`{record['test']}`",
        _SIGNS.get(outcome, outcome),
        accuracy,
        asked,
        record["threat"],
        samples,
        record["trust"],
    )
    return "| " + " | ".join(_cells(cells)) + " |"


def _cells(cells: Iterable[object]) -> Iterable[str]:
    """Text that cannot end a cell or a row."""
    return (" ".join(str(cell).split()).replace("|", "\\|") for cell in cells)


def append_markdown(path: Path, records: Sequence[Record], failures: Sequence[Failure] = ()) -> None:
    """Append the section to the file that $GITHUB_STEP_SUMMARY names.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(markdown(records, failures))
    except OSError as error:
        raise StoreError(f"$GITHUB_STEP_SUMMARY: cannot write {path}: {why(error)}") from error
