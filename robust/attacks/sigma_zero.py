"""sigma-zero: minimum l0 by a smooth stand-in for the count of changed values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.aims import aimed_hinge, runs
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import Adam, per_row
from robust.errors import InputError
from robust.oracle import Access, Oracle, State


@ATTACKS.register("sigma-zero")
@dataclass(frozen=True)
class SigmaZero(Attack):
    """Minimum l0: descends max(-margin, 0) + mean of d^2 / (d^2 + sigma) (Cina et al. 2025, arXiv 2402.01879).

    Adam on the gradient divided by its largest value; after each step, values under a threshold are set
    to zero. The threshold rises where the point is adversarial, and falls where it is not.

    Args:
        steps: gradient steps a run, >= 1.
        step_size: first step in units of the box, falling by a cosine to a tenth, > 0; longer ones than the paper's,
            with a higher threshold, may find nearer points in few steps.
        sigma: how smooth the stand-in is, in squared units of the box, > 0.
        threshold: the first, in units of the box, in [0, 1).
        threshold_rate: its change a step, times the step size, >= 0.
        targets: 0 against any class; else one run for each of so many nearest classes.
    """

    name: ClassVar[str] = "sigma-zero"
    norms: ClassVar[tuple[str, ...]] = ("l0",)
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Cina et al. 2025"
    minimum_norm: ClassVar[bool] = True

    steps: int = 100
    step_size: float = 1.0
    sigma: float = 1e-3
    threshold: float = 0.3
    threshold_rate: float = 0.01
    targets: int = 0

    def __post_init__(self) -> None:
        self.check_numbers()
        if self.steps < 1 or min(self.step_size, self.sigma) <= 0 or self.targets < 0:
            raise InputError(
                "sigma-zero: expected steps >= 1, step_size > 0, sigma > 0 and targets >= 0, got "
                f"{self.steps}, {self.step_size}, {self.sigma} and {self.targets}"
            )
        if not 0 <= self.threshold < 1 or self.threshold_rate < 0:
            raise InputError(
                "sigma-zero: expected 0 <= threshold < 1 and threshold_rate >= 0, got "
                f"{self.threshold} and {self.threshold_rate}"
            )

    def run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        for _ in runs(oracle, s, self.targets):
            self._descend(oracle, s)
        return oracle.x + s.delta

    def _descend(self, oracle: Oracle, s: State) -> None:
        low, high = oracle.threat.bounds
        width = high - low
        s.delta = torch.zeros_like(oracle.x)  # all in units of the box
        s.threshold = torch.full_like(oracle.y, self.threshold, dtype=oracle.x.dtype)
        adam = Adam(s, oracle.x)
        for step in oracle.steps(self.steps):
            gradient, value, _ = oracle.gradient(oracle.x + width * s.delta, aimed_hinge, s.aim)
            square = s.delta.square() + self.sigma
            slope = 2 * self.sigma * s.delta / square.square() / s.delta.shape[1:].numel() - width * gradient
            slope = slope / per_row(slope.flatten(1).abs().amax(1).clamp_min(1e-12), slope)
            rate = self.step_size * (0.55 + 0.45 * math.cos(math.pi * step / self.steps))
            moved = adam.descended(s.delta, slope, step, rate)
            delta = oracle.clip(torch.add(oracle.x, moved, alpha=width)).sub_(oracle.x).div_(width)
            s.threshold = s.threshold + self.threshold_rate * rate * torch.where(value >= 0, 1.0, -1.0)
            s.threshold = s.threshold.clamp(0, 1)
            size = delta.abs()
            s.delta = delta.mul_(
                torch.ge(size, per_row(s.threshold, size), out=size)
            )  # a mask takes far longer
        oracle.visit(oracle.x + width * s.delta)
