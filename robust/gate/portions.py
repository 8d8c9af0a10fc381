"""Attacks samples in growing portions, and stops as soon as the gate has seen enough."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from robust import run_checks
from robust.failures import naming_failures
from robust.parts import Part, Plan, describe, part_of
from robust.rng import Streams
from robust.run import Run, Settings
from robust.sources import Samples
from robust.stats import Outcome, SequentialTest, interval
from robust.target import Target


class Rule(Protocol):
    """What a gate makes of k survivors among n samples."""

    def decide(self, k: int, n: int) -> Outcome:
        """Once all n samples went through the whole suite."""

    def shows_too_few(self, k: int, n: int) -> bool:
        """Whether the gate fails with k survivors; then it does with fewer."""

    def interval(self, k: int, n: int) -> tuple[float, float]:
        """Robust accuracies that k survivors of n leave possible."""


@dataclass(frozen=True)
class Fixed:
    """Passes where the robust accuracy of the samples reaches theta; says nothing beyond them."""

    theta: float
    confidence: float

    def decide(self, k: int, n: int) -> Outcome:
        return "fail" if self.shows_too_few(k, n) else "pass"

    def shows_too_few(self, k: int, n: int) -> bool:
        return k < round(self.theta * n, 9)

    def interval(self, k: int, n: int) -> tuple[float, float]:
        return interval(k, n, confidence=self.confidence)


@dataclass(frozen=True)
class Interval:
    """Decides where the exact interval of the accuracy lies on one side of theta."""

    theta: float
    confidence: float

    def decide(self, k: int, n: int) -> Outcome:
        if self.interval(k, n)[0] >= self.theta:
            return "pass"
        return "fail" if self.shows_too_few(k, n) else "undecided"

    def shows_too_few(self, k: int, n: int) -> bool:
        return self.interval(k, n)[1] < self.theta

    def interval(self, k: int, n: int) -> tuple[float, float]:
        return interval(k, n, confidence=self.confidence, method="exact")


def rule_of(gate: str, theta: float, population: int, confidence: float) -> Rule:
    """The rule of a gate by name."""
    if gate == "sequential":
        return SequentialTest(theta, population, confidence)
    return Fixed(theta, confidence) if gate == "fixed" else Interval(theta, confidence)


def shuffled(samples: Samples, seed: int, count: int | None = None) -> Samples:
    """The first `count` (None: all) in a random order of the samples' ids that the seed alone decides."""
    draw = Streams(seed, samples.ids, ("gate",)).integers((1,), 0, 1 << 31).squeeze(1)
    return samples.take(draw.argsort(stable=True)[:count])


@dataclass(frozen=True)
class Search:
    """What was found until the gate had seen enough."""

    parts: list[Part]
    outcome: Outcome
    n: int  # samples used
    standing: int  # of them, those that nothing broke
    complete: bool  # each sample went through the whole suite, or left it broken


def search(
    target: Target,
    samples: Samples,
    plan: Plan,
    settings: Settings,
    *,
    sizes: Iterable[int],
    rule: Rule,
) -> Search:
    """Attack the first `sizes` samples, portion by portion, until the rule decides.

    After every stage of a portion the gate may fail already: those still standing can only become fewer.
    Only what stands after the last stage counts as a survivor.

    Args:
        target: entered.
        samples: those that may be used, in the order in which they are to be.
        sizes: ascending counts of samples after which the rule is asked.
    """
    runs: list[Run] = []
    seconds: list[float] = []
    outcome: Outcome = "undecided"
    stage = before = 0
    for n in sizes:
        start = time.perf_counter()
        run = Run(target, samples.take(slice(before, n)), plan.threat, settings, samples, stages=plan.stages)
        with naming_failures():
            run.look(runs[-1] if runs else None)
        runs.append(run)
        for stage in range(len(plan.stages) + 1):
            if stage:
                run.attack(plan.stages[stage - 1], cascade=True)
                if run.interrupted:  # no verdict from half a search
                    raise KeyboardInterrupt
            if rule.shows_too_few(_standing(runs) + _errors(runs), n):
                outcome = "fail"
                break
        else:
            outcome = "undecided" if _errors(runs) else rule.decide(_standing(runs), n)
        run.forget_breaks()
        before = n
        seconds.append(time.perf_counter() - start)
        if outcome != "undecided" or _errors(runs):
            break
    complete = stage == len(plan.stages) or not runs[-1].verdicts.standing
    return Search(
        parts=_parts(runs, plan, seconds, complete=complete),
        outcome=outcome,
        n=before,
        standing=_standing(runs),
        complete=complete,
    )


def _parts(runs: Sequence[Run], plan: Plan, seconds: Sequence[float], *, complete: bool) -> list[Part]:
    """The runs as parts of a report, after the probes; `complete`: every run has seen every attack."""
    parts, start = [], 0
    model = describe(runs[0].target)
    for run, spent in zip(runs, seconds, strict=True):
        began = time.perf_counter()
        found = run_checks.after_attacks(
            run, plan.stages, whole=complete, first=not start, full=plan.full_checks
        )
        rows = range(start, start + len(run.samples))
        parts.append(part_of(run, rows, model, spent + time.perf_counter() - began, found))
        start = rows.stop
    return parts


def _standing(runs: Sequence[Run]) -> int:
    return sum(run.verdicts.standing for run in runs)


def _errors(runs: Sequence[Run]) -> int:
    return sum(run.verdicts.errors for run in runs)
