"""MD, margin decomposition."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robust.attacks.aims import AimedLoss, aimed_margin, runs
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import ahead, brought_in, random_start
from robust.errors import InputError
from robust.losses import best_other
from robust.oracle import Access, Oracle, State


@ATTACKS.register("md")
@dataclass(frozen=True)
class MD(Attack):
    """One term of the margin first, then the margin (Ma et al. 2023, arXiv 2006.13726).

    Where one term's gradient drowns the other's, the margin alone stalls. Even runs climb minus the
    label's logit for the first half of their steps, odd ones the best other logit; then both climb the
    margin. The step falls from 2 eps to 0 by a cosine, and begins anew at the half.

    Args:
        steps: gradient steps a run, >= 2.
        runs: with independent random starts, the two terms in turn, >= 1.
        targets: 0 against any class; else so many runs for each of so many nearest classes (the paper's
            multi-targeted variant).
    """

    name: ClassVar[str] = "md"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Ma et al. 2023"

    steps: int = 50
    runs: int = 2
    targets: int = 0

    def __post_init__(self) -> None:
        self.check_numbers()
        if self.steps < 2 or self.runs < 1 or self.targets < 0:
            raise InputError(
                f"{self.name}: expected steps >= 2, runs >= 1 and targets >= 0, got "
                f"{self.steps}, {self.runs} and {self.targets}"
            )

    def run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        for rank in runs(oracle, s, self.targets):
            for run in oracle.steps(self.runs):
                self._ascend(oracle, s, rank * self.runs + run, self._label if run % 2 == 0 else self._other)
        return s.x_adv

    def _ascend(self, oracle: Oracle, s: State, run: int, first: AimedLoss) -> None:
        threat, half = oracle.threat, self.steps // 2
        s.x_adv = random_start(oracle.x, threat, oracle.random("start", run))
        for step in oracle.steps(self.steps):
            gradient = oracle.gradient(s.x_adv, first if step < half else self._margin, s.aim).gradient
            done = step / half if step < half else (step - half) / (self.steps - half)
            size = threat.radius * (1 + math.cos(math.pi * done))
            s.x_adv = brought_in(oracle, ahead(s.x_adv, gradient, threat, size))
        oracle.visit(s.x_adv)

    def _scores(self, logits: Tensor) -> Tensor:
        return logits

    def _label(self, logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
        return -self._scores(logits).gather(1, y[:, None]).squeeze(1)

    def _other(self, logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
        scores = self._scores(logits)
        return scores.gather(1, aim).squeeze(1) if self.targets else best_other(scores, y)

    def _margin(self, logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
        return aimed_margin(self._scores(logits), y, aim)
