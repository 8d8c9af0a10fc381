"""What the tables of `verdict.py` say together: `standard` beside the public AutoAttack. Prints a Markdown table.

python benchmarks/summary.py [NAME ...], names of files under results/, such as verdict-mnist-cpu.
"""

from __future__ import annotations

import re
import sys
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
    "1000",
    "l1",
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
    text = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    rows = rows_of(text)
    images = re.search(r"on (\d+) images each", text)
    assert images is not None
    passes = (rows["aa forwards"] + rows["aa backwards"]) / (rows["forwards"] + rows["backwards"])
    time = rows["aa seconds"] / rows["seconds"]
    return {
        "table": f"[{name}](benchmarks/results/{name}.md)",
        "settings": len(rows),
        "images each": images[1],
        "above AutoAttack": int((rows["robust %"] > rows["aa robust %"]).sum()),
        "broken here only": int(rows["broken here only"].sum()),
        "left here only": int(rows["left here only"].sum()),
        "times fewer passes": f"{passes.min():.0f} to {passes.max():.0f}",
        "times less time": f"{time.min():.0f} to {time.max():.0f}",
        "not trusted": int(text.count("| suspect: ") + text.count("| unreliable: ")),
        "in under 1/30": f"{int((time >= 30).sum())} of {len(time)}",
    }


def main() -> None:
    names = sys.argv[1:] or [f"verdict-{name}-cpu" for name in TABLES]
    print(
        tabulate(
            [summed_up(name) for name in names], headers="keys", tablefmt="github", disable_numparse=True
        )
    )


if __name__ == "__main__":
    main()
