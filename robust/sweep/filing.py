"""What a sweep tells and keeps: events, failures with their tracebacks, records and curves of finished cells."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robust.errors import RobustError, StoreError, UnknownNameError
from robust.leaderboard import Record, Store
from robust.leaderboard.layout import plain
from robust.sweep.cells import Cell, CurveCell, Pair
from robust.sweep.config import SweepConfig
from robust.sweep.finish import Anyhow, Failure, Open, SweepResult, make_curve, make_record
from robust.sweep.results import Results
from robust.sweep.watch import Event, Kind, Listener


class Diary:
    """Tells listeners, and keeps what failed.

    Args:
        results: where tracebacks are kept.
        result: of the sweep, which failures enter.
    """

    def __init__(self, results: Results, result: SweepResult, listener: Listener) -> None:
        self._results, self._result = results, result
        self.listeners = [listener]

    def tell(self, kind: Kind, title: str = "", task: str = "", **fields: Any) -> None:
        """Tell of an event."""
        for listener in self.listeners:
            listener(Event(kind, title, task, fields))

    def fail(self, what: Anyhow | Pair, reason: str, trace: str) -> None:
        """A cell or pair has failed."""
        self._result.failures.append(Failure(what.title, reason))
        self._results.fail(_name(what), what.title, trace)
        self.tell("failed", what.title, reason=reason)

    def caught(self, what: Anyhow | Pair, error: Exception) -> None:
        """As `fail`, while an exception is handled."""
        text = str(error) if isinstance(error, RobustError) else f"{type(error).__name__}: {error}"
        self.fail(what, " ".join(plain(text).split()) or type(error).__name__, traceback.format_exc())

    def forgive(self, what: Anyhow | Pair, failures: Sequence[str] = ()) -> None:
        """What may have failed before has succeeded, but for these `failures` of single samples."""
        if failures:
            self._results.fail(_name(what), what.title, "\n".join(failures))
        else:
            self._results.forgive(_name(what))


class Filing:
    """Records and curves: found done, or made of all the shards of a cell.

    Attributes:
        done: identities of cells that are.
        curves: those that are done, by their cells' identities.
    """

    def __init__(
        self, config: SweepConfig, results: Results, result: SweepResult, diary: Diary, command: str | None
    ) -> None:
        self._config, self._results, self._result, self._diary = config, results, result, diary
        self._command, self._store = command, Store(results.out)
        self.done: set[str] = set()
        self.curves: dict[str, dict[str, Any]] = {}

    def found(self, cell: Anyhow, key: str) -> bool:
        """Whether the cell is done already; one whose files are gone or damaged is not."""
        if isinstance(cell, CurveCell):
            curve = self._results.curve_of(key)
            if curve is None:
                return False
            self.curves[cell.identity] = curve
            self._note_errors(cell, curve["errors"], self._results.curve_file(key))
        else:
            record = self._record(key)
            if record is None:
                return False
            self._result.records.append(record)
            self._note_errors(cell, record.statuses.error, self._record_file(record))
        self._result.reused += 1
        self.done.add(cell.identity)
        self._diary.tell("reused", cell.title, what="cell")
        return True

    def _record(self, key: str) -> Record | None:
        """The record of a finished cell; None where it, or a file that it names, is gone or damaged."""
        id_ = self._results.record_of(key)
        if id_ is None:
            return None
        try:
            record = self._store.get(id_)
            self._store.verdicts_file(record)
            self._store.examples_file(record)
        except (StoreError, UnknownNameError):
            return None
        return record

    def _record_file(self, record: Record) -> Path:
        return self._results.out / "records" / f"{record.id}.json"

    def finish(self, opened: Open) -> None:
        """All shards are there: make the record, or the curve."""
        cell = opened.cell
        try:
            if isinstance(cell, CurveCell):
                self._keep_curve(opened, cell)
            else:
                self._keep_record(opened, cell)
        except StoreError:
            raise
        except Exception as error:
            self._diary.caught(cell, error)
            return
        self._result.computed += 1
        self.done.add(cell.identity)

    def _note_errors(self, cell: Anyhow, errors: int, kept: Path) -> None:
        """A result is there, but not of all samples: computed or found, the sweep is not whole."""
        if errors:
            reason = f"{errors} samples ended in an error"
            self._result.failures.append(Failure(cell.title, reason, kept))

    def _keep_record(self, opened: Open, cell: Cell) -> None:
        """File a cell's record."""
        report, record, examples = make_record(opened, cell, self._config.keep_examples, self._command)
        self._store.add(record, report.verdicts, examples=examples)
        self._results.finish(opened.key, cell.title, record.id)
        self._result.records.append(record)
        low, high = report.interval
        self._diary.tell(
            "cell", cell.title, record=record.id, n=report.n, clean=report.clean_accuracy,
            robust=report.robust_accuracy, low=low, high=high, trust=report.trust, seconds=report.seconds,
        )  # fmt: skip
        self._diary.forgive(cell, report.failures)
        self._note_errors(cell, report.statuses["error"], self._record_file(record))

    def _keep_curve(self, opened: Open, cell: CurveCell) -> None:
        """File a curve."""
        curve, table = make_curve(opened, cell)
        self._results.finish_curve(opened.key, curve, table)
        self.curves[cell.identity] = curve
        values = [point["value"] for point in curve["points"]]
        self._diary.tell("curve", cell.title, robust=values, seconds=curve["seconds"])
        failures = [failure for part in opened.parts.values() for failure in part.failures]
        self._diary.forgive(cell, failures)
        self._note_errors(cell, curve["errors"], self._results.curve_file(opened.key))


def _name(what: Anyhow | Pair) -> str:
    return hashlib.sha256(what.identity.encode()).hexdigest()[:16]
