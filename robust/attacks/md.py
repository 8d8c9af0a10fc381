"""MD, margin decomposition."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robust.attacks.aims import aimed_margin
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import random_start, steepest
from robust.errors import InputError
from robust.losses import best_other
from robust.oracle import Access, Oracle


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
    """

    name: ClassVar[str] = "md"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Ma et al. 2023"

    steps: int = 50
    runs: int = 2

    def __post_init__(self) -> None:
        if self.steps < 2 or self.runs < 1:
            raise InputError(
                f"{self.name}: expected steps >= 2 and runs >= 1, got {self.steps} and {self.runs}"
            )

    def run(self, oracle: Oracle) -> Tensor:
        threat, half = oracle.threat, self.steps // 2
        s = oracle.state()
        for run in oracle.steps(self.runs):
            s.x_adv = random_start(oracle.x, threat, oracle.random("start", run))
            for step in oracle.steps(self.steps):
                loss = self._margin if step >= half else self._label if run % 2 == 0 else self._other
                gradient = oracle.gradient(s.x_adv, loss).gradient
                done = step / half if step < half else (step - half) / (self.steps - half)
                size = threat.radius * (1 + math.cos(math.pi * done))
                s.x_adv = oracle.project(s.x_adv + size * steepest(gradient, threat.norm))
            oracle.visit(s.x_adv)
        return s.x_adv

    def _scores(self, logits: Tensor) -> Tensor:
        return logits

    def _label(self, logits: Tensor, y: Tensor) -> Tensor:
        return -self._scores(logits).gather(1, y[:, None]).squeeze(1)

    def _other(self, logits: Tensor, y: Tensor) -> Tensor:
        return best_other(self._scores(logits), y)

    def _margin(self, logits: Tensor, y: Tensor) -> Tensor:
        return aimed_margin(self._scores(logits), y, y[:, None])
