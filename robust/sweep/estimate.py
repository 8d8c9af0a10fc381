"""What a sweep will cost, from a short calibration on a few samples."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, Final

import pandas as pd
import torch

from robust.defenses import make_defense
from robust.devices import synchronize
from robust.errors import RobustError
from robust.hardening import training_options
from robust.parts import Part, Plan, attack_part
from robust.run import Settings
from robust.sources import Preprocessing, Samples, load_data
from robust.suites import resolve
from robust.sweep.cells import Cell, CurveCell, Pair
from robust.sweep.check import check_plan
from robust.sweep.config import SweepConfig
from robust.sweep.tasks import ModelRef, build_target
from robust.target import Target
from robust.threat import Threat
from robust.timing import both_ways

_FEW: Final = 8  # samples that are attacked for the count of passes
_MORE: Final = 24  # attacked too where fewer of them stand than
_STAND: Final = 3  # for most passes go to those that do
_ROWS: Final = 64  # of a timed pass
_SCALED: Final = ("linf", "l2", "l1")  # norms of which a tenth of a radius is one too


@dataclass(frozen=True)
class Line:
    """What a training or an evaluation is expected to cost.

    Attributes:
        passes: of one sample, forward and backward counted apart.
        guessed: the model is not trained yet, or none of a few samples stood: what they withstand is not known.
    """

    title: str
    training: bool
    samples: int
    passes: float
    seconds: float
    guessed: bool
    device: str

    @property
    def about(self) -> str:
        """What figures of a guess begin with."""
        return "~" if self.guessed else ""


@dataclass(frozen=True)
class Sampled:
    """A suite on a few samples: the passes of one, those of the checks, and the seconds of all together."""

    forwards: float
    backwards: float
    checks: float
    samples: int
    took: float
    stood: int

    def seconds(self, n: int, ahead: float, both: float) -> float:
        """Of n samples, whose passes take `ahead` and `both` seconds in full batches.

        What the few took beyond that comes on top: calls for the one or two rows that are left, and what is not the
        model's. It grows with the steps, not with the samples, so that it is paid about once.
        """
        each = self.forwards * ahead + self.backwards * both
        return n * each + max(0.0, self.took - self.samples * each)


def estimate(config: SweepConfig, device: str = "auto") -> list[Line]:
    """What the trainings and evaluations of a sweep will cost, done or not.

    A pass of every model is timed, and every suite is run on a few samples. A model that is yet to be
    trained is taken with its initial weights and its own predictions for labels: a guess.
    """
    everything = check_plan(config)
    gauge = _Gauge(device, config.groups)
    attacked = {cell.pair.identity: cell.pair for cell in everything}
    lines = [gauge.training(pair, config) for pair in attacked.values() if not pair.as_is]
    return lines + [gauge.attack(cell) for cell in everything]


class _Gauge:
    """Times passes and counts them, once for what recurs."""

    def __init__(self, device: str, groups: str | None) -> None:
        self._device, self._groups = device, groups
        self._data: dict[tuple[str, Preprocessing | None, str | None], Samples] = {}
        self._seconds: dict[str, tuple[float, float]] = {}
        self._counts: dict[str, Sampled] = {}

    def training(self, pair: Pair, config: SweepConfig) -> Line:
        """Epochs x samples x (1 + the inner attack's steps), each a forward and a backward pass."""
        options = training_options(config.recipe, pair.defense.training)
        made = make_defense(str(pair.inner.name), **pair.inner.options)
        steps = 1 + int(made.parameters.get("steps", 0))
        target, _ = self._target(pair)
        samples = self._samples(pair.train or "", target.preprocessing)
        each = options.epochs * steps * len(samples)
        return Line(
            title=f"train {pair.title}", training=True, samples=len(samples), passes=2.0 * each,
            seconds=each * sum(self._pass_seconds(pair, target, samples)), guessed=True, device=str(target.device),
        )  # fmt: skip

    def attack(self, cell: Cell | CurveCell) -> Line:
        """Samples x passes a sample of the suite (of a curve: at its middle radius)."""
        target, guessed = self._target(cell.pair)
        samples = self._samples(cell.data, target.preprocessing, self._groups)
        n = len(samples.limit(cell.limit))
        if isinstance(cell, Cell):
            threat, suite = Threat.parse(cell.threat), cell.suite
        else:
            threats = cell.curve.threats
            threat, suite = threats[len(threats) // 2], cell.curve.suite
        cascade = cell.cascade if isinstance(cell, Cell) else True
        each = self._pass_seconds(cell.pair, target, samples)
        count = self._passes(cell.pair, target, samples, threat, suite, cascade, guessed)
        return Line(
            title=cell.title, training=False, samples=n, passes=n * (count.forwards + count.backwards) + count.checks,
            seconds=count.seconds(n, *each), guessed=guessed or not count.stood, device=str(target.device),
        )  # fmt: skip

    def _samples(self, spec: str, fit: Preprocessing | None, groups: str | None = None) -> Samples:
        if (spec, fit, groups) not in self._data:
            self._data[spec, fit, groups] = load_data(spec, fit=fit, groups=groups)
        return self._data[spec, fit, groups]

    def _target(self, pair: Pair) -> tuple[Target, bool]:
        ref = ModelRef(str(pair.model.spec), pair.model.weights, pair.seed, pair.moments, pair.behind)
        return build_target(ref, ref.weights, self._device), not pair.as_is

    def _pass_seconds(self, pair: Pair, target: Target, samples: Samples) -> tuple[float, float]:
        """Of one sample: a forward pass, and what a backward pass adds to it."""
        key = f"{pair.model.spec} {pair.moments} {pair.behind}"
        if key not in self._seconds:
            x = samples.rows(slice(0, min(_ROWS, len(samples)))).to(target.device)
            with target:
                ahead = _best(target, lambda: _forward(target, x))
                whole = _best(target, lambda: both_ways(target, x))
            self._seconds[key] = ahead / len(x), max(0.0, whole - ahead) / len(x)
        return self._seconds[key]

    def _passes(
        self,
        pair: Pair,
        target: Target,
        samples: Samples,
        threat: Threat,
        suite: Any,
        cascade: bool,
        guessed: bool,
    ) -> Sampled:
        """What a suite costs on a few samples.

        Of a model that is yet to be trained: the most at the radius and at a tenth of it, as what falls at once
        costs little, and a trained model's samples do not.
        """
        model = f"{pair.model.spec} {pair.model.weights} {pair.moments} {pair.behind}"
        key = f"{model} {id(samples)} {threat} {suite} {cascade}"  # samples are kept in _data
        if key not in self._counts:
            few = samples.take(slice(0, _FEW + _MORE))
            threats = [threat]
            if guessed:
                with target, torch.no_grad():
                    found = target.logits(few.rows(slice(None)).to(target.device)).argmax(1).cpu()
                few = replace(few, y=found)
                if threat.norm in _SCALED:
                    threats.append(replace(threat, eps=str(threat.radius / 10)))
            try:
                counts = [_count(target, few, Plan(t, *resolve(suite, t), cascade)) for t in threats]
                self._counts[key] = max(counts, key=lambda count: count.forwards + count.backwards)
            except RobustError:  # the sweep itself will tell
                self._counts[key] = Sampled(0.0, 0.0, 0.0, 0, 0.0, 0)
        return self._counts[key]


def _count(target: Target, few: Samples, made: Plan) -> Sampled:
    start = time.perf_counter()
    parts = [_attack(target, few.take(slice(0, _FEW)), made)]
    stood = _stood(parts[0])
    if stood < _STAND and len(few) > _FEW:
        parts.append(_attack(target, few.take(slice(_FEW, None)), made))
        stood += _stood(parts[1])
    took = time.perf_counter() - start
    table = pd.concat([part.verdicts for part in parts])
    return Sampled(
        forwards=float(table["forwards"].mean()), backwards=float(table["backwards"].mean()),
        checks=float(max(part.checks["forwards"] + part.checks["backwards"] for part in parts)),
        samples=len(table), took=took, stood=stood,
    )  # fmt: skip


def _attack(target: Target, few: Samples, made: Plan) -> Part:
    return attack_part(target, few, made, Settings(micro_batch=_FEW, precision="float32"))


def _stood(part: Part) -> int:
    return int((part.verdicts["status"] == "survived").sum())


def _forward(target: Target, x: torch.Tensor) -> None:
    with torch.no_grad():
        target.logits(x)


def _best(target: Target, run: Any) -> float:
    """Seconds of the best of three."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        synchronize(target.device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
