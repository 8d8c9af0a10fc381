"""What each stage of a suite is for: the suite without it, on the same models and images.

python benchmarks/ablation.py [--suite standard] [--limit 100] [--results NAME] [--note TEXT] \\
    --case MODEL,WEIGHTS,DATA,THREAT [--case ...]

All cases are of one norm, and their counts are summed. A stage goes together with those that see only what it brought
nearer; these are left out alone, too. Later stages break some of what an earlier one would have: so what a stage breaks
and what stands without it differ.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import pandas as pd
from verdict import case_of, hardware

import robust
from robust.report import Report
from robust.suites import SUITES, Stage

_CUT: Final = "without a stage"


@dataclass
class Counts:
    """Of a stage over the cases so far."""

    saw: int = 0
    broke: int = 0
    passes: int = 0
    more: int = 0  # that stand without it, and are broken with it
    fewer: int = 0  # that are broken without it, and stand with it
    saved: int = 0  # passes that the suite takes more with it

    def of_run(self, entry: dict[str, Any]) -> None:
        self.saw += entry["attacked"]
        self.broke += entry["broke"]
        self.passes += entry["forwards"] + entry["backwards"]

    def without(self, cut: Report, whole: Report) -> None:
        stood, stands = standing(whole), standing(cut)
        self.more += int((stands & ~stood).sum())
        self.fewer += int((stood & ~stands).sum())
        self.saved += passes(whole) - passes(cut)


class Ablation:
    """A suite's stages and what leaving each of them out came to."""

    def __init__(self, suite: str) -> None:
        self.suite, self.place = suite, 0
        self.labels, self.stages = list[str](), list[Counts]()
        self.samples = self.stand = self.passes = 0
        SUITES.register(_CUT)(lambda threat: without(SUITES[suite](threat), self.place))

    def add(self, case: str, limit: int) -> str:
        """Run a case with all stages and without each that saw any sample; its name."""
        name, model, samples, threat = case_of(case, limit)
        if not self.stages:
            self.labels = [label(stage) for stage in SUITES[self.suite](threat)]
            self.stages = [Counts() for _ in self.labels]

        def run(suite: str) -> Report:
            return robust.evaluate(model, samples, threat=threat, suite=suite, device="cpu")

        whole = run(self.suite)
        self.samples += len(samples)
        self.stand += int(standing(whole).sum())
        self.passes += passes(whole)
        for self.place, entry in enumerate(whole.attacks):
            counts = self.stages[self.place]
            counts.of_run(entry)
            if entry["attacked"]:
                counts.without(run(_CUT), whole)
        return f"{name} {threat}"

    def table(self) -> list[str]:
        head = [
            f"# The suite {self.suite} without each of its stages",
            "",
            "| stage, and whom it sees | saw | broke | of all passes % | without it: more stand | fewer stand | passes saved % |",
            "|---|---|---|---|---|---|---|",
        ]
        rows = [
            f"| {name} | {one.saw} | {one.broke} | {self._share(one.passes)} | {one.more} | {one.fewer} | {self._share(one.saved)} |"
            for name, one in zip(self.labels, self.stages, strict=True)
        ]
        return [*head, *rows, "", f"{self.stand} of {self.samples} samples stand after {self.passes} passes."]

    def _share(self, count: int) -> str:
        return f"{100 * count / self.passes:.1f}"


def standing(report: Report) -> pd.Series[bool]:
    return report.verdicts["status"] == "survived"


def passes(report: Report) -> int:
    return report.forwards + report.backwards


def without(stages: list[Stage], place: int) -> list[Stage]:
    """All stages but this one and those right after it that see only what it brought nearer."""
    after = stages[place + 1 :]
    followers = sum(1 for _ in takewhile(lambda stage: stage.follows or stage.closer, after))
    return stages[:place] + after[followers:]


def label(stage: Stage) -> str:
    """An attack and the conditions of its stage."""
    conditions = ((key, value) for key, value in stage.selection.items() if value)
    said = ", ".join(key if value is True else f"{key} {value}" for key, value in conditions)
    return f"{stage.attack.label}; {said or 'all'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", required=True, metavar="MODEL,WEIGHTS,DATA,THREAT")
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--results", metavar="NAME")
    parser.add_argument("--note", default="", help="said at the foot, such as what else the machine did")
    options = parser.parse_args()
    ablation, names = Ablation(options.suite), list[str]()
    for case in options.case:
        names.append(ablation.add(case, options.limit))
        foot = ["", f"Cases: {', '.join(names)}.", f"{hardware()} {options.note}".strip(), _command(options)]
        text = "\n".join(ablation.table() + foot) + "\n"
        if options.results:  # after every case: a long run that is cut off keeps what it has
            (Path(__file__).parent / "results" / f"{options.results}.md").write_text(text)
    print(text)


def _command(options: argparse.Namespace) -> str:
    return f"Command: python benchmarks/ablation.py --suite {options.suite} --limit {options.limit}, with these cases."


if __name__ == "__main__":
    main()
