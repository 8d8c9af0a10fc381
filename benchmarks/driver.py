"""What a sweep costs its driver with 1,000 workers: processor time and bytes a shard and a cell. For docs/cluster.md.

    python benchmarks/driver.py [--cells 60] [--workers 1000] [--out benchmarks/results/driver-cpu.md]

The sweep is a real one on Ray, cells of 20 shards of 512 samples under suite `standard`, with its records, verdict
tables, shards and event log; but for its workers. They answer at once, with one shard that was really attacked, in
another order and with other distances each time. The driver cannot tell, and with as many tasks handed out as the
workers would hold, all that is left is what it does itself: a real worker takes longer to answer, which costs the
driver nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from verdict import hardware

from robust.defenses import Trainer, make_defense
from robust.hardening import training_options
from robust.parts import Part
from robust.sources import load_data, load_model, save_weights
from robust.sweep import Event, SweepConfig, run_sweep
from robust.sweep.executors import InProcess, Told
from robust.sweep.on_ray import Ray
from robust.sweep.results import Results
from robust.sweep.tasks import Outcome, Task

SHARDS, SHARD = 20, 512
SAMPLES = SHARDS * SHARD


class Echo:
    """In a process of Ray's: answers every task with the outcome of one, as if it were its own."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def ready(self) -> bool:
        return True

    def do(self, task: Any, names: list[str], *contents: Any) -> Outcome:
        part: Any = self.outcome.result
        rows = np.arange(task.rows[0], task.rows[1])
        draw = np.random.default_rng((task.seed, *task.rows))
        table = part.verdicts.iloc[draw.permutation(len(rows))].assign(sample_id=rows)
        table["distance"] *= draw.uniform(0.9, 1, len(rows))
        return replace(self.outcome, task=task, result=replace(part, rows=task.rows, verdicts=table))


class Echoes(Ray):
    """As many workers as are asked for, all of them one actor; and the driver's processor time in its calls."""

    def __init__(self, outcome: Outcome, workers: int) -> None:
        self._outcome, self.seconds = outcome, 0.0
        self._actor: Any = None
        super().__init__(None, workers, "cpu", 1)

    def _connect(self, address: str | None, workers: int | None, threads: int | None) -> None:
        super()._connect(address, 1, 1)

    def _hire(self) -> None:
        if self._actor is None:
            self._actor = self._ray.remote(Echo).remote(self._outcome)
        self._starting[self._actor.ready.remote()] = self._actor

    def submit(self, task: Task) -> None:
        start = time.process_time()
        super().submit(task)
        self.seconds += time.process_time() - start

    def wait(self, told: Told) -> Outcome | None:
        start = time.process_time()
        outcome = super().wait(told)
        self.seconds += time.process_time() - start
        return outcome


class Meter:
    """The driver's processor time between the first task that is handed out and the last record."""

    def __init__(self) -> None:
        self.begun = self.ended = 0.0
        self.finishing = 0.0  # of it, making and filing records
        self._shard = 0.0

    def __call__(self, event: Event) -> None:
        now = time.process_time()
        if event.kind == "start" and not self.begun:
            self.begun = now
        elif event.kind == "shard":
            self._shard = now
        elif event.kind == "cell":
            self.finishing += now - self._shard
            self.ended = now

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


class Recorder(InProcess):
    """Does what it is asked to, and keeps the first outcome."""

    outcome: Outcome | None = None

    def wait(self, told: Told) -> Outcome | None:
        outcome = super().wait(told)
        self.outcome = self.outcome or outcome
        return outcome


def prepare(folder: Path) -> None:
    """A net on the built-in digits, and 10,000 samples: theirs, over and over with a little noise."""
    trainer = Trainer(training_options("mnist-quick", {"epochs": 3, "device": "cpu"}))
    train = load_data("builtin:digits:train")
    net = make_defense("none").fit(load_model("builtin:digits-mlp"), train, threat=None, trainer=trainer)
    save_weights(net, folder / "net.safetensors")
    rows = np.arange(SAMPLES) % len(train)
    x = train.rows(slice(None)).numpy()[rows]
    noise = np.random.default_rng(0).uniform(-0.02, 0.02, x.shape)
    np.savez(folder / "digits.npz", x=(x + noise).clip(0, 1).astype("float32"), y=train.y.numpy()[rows])


def plan(folder: Path, cells: int, limit: int) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "data": str(folder / "digits.npz"),
            "limit": limit,
            "shard": SHARD,
            "models": [{"spec": "builtin:digits-mlp", "weights": str(folder / "net.safetensors")}],
            "threats": ["linf:0.05"],
            "suites": ["standard"],
            "seeds": list(range(cells)),
        }
    )


def wire(outcome: Outcome) -> int:
    """Bytes of an outcome as Ray sends it."""
    from ray import cloudpickle

    buffers: list[Any] = []
    content = cloudpickle.dumps(outcome, protocol=5, buffer_callback=buffers.append)
    return len(content) + sum(buffer.raw().nbytes for buffer in buffers)


def kept(outcome: Outcome, folder: Path) -> int:
    """Bytes of a shard as the driver keeps it."""
    assert isinstance(outcome.result, Part)
    Results(folder).keep_part("cell", outcome.result, outcome.examples)
    return size(folder, "parts/cell/*")[1]


def size(folder: Path, *patterns: str) -> tuple[int, int]:
    """Files that there are, and their bytes."""
    files = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
    return len(files), sum(path.stat().st_size for path in files)


def report(folder: Path, cells: int, workers: int, meter: Meter, executor: Echoes, outcome: Outcome) -> str:
    shards = cells * SHARDS
    ms = {
        "handing it out and reading the outcome": 1e3 * executor.seconds / shards,
        "keeping it, telling of it": 1e3 * (meter.seconds - meter.finishing - executor.seconds) / shards,
        f"its {SHARDS}th of the record": 1e3 * meter.finishing / shards,
    }
    whole = sum(ms.values())
    sent, shard = wire(outcome), kept(outcome, folder / "one-part")
    own, shared = (
        size(folder / "out", *names) for names in (("records/*", "verdicts/*", "cells/*"), ("examples/*",))
    )
    files, filed = (
        own[0] + cells * shared[0],
        own[1] + cells * shared[1],
    )  # the cells have the same examples here
    log = size(folder / "out", "events.jsonl")[1]
    disk = shard + (filed + log) / shards
    rows = []
    for t in (1, 3, 10, 30, 60):
        rate = workers / t
        daily = 86_400 * rate / SHARDS
        rows.append(
            f"| {t} | {rate:,.0f} | {rate * sent / 1e6:.1f} | {rate * disk / 1e6:.1f} | {rate * whole / 10:.0f} | {daily:,.0f} | "
            f"{daily * files / cells / 1e6:.2g} | {daily * (filed + log) / cells / 1e9:.0f} |"
        )
    return "\n".join(
        [
            "# The driver of a sweep",
            "",
            f"{cells} cells of {SHARDS} shards of {SHARD} samples, {workers} workers that answer at once. A shard:",
            "",
            "| of the driver's processor | ms |",
            "|---|---|",
            *(f"| {name} | {value:.1f} |" for name, value in ms.items()),
            f"| together | {whole:.1f} |",
            "",
            f"It comes back as {sent / 1e3:.0f} kB and is kept as {shard / 1e3:.0f} kB until its cell is finished. A cell leaves {files / cells:.0f} "
            f"files of {filed / cells / 1e3:.0f} kB together, and {log / cells / 1e3:.0f} kB in the event log.",
            "",
            f"So {workers:,} workers whose shards take t seconds would come to:",
            "",
            "| t, s | shards a second | to the driver, MB/s | to its disk, MB/s | of one core, % | cells a day | million files a day | GB a day that stay |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"One core is full at shards of {workers * whole / 1e3:.1f} s.",
            "",
            hardware(),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=60)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        recorder = Recorder("cpu", 1)
        run_sweep(plan(folder, 1, SHARD), folder / "one", executor=lambda: recorder)
        outcome = recorder.outcome
        assert outcome is not None
        meter, used = Meter(), list[Echoes]()

        def echoes() -> Echoes:
            used.append(Echoes(outcome, options.workers))
            return used[0]

        done = run_sweep(
            plan(folder, options.cells, SAMPLES), folder / "out", executor=echoes, listener=meter
        )
        assert done.computed == options.cells, (done.failures, done.missing)
        text = report(folder, options.cells, options.workers, meter, used[0], outcome)
    print(text)
    if options.out is not None:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
