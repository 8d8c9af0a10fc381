"""AutoAttack's four components, each alone: ours beside the public implementation, image by image.

python benchmarks/components.py --auto-attack DIR [--limit 100] [--results NAME] [--note TEXT] \\
    --case MODEL,WEIGHTS,DATA,THREAT [--case ...]

DIR holds the public implementation (the package `autoattack`). Both draw their own random starts, so single
images near the boundary may differ: how far is shown by two seeds of the public one. Passes are counted on both
sides. The second table sums the cases up, component by component.

With --spread N each component (--component NAME for some) runs from N seeds on either side instead: whether a difference
is more than the starts'.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from verdict import Measured, case_of, hardware, public_autoattack

import robust
from robust.sources import Samples
from robust.suites import SUITES
from robust.threat import Threat

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


def ours(component: str, model: nn.Module, samples: Samples, threat: Threat, seed: int = 0) -> Measured:
    attack = SUITES["autoattack"](threat)[PUBLIC_NAMES.index(component)].attack
    report = robust.evaluate(
        model, samples, threat=threat, suite=attack, seed=seed, device="cpu", precision="float32"
    )
    standing = torch.from_numpy((report.verdicts.status == "survived").to_numpy(copy=True))
    entry = report.attacks[0]
    return Measured(standing, entry["forwards"], entry["backwards"], report.seconds)


def compare(case: str, options: argparse.Namespace) -> list[Compared]:
    name, model, samples, threat = case_of(case, options.limit)
    x, y = samples.rows(slice(None)), samples.y
    found = []
    for component in options.component or PUBLIC_NAMES:
        mine = ours(component, model, samples, threat)
        seeds = (
            public_autoattack(options.auto_attack, model, x, y, threat, [component], seed) for seed in (0, 1)
        )
        found.append(Compared(f"{name} {threat}", component, mine, *seeds))
        print(found[-1].row(), flush=True)
    return found


def spread(case: str, options: argparse.Namespace) -> list[str]:
    """A row per component: robust accuracies over the seeds, and how often single images fall."""
    name, model, samples, threat = case_of(case, options.limit)
    x, y = samples.rows(slice(None)), samples.y
    rows = []
    for component in options.component or PUBLIC_NAMES:
        mine, public = [], []
        for seed in range(options.spread):
            mine.append(ours(component, model, samples, threat, seed).survives)
            found = public_autoattack(options.auto_attack, model, x, y, threat, [component], seed)
            public.append(found.survives)
        one, other = torch.stack(mine).float(), torch.stack(public).float()
        most = int((one.sum(0) - other.sum(0)).abs().max())
        rows.append(
            f"| {name} {threat} | {component} | {len(one)} | {over_seeds(one)} | {over_seeds(other)} | {most} |"
        )
        print(rows[-1], flush=True)
    return rows


def over_seeds(survives: Tensor) -> str:
    """Mean robust accuracy in percent, with the lowest and the highest: (seeds, N)."""
    each = 100 * survives.mean(1)
    return f"{float(each.mean()):.1f} ({float(each.min()):.1f} to {float(each.max()):.1f})"


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
        if not mine:
            continue
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


def _command(options: argparse.Namespace) -> str:
    """The command without the places of the files, which are this machine's."""
    spread = f" --spread {options.spread}" if options.spread else ""
    return (
        f"Command: python benchmarks/components.py --auto-attack DIR --limit {options.limit}{spread}, "
        "with the cases named in the rows."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", required=True, metavar="MODEL,WEIGHTS,DATA,THREAT")
    parser.add_argument("--auto-attack", metavar="DIR", required=True)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--component", action="append", choices=PUBLIC_NAMES)
    parser.add_argument("--spread", type=int, default=0, metavar="SEEDS")
    parser.add_argument("--results", metavar="NAME")
    parser.add_argument("--note", default="", help="said at the foot, such as what else the machine did")
    options = parser.parse_args()
    lines = [f"# AutoAttack's components alone, {options.limit} images each (ours / public)", ""]
    lines += _SPREAD_HEAD if options.spread else _HEAD
    print("\n".join(lines), flush=True)
    rows: list[str] = []
    found: list[Compared] = []
    for case in options.case:
        if options.spread:
            rows += spread(case, options)
        else:
            found += compare(case, options)
            rows = [*(one.row() for one in found), *summary(found)]
        foot = ["", f"{hardware()} {options.note}".strip(), _command(options)]
        if options.results:  # after every case: a long run that is cut off keeps what it has
            path = Path(__file__).parent / "results" / f"{options.results}.md"
            path.write_text("\n".join([*lines, *rows, *foot]) + "\n")
    print("\n".join([*(summary(found) if found else []), "", hardware()]), flush=True)


_HEAD = [
    "| model and threat | component | ours % | public % | its other seed % | ours, public apart | ours, other seed apart | its two seeds apart | forwards | backwards | seconds |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
]
_SPREAD_HEAD = [
    "| model and threat | component | seeds | ours % (lowest to highest) | public % | most seeds by which an image's fate differs |",
    "|---|---|---|---|---|---|",
]


if __name__ == "__main__":
    main()
