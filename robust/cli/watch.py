"""A sweep as it goes: bars and lines on a terminal, lines alone elsewhere; on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from robust.cli import common

if TYPE_CHECKING:
    from robust.sweep.watch import Event


@contextmanager
def watching() -> Iterator[Callable[[Event], None]]:
    """A listener for `run_sweep`."""
    with common.bars() as bars:
        yield _Watch(bars)


class _Watch:
    """A line for everything that is finished; bars for the whole and for what runs."""

    def __init__(self, bars: Any) -> None:
        self._bars, self._live = bars, not bars.disable
        self._whole = bars.add_task("sweep", total=None)
        self._running: dict[str, Any] = {}  # task id -> bar
        self._found: dict[str, list[int]] = {}  # title -> samples, survived
        self._total = self._done = 0
        self._start = time.monotonic()
        self._samples = 0

    def __call__(self, event: Event) -> None:
        handlers = {
            "plan": self._plan, "start": self._begin, "progress": self._progress, "shard": self._shard,
            "trained": self._trained, "cell": self._cell, "curve": self._curve, "reused": self._found_done,
            "retry": self._retry, "failed": self._failed,
        }  # fmt: skip
        if event.kind in handlers:
            handlers[event.kind](event)

    def _plan(self, event: Event) -> None:
        fields = event.fields
        self._total = fields["cells"] + fields["curves"]
        self._bars.update(self._whole, total=self._total)

    def _begin(self, event: Event) -> None:
        if self._live and event.task not in self._running:
            self._running[event.task] = self._bars.add_task(_short(event.title, 20), total=None)

    def _progress(self, event: Event) -> None:
        self._begin(event)
        fields = event.fields
        if self._live:
            standing = f", {fields['surviving']}/{fields['n']} stand" if fields["n"] else ""
            stage = fields["stage"].partition("(")[0]  # in 80 columns there is room for no more
            text = f"{_short(event.title, 20)}: {_short(stage, 14)}{standing}"
            self._bars.update(
                self._running[event.task], completed=fields["done"], total=fields["total"], description=text
            )

    def _shard(self, event: Event) -> None:
        self._drop(event.task)
        counts = self._found.setdefault(event.title, [0, 0])
        counts[0] += event.fields["samples"]
        counts[1] += event.fields["survived"]
        self._samples += event.fields["samples"]
        rate = self._samples / max(1e-9, time.monotonic() - self._start)
        self._bars.update(self._whole, description=f"sweep, {rate:.3g} samples/s")
        if event.fields["missing"] and self._live:
            from robust.stats import interval

            low, high = interval(counts[1], counts[0])
            self._line(
                f"{event.title}: {counts[0]} samples so far, robust {counts[1] / counts[0]:.1%} "
                f"[{low:.1%}, {high:.1%}]"
            )

    def _trained(self, event: Event) -> None:
        self._drop(event.task)
        fields = event.fields
        robust = "" if fields["robust"] is None else f", robust {fields['robust']:.1%}"
        self._line(
            f"trained {event.title}: validation clean {fields['clean']:.1%}{robust}, "
            f"{common.duration(fields['seconds'])}"
        )

    def _cell(self, event: Event) -> None:
        fields = event.fields
        flag = "" if fields["trust"] == "trusted" else f", {fields['trust']}"
        self._step(
            f"{event.title}: robust {fields['robust']:.1%} [{fields['low']:.1%}, {fields['high']:.1%}]{flag}, "
            f"{common.duration(fields['seconds'])}"
        )

    def _curve(self, event: Event) -> None:
        self._step(f"{event.title}: {common.duration(event.fields['seconds'])}")

    def _found_done(self, event: Event) -> None:
        if event.fields["what"] == "model":
            return
        self._done += 1
        self._bars.update(self._whole, completed=self._done)

    def _retry(self, event: Event) -> None:
        self._drop(event.task)
        self._line(f"again: {event.title}: {event.fields['reason']}")

    def _failed(self, event: Event) -> None:
        self._line(f"failed: {event.title}: {event.fields['reason']}")

    def _step(self, text: str) -> None:
        self._done += 1
        self._bars.update(self._whole, completed=self._done)
        self._line(f"[{self._done}/{self._total}] {text}")

    def _drop(self, task: str) -> None:
        if task in self._running:
            self._bars.remove_task(self._running.pop(task))

    def _line(self, text: str) -> None:
        if self._live:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)


def _short(title: str, width: int) -> str:
    return title if len(title) <= width else title[: width - 3] + "..."
