"""Carry out a sweep: train what is missing, attack what is missing, keep everything."""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from torch import nn

from robust.attacks import Attack
from robust.defenses import EpochResult, Trainer, make_defense
from robust.errors import InputError, RobustError, StoreError
from robust.evaluation import evaluate
from robust.hardening import training_options
from robust.leaderboard import Record, Store
from robust.run import Progress
from robust.sources import Samples, load_data, load_model, load_weights, model_sha256, save_weights
from robust.suites import resolve
from robust.sweep.config import DefenseEntry, ModelEntry, SweepConfig
from robust.target import Target
from robust.threat import Threat

CODE_VERSION: Final = 1  # raise it when verdicts or weights of an unchanged plan may come out otherwise


class Listener:
    """Is told how a sweep goes. This one ignores it."""

    def plan(self, pairs: int, cells: int) -> None:
        """The sweep has `pairs` models to train and `cells` evaluations."""

    def train(self, title: str, *, reused: bool) -> None:
        """A model x defense pair is about to be trained, or is there already."""

    def epoch(self, result: EpochResult) -> None:
        """An epoch is done."""

    def batch(self, done: int, total: int) -> None:
        """A batch of the epoch is done."""

    def cell(self, title: str, *, reused: bool) -> None:
        """An evaluation is about to run, or is there already."""

    def attack(self, progress: Progress) -> None:
        """An evaluation has come further."""

    def failed(self, title: str, reason: str) -> None:
        """A pair or cell failed; the sweep goes on."""


@dataclass
class SweepResult:
    """What a sweep left behind: the records of its cells, and what failed."""

    records: list[Record] = field(default_factory=list)
    computed: int = 0
    reused: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """One evaluation of the plan."""

    model: ModelEntry
    defense: DefenseEntry
    threat: str
    suite: str | list[str | dict[str, Any]]
    seed: int

    @property
    def title(self) -> str:
        """For progress and messages."""
        suite = self.suite if isinstance(self.suite, str) else "+".join(map(str, self.suite))
        return f"{self.model.title} x {self.defense.name}, {self.threat}, {suite}, seed {self.seed}"


def plan(config: SweepConfig) -> Iterator[Cell]:
    """The cells of a sweep, pair by pair."""
    for model in config.models:
        for defense in config.defenses:
            for threat in config.threats:
                for suite in config.suites:
                    for seed in config.seeds:
                        yield Cell(model, defense, threat, suite, seed)


def run_sweep(
    config: SweepConfig,
    out: str | Path,
    *,
    device: str = "auto",
    listener: Listener | None = None,
    command: str | None = None,
) -> SweepResult:
    """Run what is missing of a sweep, cell by cell; results are there as soon as a cell is done.

    Args:
        config: the plan.
        out: folder of the results: trained models, records and verdict tables. Run again to go on.
        listener: told of progress.
        command: kept in the records.

    Returns:
        Records of all cells that are done, and what failed (with a traceback in `out`/failures).

    Raises:
        InputError, StoreError: the plan or the folder is unusable.
    """
    sweep = _Sweep(config, Path(out), device, listener or Listener(), command)
    return sweep.run()


class _Sweep:
    def __init__(
        self, config: SweepConfig, out: Path, device: str, listener: Listener, command: str | None
    ) -> None:
        self.config, self.out, self.device = config, out, device
        self.tell, self.command = listener, command
        self.store = Store(out)
        self.result = SweepResult()

    def run(self) -> SweepResult:
        self._check()
        cells = list(plan(self.config))
        pairs = dict.fromkeys((c.model.model_dump_json(), c.defense.model_dump_json()) for c in cells)
        self.tell.plan(len(pairs), len(cells))
        for pair in pairs:
            mine = [c for c in cells if (c.model.model_dump_json(), c.defense.model_dump_json()) == pair]
            try:
                hardened = self._hardened(mine[0].model, mine[0].defense)
            except (StoreError, KeyboardInterrupt):
                raise
            except Exception as error:
                self._fail(f"{mine[0].model.title} x {mine[0].defense.name}", error)
                continue
            for cell in mine:
                self._evaluate(cell, hardened)
        return self.result

    def _check(self) -> None:
        """Find mistakes in the plan before any time is spent."""
        for defense in self.config.defenses:
            make_defense(defense.name, **defense.options)
            training_options(self.config.recipe, defense.training)
        for cell in plan(self.config):
            resolve(cell.suite, Threat.parse(cell.threat))
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"out: cannot make the folder {self.out}: {error.strerror or error}") from error

    # -- models ---------------------------------------------------------------------------------

    def _hardened(self, model: ModelEntry, defense: DefenseEntry) -> nn.Module:
        """The trained model of a pair: read if it is there, else trained."""
        seed = self.config.seeds[0]
        net = load_model(model.spec, model.weights, seed=seed)
        options = training_options(
            self.config.recipe, {"seed": seed, "device": self.device, **defense.training}
        )
        recipe = {
            "model": model.model_dump(mode="json"),
            "initial": model_sha256(net),
            "defense": make_defense(defense.name, **defense.options).parameters,
            "name": defense.name,
            "threat": defense.threat,
            "train": self._train_data().sha256,
            "training": {k: v for k, v in asdict(options).items() if k != "device"},
        }
        folder = self.out / "models" / _key(recipe)
        weights = folder / "weights.safetensors"
        title = f"{model.title} x {defense.name}"
        self.tell.train(title, reused=weights.exists())
        if weights.exists():
            load_weights(net, weights)
            return net.eval()
        trainer = Trainer(options, out=folder, progress=self.tell.epoch, ticks=self.tell.batch)
        threat = None if defense.threat is None else Threat.parse(defense.threat)
        made = make_defense(defense.name, **defense.options)
        hardened = made.fit(net, self._train_data(), threat=threat, trainer=trainer)
        save_weights(hardened, weights)
        return hardened

    def _train_data(self) -> Samples:
        if self.config.train is None:
            raise InputError("sweep: defenses need training data; give `train`")
        return _data(self.config.train)

    # -- cells ----------------------------------------------------------------------------------

    def _evaluate(self, cell: Cell, net: nn.Module) -> None:
        samples = _data(self.config.data).limit(self.config.limit)
        threat = Threat.parse(cell.threat)
        name, stages = resolve(cell.suite, threat)
        key = _key(
            {
                "weights": model_sha256(net),
                "normalize": cell.model.normalize,
                "data": samples.sha256,
                "threat": [threat.norm, threat.eps, threat.bounds],
                "suite": [
                    name,
                    [
                        [_named(s.attack), s.attack.parameters, s.near, s.within, s.share, s.follows]
                        for s in stages
                    ],
                ],
                "seed": cell.seed,
                "cascade": self.config.cascade,
                "pair": [cell.model.title, cell.defense.model_dump(mode="json")],
            }
        )
        done = self.out / "cells" / f"{key}.json"
        self.tell.cell(cell.title, reused=done.exists())
        if done.exists():
            self.result.records.append(self.store.get(json.loads(done.read_text(encoding="utf-8"))["record"]))
            self.result.reused += 1
            return
        try:
            self._compute(cell, net, samples, done)
        except (StoreError, KeyboardInterrupt):
            raise
        except Exception as error:
            self._fail(cell.title, error)

    def _compute(self, cell: Cell, net: nn.Module, samples: Samples, done: Path) -> None:
        target = Target(net, normalize=cell.model.normalize, device=self.device)
        report = evaluate(
            target,
            samples,
            threat=cell.threat,
            suite=cell.suite,
            seed=cell.seed,
            cascade=self.config.cascade,
            model_spec=cell.model.spec,
            progress=self.tell.attack,
        )
        made = make_defense(cell.defense.name, **cell.defense.options)
        record = Record.from_report(
            report,
            name=cell.model.title,
            defense={"name": made.name, "parameters": made.parameters, "trained_threat": cell.defense.threat},
            command=self.command,
        )
        self.store.add(record, report.verdicts)
        done.parent.mkdir(parents=True, exist_ok=True)
        partial = done.with_suffix(".partial")
        partial.write_text(json.dumps({"record": record.id, "cell": cell.title}), encoding="utf-8")
        partial.replace(done)
        self.result.records.append(record)
        self.result.computed += 1
        if report.failures:
            self.result.failures.append(f"{cell.title}: {report.statuses['error']} samples ended in an error")

    def _fail(self, title: str, error: Exception) -> None:
        folder = self.out / "failures"
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(title.encode()).hexdigest()[:16]
        (folder / f"{name}.txt").write_text(f"{title}\n{traceback.format_exc()}", encoding="utf-8")
        reason = str(error) if isinstance(error, RobustError) else f"{type(error).__name__}: {error}"
        self.result.failures.append(f"{title}: {reason.splitlines()[0] if reason else type(error).__name__}")
        self.tell.failed(title, reason)


def _named(attack: Attack) -> str:
    """Name of the attack, with the version of the library that it comes from."""
    return attack.name if attack.source == "robust" else f"{attack.name} of {attack.source}"


@lru_cache(maxsize=4)
def _data(spec: str) -> Samples:
    return load_data(spec)


def _key(content: dict[str, Any]) -> str:
    text = json.dumps({"code": CODE_VERSION, **content}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
