"""What a gate will cost and how often it errs, by simulation, before a model is attacked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from robust.errors import InputError
from robust.rng import checked_seed
from robust.stats import SequentialTest

FIRST: Final = 20  # samples before the first look
STEP: Final = 10  # samples at least between two looks
SHARE: Final = 20  # later portions are a twentieth of what was seen before


def looks(limit: int) -> Iterator[int]:
    """Sample counts at which a sequential gate looks: 20, 30, ... 200, then a twentieth more each time."""
    seen = min(limit, FIRST)
    yield seen
    while seen < limit:
        seen = min(limit, seen + max(STEP, seen // SHARE))
        yield seen


@dataclass(frozen=True)
class Plan:
    """Operating characteristics of a gate: shares of the runs, and samples until it stops."""

    passed: float
    failed: float
    undecided: float
    mean_samples: float
    median_samples: float


def plan(
    at_least: float,
    truth: float,
    *,
    population: int,
    max_samples: int | None = None,
    confidence: float = 0.95,
    runs: int = 10_000,
    seed: int = 0,
    at: Sequence[int] | None = None,
) -> Plan:
    """How a sequential gate fares where exactly `truth` of the population survives.

    Args:
        at_least: the robust accuracy asked for, within (0, 1).
        truth: the robust accuracy that the model has, in [0, 1].
        population: samples in the data.
        max_samples: samples the gate may use; all by default.
        confidence: of the gate.
        runs: random orders to try.
        seed: of these orders.
        at: sample counts to look at, ascending; those of the gate by default.

    Raises:
        InputError: an argument out of range.
    """
    test = SequentialTest(at_least, population, confidence)
    _check(truth, population, max_samples, runs)
    draw = np.random.default_rng(checked_seed(seed) % 2**64)  # it takes none below 0
    survivors = np.full(runs, round(truth * population))
    alive = np.arange(runs)
    seen = np.zeros(runs, dtype=np.int64)
    outcome, used = np.zeros(runs, dtype=np.int64), np.zeros(runs, dtype=np.int64)
    before = 0
    for n in at or looks(max_samples or population):
        left = survivors[alive] - seen[alive]
        seen[alive] += draw.hypergeometric(left, population - before - left, n - before)
        fails, passes = test.boundary(n)
        outcome[alive[seen[alive] <= fails]] = -1
        outcome[alive[seen[alive] >= passes]] = 1
        used[alive] = n
        alive, before = alive[outcome[alive] == 0], n
        if not len(alive):
            break
    return Plan(
        passed=float((outcome == 1).mean()),
        failed=float((outcome == -1).mean()),
        undecided=float((outcome == 0).mean()),
        mean_samples=float(used.mean()),
        median_samples=float(np.median(used)),
    )


def _check(truth: float, population: int, max_samples: int | None, runs: int) -> None:
    if not 0 <= truth <= 1:
        raise InputError(f"truth: expected a share in [0, 1] such as 0.5, got {truth!r}")
    if max_samples is not None and not 1 <= max_samples <= population:
        raise InputError(f"max_samples: expected 1 to the population ({population}), got {max_samples!r}")
    if runs < 1:
        raise InputError(f"runs: expected at least 1, got {runs!r}")
