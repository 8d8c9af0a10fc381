"""The model given, looked at anew; where it draws at random, counts are compared in place of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robust.diagnose import PREFLIGHT_SAMPLES, Preflight, preflight
from robust.diagnose.checks import RANDOMIZED
from robust.errors import RobustError
from robust.leaderboard.outcome import Outcome
from robust.leaderboard.record import Record
from robust.sources import Samples
from robust.target import Target
from robust.threat import Threat

Answers = npt.NDArray[Any]  # (n,): what came of the same n samples, in order
_LEVEL: Final = 1e-3  # of each test


@dataclass
class Draws:
    """Whether a model draws at random: by the record's words, and measured.

    Args:
        target: the model given.
        x, y: a few samples that it is asked about, (N, ...) in bounds and (N,).
    """

    record: Record
    target: Target
    x: Tensor
    y: Tensor

    @staticmethod
    def of(record: Record, samples: Samples, target: Target) -> Draws:
        """Asked about the first samples."""
        return Draws(record, target, *_few(samples, target))

    @property
    def said(self) -> bool:
        """Whether the record says so."""
        return any(finding.check == RANDOMIZED.name for finding in self.record.findings)

    @property
    def measured(self) -> bool:
        """Whether the model given answers differently when it is asked again."""
        try:
            return _look(self.target, self.x, self.y).randomized
        except RobustError:
            return False

    def excuse(self, check: str, message: str, counts: Callable[[], Outcome]) -> Outcome:
        """What a mismatch comes to: a failure, unless this model draws and the record says so.

        Args:
            message: what does not match.
            counts: compares them, where rows mean nothing.
        """
        if not self.said:
            return Outcome(check, False, message)
        if not self.measured:
            reason = "the record says that the model draws at random, and this model does not"
            return Outcome(check, False, f"{message}; {reason}")
        return counts()


def preflight_on(samples: Samples, target: Target, threat: Threat) -> Preflight:
    """What an evaluation of the samples learns of the model before it attacks.

    Raises:
        ModelError: the model is not one for these samples.
    """
    return _look(target, *_few(samples, target), threat)


def _few(samples: Samples, target: Target) -> tuple[Tensor, Tensor]:
    rows = torch.arange(min(PREFLIGHT_SAMPLES, len(samples)))
    return samples.rows(rows).clamp(*target.bounds), samples.y[rows]


def _look(target: Target, x: Tensor, y: Tensor, threat: Threat | None = None) -> Preflight:
    x, y = (part[:PREFLIGHT_SAMPLES].to(target.device) for part in (x, y))
    with target:
        return preflight(target, x, y, threat)


def weigh(
    check: str,
    recorded: Answers,
    once: Answers,
    again: Answers,
    holds: Callable[[Answers], Answers],
    what: str,
) -> Outcome:
    """Is what was recorded such as two fresh runs of the model give? Each is an independent draw if it is.

    Fisher's exact tests, at one in a thousand each: does the record agree with a fresh run less often than two of
    them with each other, and is the recorded rate another? Samples differ in how sure their ends are, which makes
    both tests err to the record's side.

    Args:
        recorded, once, again: answers for the same n samples, of the record and of two fresh runs.
        holds: which of the answers count, (n,) -> (n,).
        what: "are robust", said of them.
    """
    n = len(recorded)
    with_record, among = int((recorded == once).sum()), int((once == again).sum())
    then, now, later = (int(holds(answers).sum()) for answers in (recorded, once, again))
    fresh = now + later
    less = _fisher(with_record, among, n, n, alternative="less")
    other = _fisher(then, fresh, n, 2 * n)
    seen = (
        f"of {n} samples {then} {what} in the record, {now} and {later} in two fresh runs; the record agrees with the "
        f"first on {with_record}, the second on {among}"
    )
    if min(less, other) < _LEVEL:
        return Outcome(check, False, f"more than random draws explain (p = {min(less, other):.1g}): {seen}")
    return Outcome.unverified(check, f"the model draws at random, and its draws explain this: {seen}")


def _fisher(
    a: int, b: int, of_a: int, of_b: int, alternative: Literal["two-sided", "less"] = "two-sided"
) -> float:
    """p-value that a in of_a is as likely as b in of_b."""
    from scipy.stats import fisher_exact

    table = np.array([[a, of_a - a], [b, of_b - b]])
    return float(fisher_exact(table, alternative=alternative).pvalue)


def survived(statuses: Answers) -> Answers:
    """Which samples stand."""
    return np.asarray(statuses == "survived")
