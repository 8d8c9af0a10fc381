"""Do sweeps scale? Two workers against one, and Ray against processes, at shards of about a second.

    python benchmarks/scale.py [--shard 96] [--shards 9] [--rounds 3] [--out benchmarks/results/scale-cpu.md]

A net is trained once; then every setting attacks the same samples with PGD-100, one thread a worker. The
clock starts when every worker has come back with its first shard, so that neither starting processes nor
building models counts. Needs two idle cores, and the extra [ray].
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from verdict import hardware

from robust.sweep import Event, SweepConfig, run_sweep
from robust.sweep.executors import Executor
from robust.sweep.processes import Processes


class Clock:
    """When shards come back, and how long each one's attack took in its worker."""

    def __init__(self, workers: int) -> None:
        self.workers, self.times, self.inside = workers, list[float](), list[float]()

    def __call__(self, event: Event) -> None:
        if event.kind == "shard":
            self.times.append(time.perf_counter())
            self.inside.append(event.fields["seconds"])

    @property
    def rate(self) -> float:
        """Shards a second once every worker has come back: of as many in a row as there are workers, the median."""
        after, n = self.times[self.workers - 1 :], self.workers
        return n / statistics.median(late - early for early, late in zip(after, after[n:], strict=False))

    @property
    def outside(self) -> float:
        """Share of a single worker's time that no attack ran: from one shard's return to the next, the median."""
        pairs = zip(self.times, self.times[1:], self.inside[1:], strict=False)
        return statistics.median(1 - inside / (late - early) for early, late, inside in pairs)


def plan(shard: int, shards: int, eps: str) -> SweepConfig:
    """The same work under another name, so that nothing is found done."""
    return SweepConfig.model_validate(
        {
            "data": "builtin:mnist5k:test",
            "train": "builtin:mnist5k:train",
            "limit": shard * shards,
            "shard": shard,
            "models": [{"spec": "builtin:mnist-cnn"}],
            "defenses": [{"name": "none", "training": {"epochs": 1}}],
            "threats": [f"linf:{eps}"],
            "suites": [[{"name": "pgd", "steps": 100}]],
            "keep_examples": 0,
        }
    )


def measure(
    out: Path, workers: int, make: Callable[[], Executor], shard: int, shards: int, eps: str
) -> Clock:
    clock = Clock(workers)
    result = run_sweep(plan(shard, shards, eps), out, executor=make, listener=clock)
    assert not result.missing, result.failures
    return clock


def row(name: str, clocks: list[Clock], base: float) -> str:
    """A line of the table: medians over the rounds, and the range of what varies."""
    workers = clocks[0].workers
    seconds = sorted(workers / clock.rate for clock in clocks)
    outside = (
        f"{100 * statistics.median(clock.outside for clock in clocks):.1f} "
        f"({100 * min(clock.outside for clock in clocks):.1f} to {100 * max(clock.outside for clock in clocks):.1f})"
        if workers == 1
        else "-"
    )
    rate = statistics.median(clock.rate for clock in clocks)
    return (
        f"| {name} | {statistics.median(seconds):.2f} ({seconds[0]:.2f} to {seconds[-1]:.2f}) | {rate / base:.2f} | "
        f"{outside} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shard", type=int, default=96, help="samples of a shard")
    parser.add_argument("--shards", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=3, help="times that every setting is run, in turn")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from robust.sweep.on_ray import Ray

    settings: dict[str, tuple[int, Callable[[], Executor]]] = {
        "1 process": (1, lambda: Processes(1, "cpu", 1)),
        "Ray, 1 actor": (1, lambda: Ray(None, 1, "cpu", 1)),
        "2 processes": (2, lambda: Processes(2, "cpu", 1)),
    }
    folder = Path(tempfile.mkdtemp())
    run_sweep(plan(4, 1, "0.001"), folder, device="cpu")  # trains the net
    clocks: dict[str, list[Clock]] = {name: [] for name in settings}
    eps = "0.0010"
    for _ in range(args.rounds):
        for name, (workers, make) in settings.items():
            eps += "0"  # nothing is broken, so that every setting does the same passes
            clocks[name].append(measure(folder, workers, make, args.shard, args.shards, eps))
    shutil.rmtree(folder)
    base = statistics.median(clock.rate for clock in clocks["1 process"])
    lines = [
        "# Scaling of sweeps",
        "",
        f"{args.shards} shards of {args.shard} samples, PGD-100 on the built-in MNIST net, one thread a worker, {args.rounds} rounds "
        "in turn. Medians (least to most). Outside: from one shard's return to the next, the time that no attack ran.",
        "",
        "| workers | seconds a shard and worker | throughput against 1 process | outside % |",
        "|---|---|---|---|",
        *(row(name, found, base) for name, found in clocks.items()),
        "",
        hardware(),
        "",
    ]
    print("\n".join(lines))
    if args.out is not None:
        args.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
