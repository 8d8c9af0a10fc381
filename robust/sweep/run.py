"""Carry out a sweep: train what is missing, attack what is missing, keep everything."""

from __future__ import annotations

import hashlib
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast
from uuid import uuid4

import pandas as pd

from robust.defenses import Wrapper, make_defense
from robust.errors import InputError, RobustError, StoreError, UnsupportedError
from robust.hardening import training_options
from robust.leaderboard import Record, Store
from robust.parts import Part, Plan, join
from robust.run import Progress
from robust.sources import Preprocessing, load_weights, model_sha256, open_model
from robust.suites import resolve
from robust.sweep.cells import (
    Cell,
    CurveCell,
    Pair,
    content_key,
    curve_cells,
    pairs,
    plan,
    stages_identity,
    suite_title,
)
from robust.sweep.config import SweepConfig
from robust.sweep.curves import CurvePart, points
from robust.sweep.executors import Executor, InProcess
from robust.sweep.held import Held, hold, map_samples
from robust.sweep.results import Results
from robust.sweep.tasks import AttackTask, CurveTask, ModelRef, Outcome, Task, Trained, TrainTask
from robust.sweep.watch import Event, EventLog, Kind, Listener
from robust.threat import Threat

_TRIES: Final = 3  # of a task whose worker died
_DEFAULT_ROWS: Final = 128

Anyhow = Cell | CurveCell


@dataclass
class SweepResult:
    """What a sweep left behind.

    Attributes:
        records: of the cells that are done; curves: as in their files.
        computed, reused: cells and curves done now, and found done.
        failures: a line for each that failed; missing: titles of all that are not there.
        stopped: why the sweep ended before its time, as on a full disk; None where it did not.
    """

    records: list[Record] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    computed: int = 0
    reused: int = 0
    failures: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    stopped: str | None = None


@dataclass
class _Open:
    """A cell whose shards are being computed."""

    cell: Anyhow
    key: str
    ref: ModelRef
    held: Held
    ranges: list[tuple[int, int]]
    parts: dict[tuple[int, int], Part | CurvePart] = field(default_factory=dict)
    failed: bool = False

    @property
    def missing(self) -> list[tuple[int, int]]:
        return [rows for rows in self.ranges if rows not in self.parts]


def run_sweep(
    config: SweepConfig,
    out: str | Path,
    *,
    device: str = "auto",
    executor: Callable[[], Executor] | None = None,
    listener: Listener | None = None,
    command: str | None = None,
) -> SweepResult:
    """Run what is missing of a sweep; results are there as soon as a cell is done.

    Args:
        config: the plan.
        out: folder of the results: trained models, records and verdict tables. Run again to go on.
        device: to work on, where no executor is given.
        executor: makes what carries out the tasks, once it is known that there are some; None: this process.
        listener: told of progress.
        command: kept in the records.

    Returns:
        Records of all cells that are done, and what failed (with a traceback in `out`/failures).

    Raises:
        InputError, StoreError: the plan or the folder is unusable.
    """
    results = Results(Path(out))
    make = executor or (lambda: InProcess(device))
    sweep = _Sweep(config, results, make, listener or (lambda event: None), command)
    return sweep.run()


class _Sweep:
    def __init__(
        self,
        config: SweepConfig,
        results: Results,
        make_executor: Callable[[], Executor],
        listener: Listener,
        command: str | None,
    ) -> None:
        self.config, self.results, self.command = config, results, command
        self.listeners: list[Listener] = [listener]
        self.make_executor = make_executor
        self.store = Store(results.out)
        self.result = SweepResult()
        self.pairs: deque[Pair] = deque()
        self.cells: dict[str, list[Anyhow]] = {}  # by the pair's identity
        self.ready: deque[Task] = deque()
        self.open: dict[str, _Open] = {}  # by the id of a task
        self.training: dict[str, tuple[Pair, str]] = {}
        self.fits: dict[
            str, Preprocessing | None
        ] = {}  # what a pair's model declares, by the pair's identity
        self.tries: Counter[str] = Counter()
        self.done: set[str] = set()  # titles
        self._held: dict[tuple[str, int | None, Preprocessing | None], Held] = {}

    def run(self) -> SweepResult:
        start = time.perf_counter()
        everything = self._check()
        self.results.open()
        self.listeners.append(EventLog(self.results.out / "events.jsonl"))
        curves = sum(isinstance(cell, CurveCell) for cell in everything)
        try:
            self._tell("plan", models=len(self.pairs), cells=len(everything) - curves, curves=curves)
            self._run()
        except StoreError as error:
            self.result.stopped = str(error)
            del self.listeners[1:]  # the log is on the same disk
        finally:
            self.result.missing = [cell.title for cell in everything if cell.title not in self.done]
            self._end(time.perf_counter() - start)
        return self.result

    def _end(self, seconds: float) -> None:
        result = self.result
        try:
            self._tell(
                "end", computed=result.computed, reused=result.reused, failed=len(result.failures),
                missing=len(result.missing), seconds=seconds, stopped=result.stopped,
            )  # fmt: skip
        except StoreError as error:
            result.stopped = result.stopped or str(error)

    def _run(self) -> None:
        task = self._next()
        if task is None:
            return
        executor = self.make_executor()
        running = 0
        try:
            while True:
                while task is not None and executor.free > 0:
                    self._tell("start", self._title(task), task.id)
                    executor.submit(task)
                    running, task = running + 1, self._next()
                if task is None and not running:
                    return
                outcome = executor.wait(self._progress)
                if outcome is not None:
                    running -= 1
                    self._handle(outcome)
                task = task or self._next()
        finally:
            executor.close()

    # -- planning -------------------------------------------------------------------------------

    def _check(self) -> list[Anyhow]:
        """Find mistakes in the plan before any time is spent; all that is to be done."""
        everything: list[Anyhow] = [*plan(self.config), *curve_cells(self.config)]
        for pair in pairs(self.config):
            check_pair(pair, self.config)
        for cell in everything:
            if isinstance(cell, Cell):
                resolve(cell.suite, Threat.parse(cell.threat))
            else:
                resolve(cell.curve.suite, cell.curve.threats[0])
            self.cells.setdefault(cell.pair.identity, []).append(cell)
        unique = {pair.identity: pair for pair in pairs(self.config) if pair.identity in self.cells}
        self.pairs.extend(unique.values())
        return everything

    def _next(self) -> Task | None:
        """The next task; models are looked at one by one, as their turn comes."""
        while True:
            while self.ready:
                task = self.ready.popleft()
                if task.id not in self.open or not self.open[task.id].failed:
                    return task
            if not self.pairs:
                return None
            pair = self.pairs.popleft()
            try:
                self._begin(pair)
            except StoreError:
                raise
            except Exception as error:
                self._fail(pair.title, _reason(error), traceback.format_exc())

    def _begin(self, pair: Pair) -> None:
        """Hand out the training of a pair's model, or where there is nothing to train, its cells."""
        model = pair.model
        ref = ModelRef(str(model.spec), _absolute(model.weights), pair.seed, pair.moments)
        opened = open_model(ref.spec, ref.weights, seed=pair.seed)
        net, fit = opened.model, opened.preprocessing if ref.normalize is None else None
        self.fits[pair.identity] = fit
        if pair.as_is:
            self._open_cells(pair, ref, model_sha256(net))
            return
        options = training_options(self.config.recipe, {"seed": pair.seed, **pair.defense.training})
        held = self._hold(cast("str", pair.train), None, fit)
        recipe = {
            "model": [model.spec, model.normalize, str(fit)],
            "initial": model_sha256(net),
            "defense": make_defense(str(pair.defense.name), **pair.defense.options).parameters,
            "name": pair.defense.name,
            "threat": pair.defense.threat,
            "train": held.sha256,
            "training": {k: v for k, v in asdict(options).items() if k != "device"},
        }
        key = content_key(recipe)
        weights = self.results.weights(key)
        if weights.exists():
            load_weights(net, weights)
            self._tell("reused", pair.title, what="model")
            self._open_cells(pair, replace(ref, weights=str(weights.resolve())), model_sha256(net))
            return
        token = uuid4().hex
        self.results.write(weights.with_name("token"), token.encode())
        task = TrainTask(
            id=key,
            title=pair.title,
            model=ref,
            data=str(held.folder.resolve()),
            defense=str(pair.defense.name),
            options=pair.defense.options,
            threat=pair.defense.threat,
            recipe=self.config.recipe,
            training={"seed": pair.seed, **pair.defense.training},
            folder=str(weights.parent.resolve()),
            token=token,
        )
        self.training[key] = (pair, key)
        self.ready.append(task)

    def _open_cells(self, pair: Pair, ref: ModelRef, sha256: str) -> None:
        for cell in self.cells[pair.identity]:
            held = self._hold(cell.data, cell.limit, self.fits[pair.identity])
            key = content_key({**_about(cell, self.config), "weights": sha256, "data": held.sha256})
            if self._found(cell, key):
                continue
            shard = self.config.shard
            ranges = [(a, min(a + shard, held.n)) for a in range(0, held.n, shard)]
            opened = _Open(cell, key, ref, held, ranges)
            for rows in ranges:
                part = self.results.part(key, rows)
                if part is not None:
                    opened.parts[rows] = part
            if not opened.missing:
                self._finish(opened)
                continue
            for rows in opened.missing:
                task = self._task(opened, rows)
                self.open[task.id] = opened
                self.ready.append(task)

    def _found(self, cell: Anyhow, key: str) -> bool:
        """Whether the cell is done already."""
        if isinstance(cell, CurveCell):
            curve = self.results.curve_of(key)
            if curve is None:
                return False
            self.result.curves.append(curve)
        else:
            record = self.results.record_of(key)
            if record is None:
                return False
            self.result.records.append(self.store.get(record))
        self.result.reused += 1
        self.done.add(cell.title)
        self._tell("reused", cell.title, what="cell")
        return True

    def _task(self, opened: _Open, rows: tuple[int, int]) -> Task:
        cell, config = opened.cell, self.config
        about: dict[str, Any] = {
            "id": f"{opened.key}/{rows[0]}-{rows[1]}",
            "title": cell.title,
            "model": opened.ref,
            "data": str(opened.held.folder.resolve()),
            "seed": cell.seed,
            "rows": rows,
            "batch_size": config.batch_size,
            "precision": config.precision,
        }
        if isinstance(cell, CurveCell):
            return CurveTask(threats=tuple(cell.curve.threats), suite=cell.curve.suite, **about)
        return AttackTask(threat=cell.threat, suite=cell.suite, cascade=cell.cascade, **about)

    def _hold(self, spec: str, limit: int | None, fit: Preprocessing | None) -> Held:
        if (spec, limit, fit) not in self._held:
            self._held[spec, limit, fit] = hold(spec, limit, self.results.out / "data", fit)
        return self._held[spec, limit, fit]

    # -- what comes back ------------------------------------------------------------------------

    def _handle(self, outcome: Outcome) -> None:
        task = outcome.task
        if outcome.ending == "fatal":
            raise StoreError(outcome.reason)
        if outcome.ending == "lost":
            self._lost(outcome)
        elif outcome.ending == "failed":
            self._task_failed(task, outcome.reason, outcome.trace)
        elif isinstance(outcome.result, Trained):
            self._trained(task, outcome.result)
        else:
            assert outcome.result is not None
            self._part(task, outcome.result)

    def _lost(self, outcome: Outcome) -> None:
        """Try a task again whose worker died; with half the batch if it may have been for want of memory."""
        task = outcome.task
        self.tries[task.id] += 1
        if self.tries[task.id] >= _TRIES:
            reason = f"{outcome.reason} ({_TRIES} times)"
            self._task_failed(task, reason, reason)
            return
        if outcome.memory and not isinstance(task, TrainTask):
            task = replace(task, batch_size=max(1, (task.batch_size or _DEFAULT_ROWS) // 2))
        self._tell("retry", self._title(task), task.id, reason=outcome.reason)
        self.ready.appendleft(task)

    def _trained(self, task: Task, trained: Trained) -> None:
        pair, key = self.training.pop(task.id)
        path = self.results.weights(key)
        self.results.write(path, trained.weights)
        last = trained.history[-1]
        seconds = sum(epoch.seconds for epoch in trained.history)
        self._tell(
            "trained",
            pair.title,
            task.id,
            clean=last.clean_accuracy,
            robust=last.robust_accuracy,
            seconds=seconds,
        )
        self._succeeded(pair.title)
        try:
            self._open_cells(pair, replace(task.model, weights=str(path.resolve())), trained.sha256)
        except StoreError:
            raise
        except Exception as error:
            self._fail(pair.title, _reason(error), traceback.format_exc())

    def _part(self, task: Task, part: Part | CurvePart) -> None:
        opened = self.open.pop(task.id)
        opened.parts[part.rows] = part
        if len(opened.ranges) > 1:
            self.results.keep_part(opened.key, part)
        counted = _count(part)
        self._tell("shard", opened.cell.title, task.id, **counted, missing=len(opened.missing))
        if not opened.missing and not opened.failed:
            self._finish(opened)

    def _finish(self, opened: _Open) -> None:
        """All shards are there: make the record, or the curve."""
        cell = opened.cell
        try:
            if isinstance(cell, CurveCell):
                self._finish_curve(opened, cell)
            else:
                self._finish_cell(opened, cell)
        except StoreError:
            raise
        except Exception as error:
            self._fail(cell.title, _reason(error), traceback.format_exc())
            return
        self.result.computed += 1
        self.done.add(cell.title)
        self._succeeded(cell.title)

    def _finish_cell(self, opened: _Open, cell: Cell) -> None:
        threat = Threat.parse(cell.threat)
        held, made = opened.held, make_defense(str(cell.pair.defense.name), **cell.pair.defense.options)
        report = join(
            cast("Sequence[Part]", list(opened.parts.values())),
            Plan(threat, *resolve(cell.suite, threat), cell.cascade),
            data={"spec": held.spec, "sha256": held.sha256},
            n=held.n,
            seed=cell.seed,
            model_spec=str(cell.pair.model.spec),
        )
        trained = None if cell.pair.as_is else cell.pair.defense.threat
        record = Record.from_report(
            report,
            name=cell.pair.model.title,
            defense={"name": made.title, "parameters": made.parameters, "trained_threat": trained},
            command=self.command,
            class_names=map_samples(held.folder).class_names,
        )
        self.store.add(record, report.verdicts)
        self.results.finish(opened.key, cell.title, record.id)
        self.result.records.append(record)
        low, high = report.interval
        self._tell(
            "cell", cell.title, record=record.id, n=report.n, clean=report.clean_accuracy,
            robust=report.robust_accuracy, low=low, high=high, trust=report.trust, seconds=report.seconds,
        )  # fmt: skip
        if report.statuses["error"]:
            self.result.failures.append(f"{cell.title}: {report.statuses['error']} samples ended in an error")

    def _finish_curve(self, opened: _Open, cell: CurveCell) -> None:
        parts = sorted(cast("list[CurvePart]", list(opened.parts.values())), key=lambda part: part.rows)
        table = pd.concat([part.table for part in parts], ignore_index=True)
        found = points(table, cell.curve.threats)
        findings = {f.check: asdict(f) for part in parts for f in part.findings}
        curve = {
            "title": cell.title,
            "model": cell.pair.model.title,
            "defense": cell.pair.defense.title,
            "norm": cell.curve.norm,
            "suite": suite_title(cell.curve.suite),
            "seed": cell.seed,
            "data": {"spec": opened.held.spec, "sha256": opened.held.sha256, "n": opened.held.n},
            "clean": float((table["prediction"] == table["label"]).mean()),
            "points": found,
            "findings": list(findings.values()),
            "forwards": int(table["forwards"].sum()),
            "backwards": int(table["backwards"].sum()),
            "seconds": sum(part.seconds for part in parts),
        }
        self.results.finish_curve(opened.key, curve, table)
        self.result.curves.append(curve)
        self._tell("curve", cell.title, points=len(found), seconds=curve["seconds"])
        errors = int((table["falls_at"] == -2).sum())
        if errors:
            self.result.failures.append(f"{cell.title}: {errors} samples ended in an error")

    # -- failures and words ---------------------------------------------------------------------

    def _task_failed(self, task: Task, reason: str, trace: str) -> None:
        opened = self.open.get(task.id)
        if opened is None:
            self._fail(self._title(task), reason, trace)
        elif not opened.failed:
            opened.failed = True
            self._fail(opened.cell.title, reason, trace)

    def _fail(self, title: str, reason: str, trace: str) -> None:
        self.result.failures.append(f"{title}: {reason}")
        self.results.fail(_name(title), title, trace)
        self._tell("failed", title, reason=reason)

    def _succeeded(self, title: str) -> None:
        self.results.forgive(_name(title))

    def _title(self, task: Task) -> str:
        return task.title

    def _progress(self, task: Task, progress: Progress) -> None:
        self._tell("progress", task.title, task.id, **asdict(progress))

    def _tell(self, kind: Kind, title: str = "", task: str = "", **fields: Any) -> None:
        for listener in self.listeners:
            listener(Event(kind, title, task, fields))


def check_pair(pair: Pair, config: SweepConfig) -> None:
    """Find mistakes in a pair before any time is spent.

    Raises:
        InputError and its kin.
    """
    made = make_defense(str(pair.defense.name), **pair.defense.options)
    training_options(config.recipe, pair.defense.training)
    if pair.as_is:
        return
    if pair.train is None:
        raise InputError(f"sweep: defense {pair.defense.name!r} needs samples to train on; give `train`")
    if isinstance(made, Wrapper):
        raise UnsupportedError(
            f"sweep: {made.title!r} puts a transform in front of the model, which sweeps cannot rebuild from weights; "
            "use `robust harden`"
        )
    made.check(None if pair.defense.threat is None else Threat.parse(pair.defense.threat))


def _about(cell: Anyhow, config: SweepConfig) -> dict[str, Any]:
    """What a cell's result depends on, but for the weights and the data."""
    about: dict[str, Any] = {
        "model": [cell.pair.model.spec, cell.pair.model.normalize],
        "pair": [cell.pair.model.title, cell.pair.defense.model_dump(mode="json")],
        "seed": cell.seed,
        "precision": config.precision,
        "batch_size": config.batch_size,
    }
    if isinstance(cell, CurveCell):
        suites = [stages_identity(cell.curve.suite, threat) for threat in cell.curve.threats]
        return {**about, "curve": [str(threat) for threat in cell.curve.threats], "suites": suites}
    threat = Threat.parse(cell.threat)
    return {
        **about,
        "threat": [threat.norm, threat.eps, threat.bounds],
        "suite": stages_identity(cell.suite, threat),
        "cascade": cell.cascade,
    }


def _count(part: Part | CurvePart) -> dict[str, int]:
    """Samples of a shard, those classified correctly, and those that stood (at the smallest radius)."""
    if isinstance(part, Part):
        survived = int((part.verdicts["status"] == "survived").sum())
        return {"samples": len(part.verdicts), "correct": part.correct, "survived": survived}
    falls = part.table["falls_at"]
    return {"samples": len(falls), "correct": int((falls != -1).sum()), "survived": int((falls > 0).sum())}


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).resolve())


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, RobustError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split()) or type(error).__name__


def _name(title: str) -> str:
    return hashlib.sha256(title.encode()).hexdigest()[:16]
