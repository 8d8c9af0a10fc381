"""Do sweeps scale? Two workers against one, and Ray against processes, at shards of about a second.

    python benchmarks/scale.py [--shard 96] [--shards 9] [--out benchmarks/results/scale-cpu.md]

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
    """Shards a second once `workers` shards are back."""

    def __init__(self, workers: int) -> None:
        self.workers, self.times = workers, list[float]()

    def __call__(self, event: Event) -> None:
        if event.kind == "shard":
            self.times.append(time.perf_counter())

    @property
    def rate(self) -> float:
        """Shards a second: of as many shards in a row as there are workers, the median."""
        after, n = self.times[self.workers - 1 :], self.workers
        return n / statistics.median(late - early for early, late in zip(after, after[n:], strict=False))


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
) -> float:
    """Shards a second."""
    clock = Clock(workers)
    result = run_sweep(plan(shard, shards, eps), out, executor=make, listener=clock)
    assert not result.missing, result.failures
    return clock.rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shard", type=int, default=96, help="samples of a shard")
    parser.add_argument("--shards", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from robust.sweep.on_ray import Ray

    settings: list[tuple[str, int, Callable[[], Executor]]] = [
        ("1 process", 1, lambda: Processes(1, "cpu", 1)),
        ("2 processes", 2, lambda: Processes(2, "cpu", 1)),
        ("Ray, 1 actor", 1, lambda: Ray(None, 1, "cpu", 1)),
        ("1 process, again", 1, lambda: Processes(1, "cpu", 1)),
        ("Ray, 1 actor, again", 1, lambda: Ray(None, 1, "cpu", 1)),
    ]
    folder = Path(tempfile.mkdtemp())
    run_sweep(plan(4, 1, "0.001"), folder, device="cpu")  # trains the net
    rows = []
    for number, (name, workers, make) in enumerate(settings):
        eps = "0.0010" + "0" * number  # nothing is broken, so that every setting does the same passes
        rows.append((name, workers, measure(folder, workers, make, args.shard, args.shards, eps)))
    shutil.rmtree(folder)
    base = max(rate for name, _, rate in rows if name.startswith("1 process"))
    lines = [
        "# Scaling of sweeps",
        "",
        f"{args.shards} shards of {args.shard} samples, PGD-100 on the built-in MNIST net, one thread a worker.",
        "",
        "| workers | seconds a shard and worker | throughput against the better run of 1 process |",
        "|---|---|---|",
        *(f"| {name} | {workers / rate:.2f} | {rate / base:.2f} |" for name, workers, rate in rows),
        "",
        hardware(),
        "",
    ]
    print("\n".join(lines))
    if args.out is not None:
        args.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
