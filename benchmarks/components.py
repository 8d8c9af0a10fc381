"""AutoAttack's four components, each alone: ours beside the public implementation, image by image.

python benchmarks/components.py --auto-attack DIR [--limit 100] [--results NAME] [--note TEXT] \\
    --case MODEL,WEIGHTS,DATA,THREAT [--case ...]

DIR holds the public implementation (the package `autoattack`). Both draw their own random starts, so single
images near the boundary may differ: how far is shown by two seeds of the public one. Passes are counted on both
sides. The second table sums the cases up, component by component.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from verdict import Measured, case_of, hardware, public_autoattack

import robust
from robust.suites import SUITES

PUBLIC_NAMES = ("apgd-ce", "apgd-t", "fab-t", "square")


class Compared(NamedTuple):
    """A component on the samples of a case: our run, and the public one's with two seeds."""

    case: str
    component: str
    ours: Measured
    public: Measured
    again: Measured

    def row(self) -> str:
        ours, public, again = self.ours, self.public, self.again
        return (
            f"| {self.case} | {self.component} | {percent(ours.survives)} | {percent(public.survives)} | "
            f"{percent(again.survives)} | {apart(ours.survives, public.survives)} | "
            f"{apart(ours.survives, again.survives)} | {apart(again.survives, public.survives)} | "
            f"{ours.forwards} / {public.forwards} | {ours.backwards} / {public.backwards} | "
            f"{ours.seconds:.1f} / {public.seconds:.1f} |"
        )


def compare(case: str, limit: int, folder: str) -> list[Compared]:
    name, model, samples, threat = case_of(case, limit)
    x, y = samples.rows(slice(None)), samples.y
    found = []
    for public, stage in zip(PUBLIC_NAMES, SUITES["autoattack"](threat), strict=True):
        report = robust.evaluate(
            model, samples, threat=threat, suite=stage.attack, device="cpu", precision="float32"
        )
        standing = torch.from_numpy((report.verdicts.status == "survived").to_numpy(copy=True))
        entry = report.attacks[0]
        ours = Measured(standing, entry["forwards"], entry["backwards"], report.seconds)
        seeds = (public_autoattack(folder, model, x, y, threat, [public], seed) for seed in (0, 1))
        found.append(Compared(f"{name} {threat}", public, ours, *seeds))
        print(found[-1].row(), flush=True)
    return found


def summary(found: Iterable[Compared]) -> list[str]:
    """What the cases come to: accuracy against the mean of the public seeds, and images judged alike."""
    found = list(found)
    lines = [
        "",
        "| component | images | ours minus public, points | its seeds apart, points | alike, ours and public % | alike, its two seeds % |",
        "|---|---|---|---|---|---|",
    ]
    for component in (*PUBLIC_NAMES, "all four"):
        mine = [one for one in found if component in (one.component, "all four")]
        ours, public, again = (
            torch.cat([getattr(one, which).survives for one in mine]) for which in ("ours", "public", "again")
        )
        accuracy = [100 * float(survives.float().mean()) for survives in (ours, public, again)]
        alike = (agreement(ours, public) + agreement(ours, again)) / 2
        lines.append(
            f"| {component} | {len(ours)} | {accuracy[0] - (accuracy[1] + accuracy[2]) / 2:+.2f} | "
            f"{abs(accuracy[1] - accuracy[2]):.2f} | {alike:.2f} | {agreement(public, again):.2f} |"
        )
    return lines


def percent(survives: Tensor) -> str:
    return f"{100 * float(survives.float().mean()):.1f}"


def agreement(one: Tensor, other: Tensor) -> float:
    """Share of the samples that both break or both leave, in percent."""
    return 100 * float((one == other).float().mean())


def apart(one: Tensor, other: Tensor) -> str:
    """How many samples are broken by the first only, and by the second only."""
    return f"{int((~one & other).sum())} + {int((one & ~other).sum())}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", required=True, metavar="MODEL,WEIGHTS,DATA,THREAT")
    parser.add_argument("--auto-attack", metavar="DIR", required=True)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--results", metavar="NAME")
    parser.add_argument("--note", default="", help="said at the foot, such as what else the machine did")
    options = parser.parse_args()
    lines = [
        f"# AutoAttack's components alone, {options.limit} images each (ours / public)",
        "",
        "| model and threat | component | ours % | public % | its other seed % | ours, public apart | ours, other seed apart | its two seeds apart | forwards | backwards | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    found: list[Compared] = []
    for case in options.case:
        found += compare(case, options.limit, options.auto_attack)
        text = [*lines, *(one.row() for one in found), *summary(found), "", f"{hardware()} {options.note}"]
        if options.results:  # after every case: a long run that is cut off keeps what it has
            (Path(__file__).parent / "results" / f"{options.results}.md").write_text("\n".join(text) + "\n")
    print("\n".join([*summary(found), "", hardware()]), flush=True)


if __name__ == "__main__":
    main()
