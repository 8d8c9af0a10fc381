"""`robust sweep`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robust.cli import common

if TYPE_CHECKING:
    from robust.defenses import EpochResult
    from robust.run import Progress
    from robust.sweep import SweepConfig

EPILOG = "Example: robust sweep (the demonstration on real digits), or robust sweep plan.toml --out results"


def sweep(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG.toml]", help="the plan; none: the built-in demonstration"),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="where results are kept and found again")
    ] = Path("robust-demo"),
    device: common.DeviceOption = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
) -> int:
    """Train, harden, attack and rank: every model x defense x threat x suite x seed of a plan.

    Run it again to go on after an interruption: what is there is not computed again.
    """
    from robust.leaderboard import Store, render, survivors
    from robust.sweep import demonstration, load_config, run_sweep

    plan = demonstration() if config is None else load_config(config)
    if dry_run:
        _print_plan(plan)
        return 0
    common.writable_folder(out)
    start = time.perf_counter()
    with common.bars() as bars:
        command = " ".join(["robust", *sys.argv[1:]])
        result = run_sweep(plan, out, device=device, listener=_watch(bars), command=command)
    survived = survivors(Store(out), result.records)
    print(render(result.records, "terminal", width=80, survived=survived))
    print(
        f"{result.computed} evaluations computed, {result.reused} found in {out}, {time.perf_counter() - start:.0f} s; "
        f"`robust leaderboard show {out}` prints this again"
    )
    for failure in result.failures:
        print(f"robust: failed: {failure}", file=sys.stderr)
    if result.failures:
        print(
            f"robust: {len(result.failures)} failed, see {out / 'failures'}; run again for the rest",
            file=sys.stderr,
        )
    return 3 if result.failures else 0


def _print_plan(config: SweepConfig) -> None:
    from robust.sweep.run import plan

    cells = list(plan(config))
    for cell in cells:
        print(cell.title)
    print(f"{len(cells)} evaluations, {len(config.models) * len(config.defenses)} models to train")


def _watch(bars: Any) -> Any:
    from robust.cli.harden import Watch
    from robust.sweep.run import Listener

    class Show(Listener):
        """Bars for the whole and for what runs; a line per finished step."""

        def __init__(self) -> None:
            self._watch = Watch(bars)
            self._whole = bars.add_task("sweep", total=1)

        def plan(self, pairs: int, cells: int) -> None:
            bars.update(self._whole, total=pairs + cells)

        def train(self, title: str, *, reused: bool) -> None:
            bars.advance(self._whole)
            if not reused:
                bars.console.print(f"training {title}")

        def epoch(self, result: EpochResult) -> None:
            if result.epoch == result.epochs:
                self._watch.epoch(result)

        def batch(self, done: int, total: int) -> None:
            self._watch.batch(done, total)

        def cell(self, title: str, *, reused: bool) -> None:
            bars.advance(self._whole)
            if not reused:
                bars.console.print(f"attacking {title}")

        def attack(self, progress: Progress) -> None:
            self._watch.attack(progress)

        def failed(self, title: str, reason: str) -> None:
            bars.console.print(f"failed: {title}: {reason}", style="red")

    return Show()
