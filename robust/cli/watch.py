"""A sweep as it goes: bars and lines on a terminal, lines alone elsewhere; on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from robust.cli import common

if TYPE_CHECKING:
    from robust.sweep.watch import Event

_NAME: Final = 24  # columns of what is running: 80 are enough for 10,000 samples
_BAR: Final = 5


@contextmanager
def watching(names: Mapping[str, str]) -> Iterator[Callable[[Event], None]]:
    """A listener for `run_sweep`.

    Args:
        names: title -> a shorter one for the terminal.
    """
    with common.showing(rows()) as bars:
        yield Watch(bars, names)


def rows() -> Any:
    """Rows of: name, bar, how much is done, seconds, what is known so far."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(_BAR),
        TextColumn("{task.fields[count]}", justify="right"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[said]}", markup=False),
        console=console, transient=True, disable=not console.is_terminal, speed_estimate_period=600,
    )  # fmt: skip


@dataclass
class _Row:
    """A bar: of a model in training, or of a cell with all its shards that are running."""

    bar: Any
    n: int | None  # samples of the cell
    running: set[str] = field(default_factory=set)  # ids of tasks
    samples: int = 0
    survived: int = 0


class Watch:
    """A line for everything that is finished; bars for the whole and for what runs."""

    def __init__(self, bars: Any, names: Mapping[str, str]) -> None:
        self._bars, self._live, self._names = bars, not bars.disable, names
        self._whole = bars.add_task("sweep", total=None, count="", said="")
        self._rows: dict[str, _Row] = {}  # by title
        self._total = self._done = self._found = 0
        self._start = time.monotonic()
        self._samples = 0

    def __call__(self, event: Event) -> None:
        handlers = {
            "plan": self._plan, "start": self._begin, "progress": self._progress, "shard": self._shard,
            "trained": self._trained, "cell": self._cell, "curve": self._curve, "reused": self._reused,
            "lost": self._lost, "retry": self._retry, "failed": self._failed,
        }  # fmt: skip
        if event.kind in handlers:
            handlers[event.kind](event)

    def _plan(self, event: Event) -> None:
        fields = event.fields
        self._total = fields["cells"] + fields["curves"]
        self._show()

    def _begin(self, event: Event) -> None:
        if not self._live:
            return
        if event.title not in self._rows:
            n = event.fields.get("samples")
            name = _short(self._name(event.title), _NAME)
            bar = self._bars.add_task(name, total=None, count="" if n is None else f"0/{n}", said="")
            self._rows[event.title] = _Row(bar, n)
        self._rows[event.title].running.add(event.task)

    def _progress(self, event: Event) -> None:
        row, fields = self._rows.get(event.title), event.fields
        if row is None or row.samples:  # then it says how robust it is so far
            return
        stage = fields["stage"].partition("(")[0]
        if row.n is None:
            self._bars.update(
                row.bar,
                completed=fields["done"],
                total=fields["total"],
                count=stage.removeprefix("epoch "),
                said="training",
            )
        else:
            standing = f", {fields['surviving']}/{fields['n']} stand" if fields["n"] else ""
            self._bars.update(row.bar, said=f"{_short(stage, 14)}{standing}")

    def _shard(self, event: Event) -> None:
        fields = event.fields
        self._samples += fields["samples"]
        row = self._rows.get(event.title)
        if row is not None:
            row.samples += fields["samples"]
            row.survived += fields["survived"]
            self._bars.update(
                row.bar, completed=row.samples, total=row.n, count=f"{row.samples}/{row.n}", said=_so_far(row)
            )
        self._end(event)

    def _trained(self, event: Event) -> None:
        self._end(event)
        fields = event.fields
        robust = "" if fields["robust"] is None else f", robust {fields['robust']:.1%}"
        self._line(
            f"trained {self._name(event.title)}: validation clean {fields['clean']:.1%}{robust}, "
            f"{common.duration(fields['seconds'])}"
        )

    def _cell(self, event: Event) -> None:
        fields = event.fields
        flag = "" if fields["trust"] == "trusted" else f", {fields['trust']}"
        self._step(
            f"{self._name(event.title)}: robust {fields['robust']:.1%} [{fields['low']:.1%}, {fields['high']:.1%}]"
            f"{flag}, {common.duration(fields['seconds'])}",
            event.title,
        )

    def _curve(self, event: Event) -> None:
        fields = event.fields
        high, low = fields["robust"][0], fields["robust"][-1]
        self._step(
            f"{self._name(event.title)}: robust {high:.1%} to {low:.1%}, {common.duration(fields['seconds'])}",
            event.title,
        )

    def _reused(self, event: Event) -> None:
        if event.fields["what"] == "cell":
            self._done += 1
            self._found += 1
            self._show()

    def _lost(self, event: Event) -> None:
        how = "decoding" if event.fields["what"] == "data" else "training"
        self._line(f"{how} again: {self._name(event.title)}: {event.fields['reason']}")

    def _retry(self, event: Event) -> None:
        self._end(event)
        self._line(f"again: {self._name(event.title)}: {event.fields['reason']}")

    def _failed(self, event: Event) -> None:
        self._drop(event.title)
        self._line(f"failed: {self._name(event.title)}: {event.fields['reason']}")

    def _step(self, text: str, title: str) -> None:
        self._drop(title)
        self._done += 1
        self._show()
        self._line(f"[{self._done}/{self._total}] {text}")

    def _end(self, event: Event) -> None:
        """A task has come back; its row stays while others of its title run, or samples wait."""
        row = self._rows.get(event.title)
        if row is not None:
            row.running.discard(event.task)
            if not row.running and not row.samples:
                self._drop(event.title)
            self._show()

    def _drop(self, title: str) -> None:
        row = self._rows.pop(title, None)
        if row is not None:
            self._bars.remove_task(row.bar)

    def _show(self) -> None:
        """The row of the whole: cells, and what is known of the pace."""
        parts = sum(row.samples / row.n for row in self._rows.values() if row.n)
        seconds = time.monotonic() - self._start
        said = []
        if self._samples:
            said.append(f"{self._samples / max(1e-9, seconds):.3g} samples/s")
            done = self._done - self._found + parts
            left = (self._total - self._found - done) * seconds / done if done else 0.0
            said += [f"{common.duration(left)} left"] if left >= 1 else []
        self._bars.update(
            self._whole, completed=self._done + parts, total=self._total,
            count=f"{self._done}/{self._total}", said=", ".join(said),
        )  # fmt: skip

    def _name(self, title: str) -> str:
        """Lines of a log say all; those on a terminal are read beside their plan."""
        return self._names.get(title, title) if self._live else title

    def _line(self, text: str) -> None:
        if self._live:
            self._bars.console.print(text, markup=False, highlight=False)
        else:
            print(common.wrapped(text), file=sys.stderr, flush=True)


def _so_far(row: _Row) -> str:
    from robust.stats import interval

    low, high = interval(row.survived, row.samples)
    return f"robust {row.survived / row.samples:.1%} [{low:.1%}, {high:.1%}]"


def _short(text: str, width: int) -> str:
    """Cut in the middle: names begin and end with what sets them apart."""
    half = (width - 3) // 2
    return text if len(text) <= width else f"{text[: width - 3 - half]}...{text[-half:]}"
