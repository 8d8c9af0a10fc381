"""Carry out a sweep: train what is missing, attack what is missing, keep everything."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Final, cast
from uuid import uuid4

from torch import nn

from robust.defenses.checkpoint import drop_damaged
from robust.errors import ModelError, StoreError
from robust.parts import Part
from robust.run import Progress
from robust.sources import Preprocessing, load_weights, model_sha256, open_model, origin_sha256
from robust.sweep.cells import CurveCell, Origin, Pair, content_key, dependencies, pairs
from robust.sweep.check import check_plan
from robust.sweep.config import SweepConfig
from robust.sweep.curves import CurvePart
from robust.sweep.executors import Executor, InProcess
from robust.sweep.filing import Diary, Filing
from robust.sweep.finish import Anyhow, Open, SweepResult, counts
from robust.sweep.handout import attack_task, train_task, training_key
from robust.sweep.held import Held, hold
from robust.sweep.results import Results
from robust.sweep.tasks import ModelRef, Outcome, Task, Trained, TrainTask
from robust.sweep.watch import EventLog, Listener
from robust.threat import Threat
from robust.whole_box import tell, whole_box

_TRIES: Final = 3  # of a task whose worker died
_DEFAULT_ROWS: Final = 128


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
        self.config, self.results = config, results
        self.make_executor = make_executor
        self.result = SweepResult()
        self.diary = Diary(results, self.result, listener)
        self.filing = Filing(config, results, self.result, self.diary, command)
        self.pairs: deque[Pair] = deque()
        self.cells: dict[str, list[Anyhow]] = {}  # by the pair's identity
        self.ready: deque[Task] = deque()
        self.open: dict[str, Open] = {}  # by the id of a task
        self.keyed: dict[str, Anyhow] = {}  # the cell that a result is of, by its key
        self.training: dict[str, list[Pair]] = {}  # pairs by the key of the model that they wait for
        self.origins: dict[str, Origin] = {}  # by the pair's identity
        self.told: set[str] = set()  # of threats
        self.tries: Counter[str] = Counter()
        self._held: dict[tuple[str, int | None, Preprocessing | None, str | None], Held] = {}

    def run(self) -> SweepResult:
        start = time.perf_counter()
        everything = self._check()
        self.results.open()
        self.diary.listeners.append(EventLog(self.results.out / "events.jsonl"))
        curves = sum(isinstance(cell, CurveCell) for cell in everything)
        try:
            self.diary.tell("plan", models=len(self.pairs), cells=len(everything) - curves, curves=curves)
            self._run()
        except StoreError as error:
            self.result.stopped = str(error)
            del self.diary.listeners[1:]  # the log is on the same disk
        finally:
            self.result.missing = [cell.title for cell in everything if cell.identity not in self.filing.done]
            curves_of = self.filing.curves
            self.result.curves = [
                curves_of[cell.identity] for cell in everything if cell.identity in curves_of
            ]
            self._end(time.perf_counter() - start)
        return self.result

    def _end(self, seconds: float) -> None:
        result = self.result
        try:
            self.diary.tell(
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
                    self._start(task)
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

    def _start(self, task: Task) -> None:
        opened = self.open.get(task.id)
        self.diary.tell(
            "start", task.title, task.id, **({} if opened is None else {"samples": opened.held.n})
        )

    # -- planning -------------------------------------------------------------------------------

    def _check(self) -> list[Anyhow]:
        """Find mistakes in the plan before any time is spent; all that is to be done."""
        everything = check_plan(self.config)
        for cell in everything:
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
                self.diary.caught(pair, error)

    def _begin(self, pair: Pair) -> None:
        """Hand out the training of a pair's model, or where there is nothing to train, its cells."""
        model = pair.model
        sha256 = origin_sha256(str(model.spec))
        ref = ModelRef(str(model.spec), _absolute(model.weights), pair.seed, pair.moments, origin=sha256)
        opened = open_model(ref.spec, ref.weights, seed=pair.seed)
        net, fit = opened.model, opened.preprocessing if ref.normalize is None else None
        origin = self.origins[pair.identity] = Origin(sha256, fit)
        if pair.as_is:
            self._open_cells(pair, replace(ref, behind=pair.behind), model_sha256(net))
            return
        looked = [(cell, self._look(cell, origin)) for cell in self.cells[pair.identity]]
        held = self._hold(cast("str", pair.train), None, fit)
        key = training_key(pair, self.config, model_sha256(net), held, origin)
        # What cannot be read, or is attacked twice, is told before anything is trained for it.
        self.cells[pair.identity] = [cell for cell, its in looked if self._key(cell, origin, key, its)]
        weights = self.results.weights(key)
        if self._restore(net, key, pair):
            ref = replace(ref, weights=str(weights.resolve()), behind=pair.behind)
            self._open_cells(pair, ref, model_sha256(net))
            return
        self.training.setdefault(key, []).append(pair)
        if len(self.training[key]) == 1:  # else another pair's model is the same
            token = uuid4().hex
            self.results.write(weights.with_name("token"), token.encode())
            for reason in drop_damaged(weights.parent):
                self.diary.tell("lost", pair.title, what="model", reason=reason)
            self.ready.append(train_task(pair, self.config, ref, key, held, weights.parent, token))

    def _restore(self, net: nn.Module, key: str, pair: Pair) -> bool:
        """Read the weights that were trained before into `net`; told if they are gone or damaged."""
        weights, sha256 = self.results.weights(key), self.results.weights_sha256(key)
        if sha256 is None and not weights.exists():
            return False
        try:
            load_weights(net, weights)
        except ModelError as error:
            reason = str(error)
        else:
            if sha256 in (None, model_sha256(net)):
                self.diary.tell("reused", pair.title, what="model")
                return True
            reason = f"weights {weights}: not those that were trained"
        self.diary.tell("lost", pair.title, what="model", reason=reason)
        return False

    def _open_cells(self, pair: Pair, ref: ModelRef, sha256: str) -> None:
        """The pair's model is there: hand out the shards of its cells."""
        self.diary.forgive(pair)
        origin = self.origins[pair.identity]
        for cell in self.cells[pair.identity]:
            held = self._look(cell, origin)
            key = self._key(cell, origin, sha256, held)
            if key is None or self.filing.found(cell, key):
                continue
            shard = self.config.shard
            ranges = [(a, min(a + shard, held.n)) for a in range(0, held.n, shard)]
            opened = Open(cell, key, ref, held, ranges)
            for rows in ranges:
                kept = self.results.part(key, rows)
                if kept is not None:
                    opened.parts[rows], opened.examples[rows] = kept
            if not opened.missing:
                self.filing.finish(opened)
                continue
            for rows in opened.missing:
                task = attack_task(opened, rows, self.config)
                self.open[task.id] = opened
                self.ready.append(task)

    def _key(self, cell: Anyhow, origin: Origin, weights: str, held: Held) -> str | None:
        """The key of a cell's result; None, and told, where another cell has it: files of several names may be one."""
        about = dependencies(cell, self.config, origin)
        key = content_key({**about, "weights": weights, "data": held.identity})
        first = self.keyed.setdefault(key, cell)
        if first is cell:
            return key
        others = f"; {_samples(cell)} is {_samples(first)}" if _samples(cell) != _samples(first) else ""
        reason = f"is there twice, with the model, samples and attacks of {first.title}{others}; give it once"
        self.diary.fail(cell, reason, reason)
        return None

    def _look(self, cell: Anyhow, origin: Origin) -> Held:
        """The samples of a cell; an eps that lets all of them through is told, once."""
        held = self._hold(cell.data, cell.limit, origin.fit, self.config.groups)
        threat = cell.curve.threats[0] if isinstance(cell, CurveCell) else Threat.parse(cell.threat)
        said = whole_box(threat, held.samples.x[0].numel())
        if said not in self.told:
            self.told.add(said)
            tell(said)
        return held

    def _hold(
        self, spec: str, limit: int | None, fit: Preprocessing | None, groups: str | None = None
    ) -> Held:
        key = spec, limit, fit, groups
        if key not in self._held:
            lost = partial(self._lost_data, spec)
            self._held[key] = hold(spec, limit, self.results.out / "data", fit, groups, lost)
        return self._held[key]

    def _lost_data(self, spec: str, reason: str) -> None:
        self.diary.tell("lost", spec, what="data", reason=reason)

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
            self._part(task, outcome.result, outcome.examples)

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
        self.diary.tell("retry", task.title, task.id, reason=outcome.reason)
        self.ready.appendleft(task)

    def _trained(self, task: Task, trained: Trained) -> None:
        waiting = self.training.pop(task.id)
        path = self.results.keep_weights(task.id, trained.weights, trained.sha256)
        last = trained.history[-1]
        seconds = sum(epoch.seconds for epoch in trained.history)
        self.diary.tell(
            "trained", task.title, task.id, clean=last.clean_accuracy, robust=last.robust_accuracy, seconds=seconds
        )  # fmt: skip
        for pair in waiting:
            ref = replace(task.model, weights=str(path.resolve()), behind=pair.behind)
            try:
                self._open_cells(pair, ref, trained.sha256)
            except StoreError:
                raise
            except Exception as error:
                self.diary.caught(pair, error)

    def _part(self, task: Task, part: Part | CurvePart, examples: bytes | None) -> None:
        opened = self.open.pop(task.id)
        opened.parts[part.rows], opened.examples[part.rows] = part, examples
        if len(opened.ranges) > 1:
            self.results.keep_part(opened.key, part, examples)
        counted = counts(part)
        seconds = round(part.seconds, 4)
        self.diary.tell(
            "shard", opened.cell.title, task.id, **counted, seconds=seconds, missing=len(opened.missing)
        )
        if not opened.missing and not opened.failed:
            self.filing.finish(opened)

    def _task_failed(self, task: Task, reason: str, trace: str) -> None:
        opened = self.open.get(task.id)
        if opened is None:
            for pair in self.training.pop(task.id):
                self.diary.fail(pair, reason, trace)
        elif not opened.failed:
            opened.failed = True
            self.diary.fail(opened.cell, reason, trace)

    def _progress(self, task: Task, progress: Progress) -> None:
        self.diary.tell("progress", task.title, task.id, **asdict(progress))


def _samples(cell: Anyhow) -> str:
    return f"all of {cell.data}" if cell.limit is None else f"{cell.data} cut to {cell.limit}"


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).resolve())
