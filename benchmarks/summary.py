"""What the tables of `verdict.py` say together: `standard` beside the public AutoAttack. Prints a Markdown table.

python benchmarks/summary.py [NAME ...], names of files under results/, such as verdict-mnist-cpu.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import public_l0
from tabulate import tabulate

RESULTS = Path(__file__).parent / "results"
TABLES = (
    "mnist",
    "cifar",
    "unseen",
    "masked",
    "published",
    "verifiers",
    "vnncomp",
    "kinds",
    "vit",
    "level",
    "spectrum",
    "500",
    "1000",
    "mnbab",
    "plain",
    "fresh",
    "l1",
    "l1-500",
    "l0",
)
_FIGURES = ("robust %", "broken here only", "left here only", "forwards", "backwards", "seconds")


def rows_of(text: str) -> pd.DataFrame:
    """A table of `verdict.py`, a row per case: figures of ours, and of its reference with "aa " before their names.

    That is the public AutoAttack, in l0 the public sigma-zero and Sparse-RS.
    """
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    ]
    table = pd.DataFrame(lines[2:], columns=lines[0]).set_index("model and threat")
    table = table.astype(dict.fromkeys(_FIGURES, float))
    suites = {suite: part[list(_FIGURES)] for suite, part in table.groupby("suite")}
    reference = "public AutoAttack" if "public AutoAttack" in suites else public_l0.NAME
    return suites["robust, standard"].join(suites[reference].add_prefix("aa "))


def summed_up(name: str) -> dict[str, Any]:
    """The line of one table."""
    text = _text_of(name)
    rows = rows_of(text)
    passes, time = _ratios(rows)
    return {
        "table": f"[{name}](results/{name}.md)",
        "settings": len(rows),
        "images each": _images(text),
        "above AutoAttack": int((rows["robust %"] > rows["aa robust %"]).sum()),
        "broken here only": int(rows["broken here only"].sum()),
        "left here only": int(rows["left here only"].sum()),
        "times fewer passes": f"{passes.min():.0f} to {passes.max():.0f}",
        "times less time": f"{time.min():.0f} to {time.max():.0f}",
        "not trusted": int(text.count("| suspect: ") + text.count("| unreliable: ")),
        "in under 1/30": f"{int((time >= 30).sum())} of {len(time)}",
    }


def together(names: Sequence[str]) -> str:
    """What tables say as one, in a sentence."""
    tables = {name: rows_of(_text_of(name)) for name in names}
    rows = pd.concat(tables.values())
    images = sum(len(rows) * _images(_text_of(name)) for name, rows in tables.items())
    passes, time = _ratios(rows)
    return (
        f"{len(rows)} settings, {images:,} images: above AutoAttack in {int((rows['robust %'] > rows['aa robust %']).sum())}, "
        f"broken here only {int(rows['broken here only'].sum())}, left here only {int(rows['left here only'].sum())}; "
        f"passes {passes.min():.0f} to {passes.max():.0f} times fewer, the median {passes.median():.0f}, at least 20 in "
        f"{int((passes >= 20).sum())}; time {time.min():.0f} to {time.max():.0f} times less, the median {time.median():.0f}."
    )


def _text_of(name: str) -> str:
    return (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def _images(text: str) -> int:
    """How many images each setting has."""
    found = re.search(r"on (\d+) images each", text)
    assert found is not None
    return int(found[1])


def _ratios(rows: pd.DataFrame) -> tuple[pd.Series[float], pd.Series[float]]:
    """AutoAttack's passes and seconds over ours."""
    passes = (rows["aa forwards"] + rows["aa backwards"]) / (rows["forwards"] + rows["backwards"])
    return passes, rows["aa seconds"] / rows["seconds"]


def main() -> None:
    names = sys.argv[1:] or [f"verdict-{name}-cpu" for name in TABLES]
    print(
        tabulate(
            [summed_up(name) for name in names], headers="keys", tablefmt="github", disable_numparse=True
        )
    )
    balls = [name for name in names if not name.startswith(("verdict-l1", "verdict-l0"))]
    if balls:
        print(f"\nIn linf and l2: {together(balls)}")


if __name__ == "__main__":
    main()
