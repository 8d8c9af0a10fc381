"""VFGA, the voting folded Gaussian attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.aims import aimed, aimed_margin, runs
from robust.attacks.base import ATTACKS, Attack
from robust.errors import InputError
from robust.oracle import Access, Oracle, State


@ATTACKS.register("vfga")
@dataclass(frozen=True)
class VFGA(Attack):
    """Minimum l0, greedily: a value a step, the best of a few folded Gaussian draws (Hajri et al. 2020).

    arXiv 2011.12423. The value is the one with the most to gain: gradient times room to the box in its
    direction. A sample stops at its first adversarial point.

    Args:
        steps: most values to change, >= 1; each costs a forward and backward, and a forward per draw.
        draws: changes of the value that are tried, >= 1.
        loss: "ce" as in the paper, or another.
        targets: 0 against any class; else one run for each of so many nearest classes.
    """

    name: ClassVar[str] = "vfga"
    norms: ClassVar[tuple[str, ...]] = ("l0",)
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Hajri et al. 2020"
    minimum_norm: ClassVar[bool] = True

    steps: int = 50
    draws: int = 10
    loss: str = "ce"
    targets: int = 0

    def __post_init__(self) -> None:
        self.check_numbers()
        if min(self.steps, self.draws) < 1 or self.targets < 0:
            raise InputError(
                "vfga: expected steps >= 1, draws >= 1 and targets >= 0, got "
                f"{self.steps}, {self.draws} and {self.targets}"
            )

    def run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        for rank in runs(oracle, s, self.targets):
            s.x_adv = oracle.x
            for step in oracle.steps(self.steps):
                self._change_one(oracle, s, rank, step)
        return s.x_adv

    def _change_one(self, oracle: Oracle, s: State, rank: int, step: int) -> None:
        low, high = oracle.threat.bounds
        gradient = oracle.gradient(s.x_adv, aimed(self.loss), s.aim).gradient.flatten(1)
        here = s.x_adv.flatten(1)
        gain = torch.maximum(gradient * (high - here), gradient * (low - here))
        value = gain.max(1, keepdim=True).indices
        now, rises = here.gather(1, value), gradient.gather(1, value) > 0
        sigma = torch.where(rises, high - now, low - now)
        draws = oracle.random("draws", rank, step).normal((self.draws,)).abs()
        tried = (now + draws * sigma).clamp_(low, high)
        candidate, margins = here.clone(), []
        for change in tried.split(1, 1):
            point = candidate.scatter_(1, value, change).view_as(s.x_adv)
            if step < int(oracle.threat.radius):  # so many values have changed at most
                oracle.vouch(point)
            margins.append(aimed_margin(oracle.logits(point), oracle.y, s.aim))
        best, draw = torch.stack(margins, 1).max(1, keepdim=True)
        s.x_adv = candidate.scatter_(1, value, tried.gather(1, draw)).view_as(s.x_adv)
        oracle.rest(best.squeeze(1) > 0)
