"""`robust sweep`."""

from __future__ import annotations

import json
import shlex
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robust.cli import common

if TYPE_CHECKING:
    from collections.abc import Callable

    from robust.sweep import SweepConfig, SweepResult
    from robust.sweep.executors import Executor

EPILOG = (
    "Example: robust sweep (the demonstration on real digits), or robust sweep plan.toml --out results "
    "--workers 4. Exit status: 0 all there, 2 a mistake in the plan, 3 something is missing, 130 interrupted."
)


def sweep(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG", help="the plan, a .toml or .yaml file; none: the built-in demonstration"
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="where results are kept and found again")
    ] = Path("robust-demo"),
    executor: Annotated[
        str, typer.Option("--executor", metavar="local|ray", help="where the work is done")
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", metavar="N", min=1, help="local: processes [1: this one]; ray: actors [all]"
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="of each worker, on a CPU")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="HOST:PORT", help="of a Ray cluster; none starts one here"),
    ] = None,
    device: common.DeviceOption = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the plan with an estimate of passes and time, and stop")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="print the JSON schema of a plan, and stop")
    ] = False,
) -> int:
    """Train, harden, attack and rank all that a plan names. Every model x defense x threat x suite x seed.

    Run it again to go on after an interruption: what is there is not computed again.
    """
    from robust.devices import resolve_device
    from robust.sweep.config import SweepConfig, demonstration
    from robust.sweep.reading import load_config

    if schema:
        print(json.dumps(SweepConfig.model_json_schema(), indent=2))
        return 0
    make = _executor(executor, workers, threads, address, device)
    if executor == "local":
        resolve_device(device)  # a mistake is told before anything else
    plan = demonstration() if config is None else load_config(config)
    if dry_run:
        return _print_plan(plan, device, workers or 1)
    from robust.cli.watch import watching
    from robust.sweep import run_sweep
    from robust.sweep.cells import short_names

    start = time.perf_counter()
    command = shlex.join(["robust", *sys.argv[1:]])
    with common.resumable(), watching(short_names(plan)) as listener:
        result = run_sweep(plan, out, executor=make, listener=listener, command=command)
    return _summary(result, out, time.perf_counter() - start)


def _executor(
    name: str, workers: int | None, threads: int | None, address: str | None, device: str
) -> Callable[[], Executor]:
    from robust.errors import InputError

    if name not in ("local", "ray"):
        raise InputError(f"--executor: expected 'local' or 'ray', got {name!r}")
    if address is not None and name != "ray":
        raise InputError("--address: is of a Ray cluster; give --executor ray as well")

    def make() -> Executor:
        if name == "ray":
            from robust.sweep.on_ray import Ray

            return Ray(address, workers, device, threads)
        if workers is None or workers == 1:
            from robust.sweep.executors import InProcess

            return InProcess(device, threads)
        from robust.sweep.processes import Processes

        return Processes(workers, device, threads)

    if name == "ray":
        from robust.sweep.on_ray import require_ray

        require_ray()
    return make


def _summary(result: SweepResult, out: Path, seconds: float) -> int:
    from robust.leaderboard import Store, render, survivors

    again = ""
    if result.records:
        store = Store(out)
        print(render(result.records, "terminal", width=80, survived=survivors(store, result.records)))
        more = store.count() > len(result.records)
        again = f"\n`robust leaderboard show {out}` prints this {'and what earlier plans left' if more else 'again'}"
    drawn = _print_curves(result, out)
    print(
        f"{result.computed} evaluations computed, {result.reused} found in {out}, {common.duration(seconds)}{again}"
    )
    _print_what_is_missing(result, out)
    whole = drawn and not (result.failures or result.missing or result.stopped is not None)
    return 0 if whole else 3


def _print_what_is_missing(result: SweepResult, out: Path) -> None:
    """Reasons, each once with the title that it met first; then what has no result."""
    reasons: dict[str, list[str]] = {}
    for failure in result.failures:
        reasons.setdefault(failure.reason, []).append(failure.title)
    for reason, titles in reasons.items():
        others = f" (and {len(titles) - 1} more)" if len(titles) > 1 else ""
        print(f"robust: failed: {titles[0]}{others}: {reason}", file=sys.stderr)
    if result.stopped is not None:
        print(f"robust: stopped: {result.stopped}", file=sys.stderr)
    if result.missing:
        more = "; ..." if len(result.missing) > 3 else ""
        print(
            f"robust: {len(result.missing)} missing: {'; '.join(result.missing[:3])}{more}", file=sys.stderr
        )
    hints = [f"tracebacks in {out / 'failures'}"] if result.failures else []
    hints += ["run again for what is missing"] if result.missing else []
    if hints:
        print(f"robust: {'; '.join(hints)}", file=sys.stderr)
    kept = [str(failure.kept) for failure in result.failures if failure.kept is not None]
    if kept:
        print(
            "robust: kept with their errors, and found as they are when run again, unless deleted:",
            file=sys.stderr,
        )
        print("\n".join(f"  {path}" for path in kept), file=sys.stderr)


def _print_curves(result: SweepResult, out: Path) -> bool:
    """Curves as tables, and as pictures where matplotlib is there; False where these cannot be written."""
    from tabulate import tabulate

    from robust.errors import MissingDependencyError, StoreError
    from robust.leaderboard.layout import plain
    from robust.sweep.plots import plot_curves

    drawn = True
    groups: dict[tuple[str, tuple[str, ...], str, int, str], list[dict[str, Any]]] = {}
    for curve in result.curves:
        eps = tuple(point["eps"] for point in curve["points"])
        key = (curve["norm"], eps, curve["suite"], curve["seed"], curve["data"]["sha256"])
        groups.setdefault(key, []).append(curve)
    for key, curves in groups.items():
        norm, eps, suite, seed, _ = key
        heads = ["robust %", *eps]
        rows = [
            [plain(f"{c['model']} + {c['defense']}"), *(f"{100 * p['value']:.1f}" for p in c["points"])]
            for c in curves
        ]
        print(
            f"{norm}, {suite}, seed {seed}, {curves[0]['data']['n']} samples of {curves[0]['data']['spec']}"
        )
        print(tabulate(rows, heads, tablefmt="simple", disable_numparse=True))
        try:
            files = plot_curves(curves, out / "curves" / _picture_name(norm, key, curves))
            print(f"pictures: {', '.join(map(str, files))}")
        except MissingDependencyError as error:
            print(f"robust: {error}", file=sys.stderr)
        except StoreError as error:  # the results are there all the same
            print(f"robust: {error}", file=sys.stderr)
            drawn = False
        print()
    return drawn


def _picture_name(norm: str, key: tuple[object, ...], curves: list[dict[str, Any]]) -> str:
    """After what the picture is of: another plan's in the same folder has another name."""
    shown = [key, [(curve["model"], curve["defense"]) for curve in curves]]
    return f"{norm}-{sha256(json.dumps(shown).encode()).hexdigest()[:8]}"


def _print_plan(config: SweepConfig, device: str, workers: int) -> int:
    from tabulate import tabulate

    from robust.failures import naming_failures
    from robust.sweep.estimate import estimate

    with naming_failures():
        lines = estimate(config, device)
    heads = ["to train, then to attack", "samples", "passes", "time"]
    rows = [
        [
            line.title,
            f"{line.samples:,}",
            f"{line.about}{line.passes:,.0f}",
            line.about + common.duration(line.seconds),
        ]
        for line in lines
    ]
    align = ("left", "right", "right", "right")
    print(
        tabulate(
            rows, heads, "simple", colalign=align, maxcolwidths=[45, None, None, None], disable_numparse=True
        )
    )
    seconds = sum(line.seconds for line in lines) / workers
    training = sum(line.training for line in lines)
    passes = sum(line.passes for line in lines)
    print(
        f"{len(lines) - training} evaluations, {training} models to train, {passes:,.0f} passes:\nabout "
        f"{common.duration(seconds)} with {workers} worker{'s' if workers > 1 else ''} on {lines[0].device}"
    )
    if any(line.guessed for line in lines):
        print(
            "~ a guess: most passes go to samples that stand, and the model is yet to be\n"
            "  trained, or none of a few samples stood"
        )
    return 0
