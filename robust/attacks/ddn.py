"""DDN, decoupled direction and norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from robust.attacks.aims import aimed, reached, runs
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import choose, moved, per_row
from robust.attacks.hope import begin_with_hope, end_the_hopeless
from robust.errors import InputError
from robust.oracle import Access, Oracle, State
from robust.projections import norm_of

_SETTLED: Final = 20  # steps: at large ones a surface may yield late


@ATTACKS.register("ddn")
@dataclass(frozen=True)
class DDN(Attack):
    """Decoupled direction and norm (Rony et al. 2019, arXiv 1811.09600): minimum l2 norm.

    The direction follows the gradient, the norm a rule of its own: a little shorter where the point is
    adversarial, a little longer where it is not. Steps fall from the box's width to a hundredth by a cosine.

    Args:
        steps: gradient steps, >= 1.
        gamma: share by which the norm changes a step, in (0, 1).
        growth: share by which it grows where the point is not adversarial, >= 0; None for gamma, as in the paper.
        init_norm: the norm to begin with, > 0; None for the threat's radius.
        far: begin with half of the box's diagonal, from where a search finds its way in to samples whose surroundings are flat.
        loss: "ce" as in the paper, or another.
        targets: 0 against any class; else one run for each of so many nearest classes.
        hope: from the twentieth step on, a search ends where what it is short of eps is over so many times what its last five
            steps gained, > 0. None: to the last step.
    """

    name: ClassVar[str] = "ddn"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Rony et al. 2019"
    minimum_norm: ClassVar[bool] = True

    steps: int = 100
    gamma: float = 0.05
    growth: float | None = None
    init_norm: float | None = None
    loss: str = "ce"
    targets: int = 0
    far: bool = False
    hope: float | None = None

    def __post_init__(self) -> None:
        self.check_numbers()
        if self.steps < 1 or not 0 < self.gamma < 1 or self.targets < 0:
            raise InputError(
                "ddn: expected steps >= 1, 0 < gamma < 1 and targets >= 0, got "
                f"{self.steps}, {self.gamma} and {self.targets}"
            )
        if self.growth is not None and self.growth < 0:
            raise InputError(f"ddn: growth: expected a share >= 0, got {self.growth}")
        if self.init_norm is not None and self.far:
            raise InputError(
                f"ddn: init_norm: expected none with far, which has its own, got {self.init_norm}"
            )
        if self.init_norm is not None and self.init_norm <= 0:
            raise InputError(f"ddn: init_norm: expected a number above 0, got {self.init_norm}")
        if self.hope is not None and self.hope <= 0:
            raise InputError(f"ddn: hope: expected a factor > 0, got {self.hope}")

    def run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        for _ in runs(oracle, s, self.targets):
            self._search(oracle, s)
        return s.x_adv

    def _init_norm(self, oracle: Oracle) -> float:
        if not self.far:
            return self.init_norm or oracle.threat.radius
        low, high = oracle.threat.bounds
        return (high - low) * math.sqrt(oracle.x[0].numel()) / 2

    def _search(self, oracle: Oracle, s: State) -> None:
        loss, start = aimed(self.loss), self._init_norm(oracle)
        longer = self.gamma if self.growth is None else self.growth
        low, high = oracle.threat.bounds
        s.x_adv = oracle.x
        s.norm = torch.full_like(oracle.y, start, dtype=oracle.x.dtype)
        begin_with_hope(oracle, s)
        for step in oracle.steps(self.steps):
            gradient, _, logits = oracle.gradient(s.x_adv, loss, s.aim)
            wrong = reached(logits.argmax(1), oracle.y, s.aim.squeeze(1))
            s.least = torch.where(wrong, s.least.minimum(oracle.distance(s.x_adv)), s.least)
            s.norm = s.norm * torch.where(wrong, 1 - self.gamma, 1 + longer)
            rate = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
            direction = _or_any(oracle, gradient, step)
            ahead = moved(oracle.change(s.x_adv), direction, "l2", rate * (high - low))
            length = norm_of(ahead.flatten(1), "l2").clamp_min_(1e-12)
            there = torch.addcmul(oracle.x, ahead, per_row(s.norm / length, ahead), out=ahead)
            s.x_adv = there.clamp_(low, high)
            end_the_hopeless(oracle, s, self.hope, step + 1, first=_SETTLED)
        oracle.visit(s.x_adv)


def _or_any(oracle: Oracle, gradient: Tensor, step: int) -> Tensor:
    """The gradient, and a random direction where it is zero, as saturated logits leave it: else a row would never move."""
    flat = gradient.flatten(1).abs().amax(1) == 0
    if not flat.any():
        return gradient
    return choose(flat, oracle.random("direction", step).normal(gradient.shape[1:]), gradient)
