"""Whom each stage of a suite breaks, by what was left of the margin before it: which samples its passes are for.

python benchmarks/shares.py [--suite standard] [--limit 300] [--seed 0] [--results NAME] [--note TEXT] \\
    --case MODEL,WEIGHTS,DATA,THREAT [--case ...]

All cases are of one norm, and their counts are summed. A share of 1 has not moved, 0 is broken. A cell says how many of the
samples with such a share the stage broke, of how many that it saw, and for how many thousand passes. What it brought
nearer later stages may break: `ablation.py` counts that, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from unittest.mock import patch

import torch
from ablation import label
from tabulate import tabulate
from torch import Tensor
from verdict import case_of, hardware

import robust
from robust.run import Run
from robust.suites import Stage

_BANDS: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.97, float("inf"))


@dataclass
class Seen:
    """Samples that a stage saw and broke, and its passes: (bands,) each."""

    saw: Tensor = field(default_factory=lambda: torch.zeros(len(_BANDS), dtype=torch.int64))
    broke: Tensor = field(default_factory=lambda: torch.zeros(len(_BANDS), dtype=torch.int64))
    passes: Tensor = field(default_factory=lambda: torch.zeros(len(_BANDS), dtype=torch.int64))

    def add(self, shares: Tensor, broke: Tensor, passes: Tensor) -> None:
        """Count samples by the share that each had before the stage; all (n,)."""
        band = torch.bucketize(shares, torch.tensor(_BANDS))
        self.saw += torch.bincount(band, minlength=len(_BANDS))
        self.broke += torch.bincount(band[broke], minlength=len(_BANDS))
        self.passes.index_add_(0, band, passes)

    def cells(self) -> list[str]:
        """A cell for each band, and one for all of them."""
        return [
            f"{broke} of {saw}, {passes / 1000:.1f}k" if saw else ""
            for saw, broke, passes in zip(
                [*self.saw.tolist(), int(self.saw.sum())],
                [*self.broke.tolist(), int(self.broke.sum())],
                [*self.passes.tolist(), int(self.passes.sum())],
                strict=True,
            )
        ]


class Shares:
    """The stages of a suite in their order, and what each came to over the cases so far."""

    def __init__(self) -> None:
        self.stages: list[tuple[Stage, Seen]] = []
        self.samples = self.stand = self.passes = 0
        self.version: int | None = None

    def add(self, case: str, limit: int, suite: str, seed: int) -> str:
        """Run a case; its name."""
        name, model, samples, threat = case_of(case, limit)
        with patch.object(Run, "attack", self._watching(Run.attack)):
            report = robust.evaluate(model, samples, threat=threat, suite=suite, device="cpu", seed=seed)
        self.version = report.suite_version
        self.samples += len(samples)
        self.stand += report.statuses["survived"]
        self.passes += report.forwards + report.backwards
        return f"{name} {threat}"

    def _watching(self, attack: Callable[..., None]) -> Callable[..., None]:
        def watched(run: Run, stage: Stage, *, cascade: bool) -> None:
            v, place = run.verdicts, len(run.entries)
            if place == len(self.stages):
                self.stages.append((stage, Seen()))
            shares, status, passes = v.margin / v.clean_margin, v.status.clone(), v.forwards + v.backwards
            attack(run, stage, cascade=cascade)
            spent = v.forwards + v.backwards - passes
            saw = spent > 0
            self.stages[place][1].add(shares[saw], (v.status != status)[saw], spent[saw])

        return watched

    def table(self) -> str:
        heads = ["stage, and whom it sees", *(f"to {band:g}" for band in _BANDS[:-1]), "over", "all"]
        rows = [[label(stage), *seen.cells()] for stage, seen in self.stages if seen.saw.any()]
        return tabulate(rows, heads, "github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", required=True, metavar="MODEL,WEIGHTS,DATA,THREAT")
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", metavar="NAME")
    parser.add_argument("--note", default="", help="said at the foot, such as what else the machine did")
    options = parser.parse_args()
    shares, names = Shares(), list[str]()
    for case in options.case:
        names.append(shares.add(case, options.limit, options.suite, options.seed))
        foot = (
            f"{shares.stand} of {shares.samples} samples stand after {shares.passes} passes.\n\nCases: {', '.join(names)}.\n"
            f"Version {shares.version}. {hardware()} {options.note}".rstrip()
            + "\n"
            f"Command: python benchmarks/shares.py --suite {options.suite} --limit {options.limit} --seed {options.seed}, with these cases."
        )
        title = f"# Whom the stages of {options.suite} break, by the share of the margin that was left before"
        text = f"{title}\n\n{shares.table()}\n\n{foot}\n"
        if options.results:  # after every case: a long run that is cut off keeps what it has
            (Path(__file__).parent / "results" / f"{options.results}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
