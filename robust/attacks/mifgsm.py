"""MI-FGSM, FGSM steps with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.aims import aimed, runs
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import brought_in, moved, per_row
from robust.errors import InputError
from robust.oracle import Access, Oracle, State
from robust.projections import norm_of


@ATTACKS.register("mifgsm")
@dataclass(frozen=True)
class MIFGSM(Attack):
    """Momentum iterative FGSM (Dong et al. 2018, arXiv 1710.06081): the gradients' decayed sum gives the step.

    Args:
        steps: gradient steps a run, >= 1.
        step_size: in units of eps, > 0. With the paper's 1 / steps all steps together only just reach the end of the
            ball; long ones break more at any number of steps.
        decay: of the sum of gradients, >= 0.
        normalize: every gradient counts alike in the sum, brought to unit l1 norm as in the paper; else by its size,
            so that those near the boundary, where cross-entropy is steep, count most.
        loss: "ce", "margin", "dlr", "mifpe", "logit" or "probability".
        targets: 0 against any class; else one run for each of so many nearest classes.
    """

    name: ClassVar[str] = "mifgsm"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Dong et al. 2018"

    steps: int = 10
    step_size: float = 0.5
    decay: float = 1.0
    normalize: bool = True
    loss: str = "ce"
    targets: int = 0

    def __post_init__(self) -> None:
        self.check_numbers()
        if self.steps < 1 or self.step_size <= 0 or min(self.decay, self.targets) < 0:
            raise InputError(
                "mifgsm: expected steps >= 1, step_size > 0, decay >= 0 and targets >= 0, got "
                f"{self.steps}, {self.step_size}, {self.decay} and {self.targets}"
            )

    def run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        for _ in runs(oracle, s, self.targets):
            self._ascend(oracle, s)
        return s.x_adv

    def _ascend(self, oracle: Oracle, s: State) -> None:
        threat, loss = oracle.threat, aimed(self.loss)
        length = threat.radius * self.step_size
        s.x_adv, s.sum = oracle.x, torch.zeros_like(oracle.x)
        for _ in oracle.steps(self.steps):
            gradient = oracle.gradient(s.x_adv, loss, s.aim).gradient
            if self.decay != 1:
                s.sum.mul_(self.decay)
            if self.normalize:
                size = norm_of(gradient.flatten(1), "l1").clamp_min_(1e-30)
                s.sum.addcmul_(gradient, per_row(size.reciprocal_(), gradient))
            else:
                s.sum.add_(gradient)
            s.x_adv = brought_in(oracle, moved(s.x_adv, s.sum, threat.norm, length))
        oracle.visit(s.x_adv)
