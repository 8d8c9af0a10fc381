"""What a sweep tells while it runs, and the log of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from robust.errors import StoreError
from robust.files import why_unwritten

Kind = Literal[
    "plan",
    "start",
    "progress",
    "shard",
    "trained",
    "cell",
    "curve",
    "reused",
    "lost",
    "retry",
    "failed",
    "end",
]


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        kind: "plan" (fields models, cells, curves), "start" of a task (of a shard: samples of its cell), its
            "progress" (stage, done, total, surviving, n), a "shard" of a cell (samples, survived, correct,
            seconds, missing), a pair "trained" (clean, robust, seconds), a "cell" finished (record, robust, low,
            high, clean, n, seconds, trust), a "curve" (robust at each eps, seconds), what was "reused" (what: "model" or
            "cell"), what is "lost", gone or damaged, and made again (what: "model", by training, or "data", by decoding;
            reason), a task lost and to be done again ("retry": reason), what "failed" (reason), and
            the "end" (computed, reused, failed, missing, seconds, stopped).
        title: of the cell or pair, or the data SPEC; task: id of the task, where it is about one.
    """

    kind: Kind
    title: str = ""
    task: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], None]


class EventLog:
    """Appends a JSON object a line to a file: time (UTC), event, title, task and the event's fields.

    Progress is left out. Every line is written at once, so that the file can be followed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Append a line.

        Raises:
            StoreError: it cannot be written.
        """
        if event.kind == "progress":
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event.kind,
            "title": event.title,
            "task": event.task,
            **event.fields,
        }
        try:
            with self._path.open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
        except OSError as error:
            raise StoreError(
                f"out: cannot write {self._path}: {why_unwritten(error)}; what was finished is kept"
            ) from error
