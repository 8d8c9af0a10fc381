"""DDN, decoupled direction and norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.aims import aimed, reached, runs
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import moved, per_row
from robust.errors import InputError
from robust.oracle import Access, Oracle, State
from robust.threat import norm_of


@ATTACKS.register("ddn")
@dataclass(frozen=True)
class DDN(Attack):
    """Decoupled direction and norm (Rony et al. 2019, arXiv 1811.09600): minimum l2 norm.

    The direction follows the gradient, the norm a rule of its own: a little shorter where the point is
    adversarial, a little longer where it is not. Steps fall from the box's width to a hundredth by a cosine.

    Args:
        steps: gradient steps, >= 1.
        gamma: share by which the norm changes a step, in (0, 1).
        init_norm: the norm to begin with, > 0; None for the threat's radius.
        loss: "ce" as in the paper, or another.
        targets: 0 against any class; else one run for each of so many nearest classes.
    """

    name: ClassVar[str] = "ddn"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Rony et al. 2019"
    minimum_norm: ClassVar[bool] = True

    steps: int = 100
    gamma: float = 0.05
    init_norm: float | None = None
    loss: str = "ce"
    targets: int = 0

    def __post_init__(self) -> None:
        self.check_numbers()
        if self.steps < 1 or not 0 < self.gamma < 1 or self.targets < 0:
            raise InputError(
                "ddn: expected steps >= 1, 0 < gamma < 1 and targets >= 0, got "
                f"{self.steps}, {self.gamma} and {self.targets}"
            )
        if self.init_norm is not None and self.init_norm <= 0:
            raise InputError(f"ddn: init_norm: expected a number above 0, got {self.init_norm}")

    def run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        for _ in runs(oracle, s, self.targets):
            self._search(oracle, s)
        return s.x_adv

    def _search(self, oracle: Oracle, s: State) -> None:
        loss, start = aimed(self.loss), self.init_norm or oracle.threat.radius
        low, high = oracle.threat.bounds
        s.x_adv = oracle.x
        s.norm = torch.full_like(oracle.y, start, dtype=oracle.x.dtype)
        for step in oracle.steps(self.steps):
            gradient, _, logits = oracle.gradient(s.x_adv, loss, s.aim)
            wrong = reached(logits.argmax(1), oracle.y, s.aim.squeeze(1))
            s.norm = s.norm * torch.where(wrong, 1 - self.gamma, 1 + self.gamma)
            rate = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
            ahead = moved(oracle.change(s.x_adv), gradient, "l2", rate * (high - low))
            length = norm_of(ahead.flatten(1), "l2").clamp_min_(1e-12)
            there = torch.addcmul(oracle.x, ahead, per_row(s.norm / length, ahead), out=ahead)
            s.x_adv = there.clamp_(low, high)
        oracle.visit(s.x_adv)
