"""AutoAttack's four components, each alone: ours beside the public implementation, image by image.

python benchmarks/components.py --auto-attack DIR [--limit 100] [--results NAME] \\
    --case MODEL,WEIGHTS,DATA,THREAT [--case ...]

DIR holds the public implementation (the package `autoattack`). Both draw their own random starts, so single
images near the boundary may differ; passes are counted on both sides.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from verdict import case_of, hardware, public_autoattack

import robust
from robust.suites import SUITES

PUBLIC_NAMES = ("apgd-ce", "apgd-t", "fab-t", "square")


def compare(case: str, limit: int, folder: str) -> list[str]:
    name, model, samples, threat = case_of(case, limit)
    x, y = samples.rows(slice(None)), samples.y
    rows = []
    for public, stage in zip(PUBLIC_NAMES, SUITES["autoattack"](threat), strict=True):
        report = robust.evaluate(
            model, samples, threat=threat, suite=stage.attack, device="cpu", precision="float32"
        )
        ours = torch.from_numpy((report.verdicts.status == "survived").to_numpy(copy=True))
        theirs, again = (public_autoattack(folder, model, x, y, threat, [public], seed) for seed in (0, 1))
        entry = report.attacks[0]
        rows.append(
            f"| {name} {threat} | {public} | {percent(ours)} | {percent(theirs.survives)} | {percent(again.survives)} | "
            f"{apart(ours, theirs.survives)} | {apart(again.survives, theirs.survives)} | "
            f"{entry['forwards']} / {theirs.forwards} | {entry['backwards']} / {theirs.backwards} | "
            f"{report.seconds:.1f} / {theirs.seconds:.1f} |"
        )
        print(rows[-1], flush=True)
    return rows


def percent(survives: Tensor) -> str:
    return f"{100 * float(survives.float().mean()):.1f}"


def apart(one: Tensor, other: Tensor) -> str:
    """How many samples are broken by the first only, and by the second only."""
    return f"{int((~one & other).sum())} + {int((one & ~other).sum())}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", required=True, metavar="MODEL,WEIGHTS,DATA,THREAT")
    parser.add_argument("--auto-attack", metavar="DIR", required=True)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--results", metavar="NAME")
    options = parser.parse_args()
    lines = [
        f"# AutoAttack's components alone, {options.limit} images each (ours / public)",
        "",
        "| model and threat | component | ours % | public % | its other seed % | ours, public apart | its two seeds apart | forwards | backwards | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for case in options.case:
        lines += compare(case, options.limit, options.auto_attack)
    lines += ["", hardware()]
    if options.results:
        (Path(__file__).parent / "results" / f"{options.results}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
