"""EAD, the elastic-net attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softshrink

from robust.attacks.aims import aimed_hinge, runs
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import per_row
from robust.errors import InputError
from robust.oracle import Access, Oracle, State


@ATTACKS.register("ead")
@dataclass(frozen=True)
class EAD(Attack):
    """Minimise c * max(-margin, 0) + ||d||^2 + beta ||d||_1 by FISTA, searching c (Chen et al. 2018).

    arXiv 1709.04114, with the l1 decision rule: of all adversarial points the one least in l1 counts.
    Each step draws the changes back by beta and those under it to zero: that makes the whole sparse. A
    constant begins where the one before it ended, not at x: so few steps go further.

    Args:
        steps: FISTA steps per constant, >= 1.
        binary_search_steps: constants tried, >= 1.
        step_size: of the first step, in units of the box, falling to 0 by a square root, > 0.
        initial_const: first c, for distances in units of the box; times ten after a failure, then bisected, > 0.
        beta: weight of the l1 norm, by how much a step shrinks every change, in units of the box, >= 0.
        targets: one search for each of so many nearest classes; 0 for one against whichever leads.
    """

    name: ClassVar[str] = "ead"
    norms: ClassVar[tuple[str, ...]] = ("l1",)
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Chen et al. 2018"
    minimum_norm: ClassVar[bool] = True

    steps: int = 100
    binary_search_steps: int = 9
    step_size: float = 0.02
    initial_const: float = 1.0
    beta: float = 0.03
    targets: int = 1

    def __post_init__(self) -> None:
        self.check_numbers()
        if min(self.steps, self.binary_search_steps) < 1 or min(self.targets, self.beta) < 0:
            raise InputError(
                "ead: expected steps and binary_search_steps >= 1, targets and beta >= 0, got "
                f"{self.steps}, {self.binary_search_steps}, {self.targets} and {self.beta}"
            )
        if min(self.step_size, self.initial_const) <= 0:
            raise InputError(
                f"ead: expected step_size and initial_const > 0, got {self.step_size} and {self.initial_const}"
            )

    def run(self, oracle: Oracle) -> Tensor:
        s, width = oracle.state(), oracle.threat.bounds[1] - oracle.threat.bounds[0]
        for _ in runs(oracle, s, self.targets):
            s.const = torch.full_like(oracle.y, self.initial_const * width**2, dtype=oracle.x.dtype)
            s.lower, s.upper = torch.zeros_like(s.const), torch.full_like(s.const, torch.inf)
            s.delta = torch.zeros_like(oracle.x)
            for _ in oracle.steps(self.binary_search_steps):
                self._descend(oracle, s)
                s.upper = torch.where(s.success, torch.minimum(s.upper, s.const), s.upper)
                s.lower = torch.where(s.success, s.lower, torch.maximum(s.lower, s.const))
                s.const = torch.where(s.upper.isinf(), s.const * 10, (s.lower + s.upper) / 2)
            oracle.visit(oracle.x + s.delta)
        return oracle.x + s.delta

    def _descend(self, oracle: Oracle, s: State) -> None:
        width = oracle.threat.bounds[1] - oracle.threat.bounds[0]
        s.ahead = oracle.x + s.delta  # the point ahead of the iterate
        s.success = torch.zeros_like(oracle.y, dtype=torch.bool)
        for step in oracle.steps(self.steps):
            gradient, value, _ = oracle.gradient(s.ahead, aimed_hinge, s.aim)
            s.success = s.success | (value >= 0)
            rate = self.step_size * (1 - step / self.steps) ** 0.5
            moved = oracle.change(s.ahead) * (1 - 2 * rate)
            moved.addcmul_(per_row(rate * s.const, gradient), gradient)
            delta = _within(oracle, softshrink(moved, self.beta * width)).sub_(oracle.x)
            s.ahead = _within(oracle, torch.lerp(s.delta, delta, 1 + step / (step + 3)))
            s.delta = delta


def _within(oracle: Oracle, delta: Tensor) -> Tensor:
    """The nearest point of the box to x + delta, in delta's memory."""
    return delta.add_(oracle.x).clamp_(*oracle.threat.bounds)
