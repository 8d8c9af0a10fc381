"""Do sweeps scale? Two local workers against one, and what Ray adds, at shards of about a second.

    python benchmarks/scale.py [--minutes 4] [--seconds 1] [--out benchmarks/results/scale-cpu.md]

One net is attacked with PGD, one thread a worker, by sweeps that differ in their seed alone, so that all do the
same passes. Workers are started once and kept, so that starting them, which is told apart, is in no figure; and
the sweeps of two settings take turns, so that what else the machine does meets both. What a task costs beside its
attack needs no comparison: it is what the driver waited for an outcome, less the seconds that the worker says it
attacked, and what the driver then did before it handed out the next task.

Needs two idle cores, and the extra [ray]. No round begins once `--minutes` are over.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path

from verdict import hardware

from robust.defenses import Trainer, make_defense
from robust.hardening import training_options
from robust.parts import Part
from robust.sources import load_data, load_model, save_weights
from robust.sweep import SweepConfig, run_sweep
from robust.sweep.executors import Executor, Told
from robust.sweep.processes import Processes
from robust.sweep.tasks import Outcome, Task

SAMPLES = 64  # of a shard
SHARDS = 6  # that each worker is handed in a sweep
ROUNDS = 9  # at most


@dataclass
class Handled:
    """A task as the driver saw it: seconds on the driver's clock, and those that the worker says it attacked."""

    submitted: float
    returned: float
    attacked: float

    @property
    def beside(self) -> float:
        """Seconds that the driver waited beside the attack."""
        return self.returned - self.submitted - self.attacked


@dataclass
class Kept:
    """Workers that outlive the sweeps they serve, and the times of the tasks of the latest one."""

    executor: Executor
    tasks: list[Handled] = field(default_factory=list)
    _submitted: dict[str, float] = field(default_factory=dict)

    @property
    def workers(self) -> int:
        return self.executor.workers

    @property
    def free(self) -> int:
        return self.executor.free

    def submit(self, task: Task) -> None:
        self._submitted[task.id] = time.perf_counter()
        self.executor.submit(task)

    def wait(self, told: Told) -> Outcome | None:
        outcome = self.executor.wait(told)
        now = time.perf_counter()
        if outcome is not None:
            assert isinstance(outcome.result, Part), outcome.reason
            self.tasks.append(Handled(self._submitted.pop(outcome.task.id), now, outcome.result.seconds))
        return outcome

    def close(self) -> None:
        """The next sweep wants them."""


@dataclass
class Setting:
    """Workers of one kind, and what was measured of them."""

    name: str
    kept: Kept
    started: float  # seconds until the first shard was back, less its attack
    rates: list[float] = field(default_factory=list)  # shards a second, a figure per sweep
    tasks: list[list[Handled]] = field(default_factory=list)  # of each sweep

    @property
    def attacked(self) -> float:
        """Seconds of a shard's attack."""
        return statistics.median(task.attacked for sweep in self.tasks for task in sweep)

    def beside(self) -> list[float]:
        """Of a single worker: seconds of each task outside its attack, until the next one is handed out."""
        return [
            early.beside + later.submitted - early.returned
            for sweep in self.tasks
            for early, later in pairwise(sweep)
        ]


class Bench:
    """The net, its samples, and sweeps over them."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seeds, self.steps = folder, count(), 20
        trainer = Trainer(training_options("mnist-quick", {"epochs": 1, "device": "cpu"}))
        net = make_defense("none").fit(
            load_model("builtin:mnist-cnn"), load_data("builtin:mnist5k:train"), threat=None, trainer=trainer
        )
        save_weights(net, folder / "net.safetensors")
        with self.setting("1 process", lambda: Processes(1, "cpu", 1)) as one:
            for _ in range(
                2
            ):  # the second time from near the right length: what does not grow with steps is small
                self.sweep(one, 2)
                self.steps = max(1, round(self.steps * seconds / one.tasks[-1][-1].attacked))

    def sweep(self, setting: Setting, shards: int) -> None:
        """Run one; the clock runs from the first task handed out to the last outcome."""
        plan = {
            "data": "builtin:mnist5k:test",
            "limit": SAMPLES * shards,
            "shard": SAMPLES,
            "models": [{"spec": "builtin:mnist-cnn", "weights": str(self.folder / "net.safetensors")}],
            "threats": ["linf:0.001"],  # which breaks next to nothing
            "suites": [[{"name": "pgd", "steps": self.steps}]],
            "seeds": [next(self.seeds)],
            "keep_examples": 0,
        }
        setting.kept.tasks = []
        result = run_sweep(
            SweepConfig.model_validate(plan), self.folder / "out", executor=lambda: setting.kept
        )
        assert not result.missing, result.failures
        tasks = setting.kept.tasks
        setting.rates.append(shards / (tasks[-1].returned - min(task.submitted for task in tasks)))
        setting.tasks.append(tasks)

    @contextmanager
    def setting(self, name: str, make: Callable[[], Executor]) -> Iterator[Setting]:
        """Workers that have each built the net already."""
        start = time.perf_counter()
        setting = Setting(name, Kept(make()), 0.0)
        try:
            self.sweep(setting, 4 * setting.kept.workers)
            first = setting.tasks[0][0]
            setting.started = first.returned - start - first.attacked
            setting.rates.clear()
            setting.tasks.clear()
            yield setting
        finally:
            setting.kept.executor.close()

    def take_turns(self, settings: list[Setting], until: float) -> None:
        """Sweeps of as many shards for each worker, in turn, which begins with another one each time."""
        for number in range(ROUNDS):
            if number and time.perf_counter() > until:
                return
            for setting in settings if number % 2 else settings[::-1]:
                self.sweep(setting, SHARDS * setting.kept.workers)


def spread(values: list[float], form: str) -> str:
    """The median, and the least and the most."""
    middle, least, most = (format(f(values), form) for f in (statistics.median, min, max))
    return f"{middle} ({least} to {most})"


def scaling(one: Setting, two: Setting) -> list[str]:
    ratios = [b / a for a, b in zip(one.rates, two.rates, strict=True)]
    return [
        "| workers | started in, s | a shard's attack, s | shards a second | against 1 process, a figure per round |",
        "|---|---|---|---|---|",
        *(
            f"| {s.name} | {s.started:.1f} | {s.attacked:.2f} | {spread(s.rates, '.2f')} | {against} |"
            for s, against in ((one, "1"), (two, spread(ratios, ".2f")))
        ),
    ]


def overhead(one: Setting, ray: Setting) -> list[str]:
    ratios = [b / a for a, b in zip(one.rates, ray.rates, strict=True)]
    rows = []
    for s, against in ((one, "1"), (ray, spread(ratios, ".2f"))):
        beside = s.beside()
        share = 100 * statistics.median(beside) / (s.attacked + statistics.median(beside))
        rows.append(
            f"| {s.name} | {s.started:.1f} | {s.attacked:.2f} | {spread([1e3 * b for b in beside], '.0f')} | "
            f"{share:.1f} | {against} |"
        )
    return [
        "| workers | started in, s | a shard's attack, s | beside it, ms a shard | beside it, % of the time | "
        "throughput against 1 process, a figure per round |",
        "|---|---|---|---|---|---|",
        *rows,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=4.0, help="for all; no round begins after them")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a shard's attack is to take")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from robust.sweep.on_ray import Ray

    load, start = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), args.seconds)
        with bench.setting("1 process", lambda: Processes(1, "cpu", 1)) as one:
            with bench.setting("2 processes", lambda: Processes(2, "cpu", 1)) as two:
                bench.take_turns([one, two], start + 60 * args.minutes / 2)
            first = scaling(one, two)
            one.rates.clear()
            one.tasks.clear()
            with bench.setting("Ray, 1 actor", lambda: Ray(None, 1, "cpu", 1)) as ray:
                bench.take_turns([one, ray], start + 60 * args.minutes)
            second = overhead(one, ray)
    lines = [
        "# Scaling of sweeps",
        "",
        f"Sweeps of {SHARDS} shards a worker, {SAMPLES} samples each, PGD-{bench.steps} on the built-in MNIST net, one thread "
        f"a worker; {len(two.rates)} rounds of two workers and {len(ray.rates)} of Ray, each in turn with one process. Medians (least "
        "to most). Workers are started once, which no other column holds.",
        "",
        *first,
        "",
        "Beside the attack: from a task's submission to that of the next, less the attack, with a single worker.",
        "",
        *second,
        "",
        f"{hardware()} Load when it began: {load:.1f}; {time.perf_counter() - start:.0f} s in all.",
        "",
    ]
    print("\n".join(lines))
    if args.out is not None:
        args.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
