"""PGD, projected gradient descent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor

from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import ahead, brought_in, cosine, random_start
from robust.errors import InputError
from robust.losses import LOSSES
from robust.oracle import Access, Oracle

_TELLING: Final = 7  # steps: wider ones turn gradients on any surface


@ATTACKS.register("pgd")
@dataclass(frozen=True)
class PGD(Attack):
    """Projected steepest ascent from a random start (Madry et al. 2018, arXiv 1706.06083).

    A sample counts as broken if any iterate of any restart is adversarial, not only the last.

    Args:
        steps: gradient steps a restart, >= 1.
        step_size: in units of eps, > 0; None for 2.5 / steps (Madry's rule), or 1 with the cosine schedule.
        schedule: "constant", or "cosine": from step_size down to a tenth of it (A3, Liu et al. 2022).
        restarts: independent random starts, >= 1.
        random_start: start at a random point of the threat set, else at x.
        loss: "ce", "margin", "dlr", "mifpe", "logit" or "probability".
    """

    name: ClassVar[str] = "pgd"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Madry et al. 2018"

    steps: int = 40
    step_size: float | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    restarts: int = 1
    random_start: bool = True
    loss: str = "ce"

    def __post_init__(self) -> None:
        self.check_numbers("step_size")
        if self.steps < 1 or self.restarts < 1:
            raise InputError(
                f"pgd: steps and restarts must be at least 1, got {self.steps} and {self.restarts}"
            )

    def run(self, oracle: Oracle) -> Tensor:
        threat, loss = oracle.threat, LOSSES[self.loss]
        s, late = oracle.state(), self._late()
        for restart in oracle.steps(self.restarts):
            streams = oracle.random("start", restart)
            s.x_adv = random_start(oracle.x, threat, streams) if self.random_start else oracle.start
            s.agreement = torch.zeros_like(oracle.y, dtype=torch.float32)
            for step in oracle.steps(self.steps):
                gradient = oracle.gradient(s.x_adv, loss).gradient
                if step in late:
                    s.agreement = s.agreement + cosine(gradient, s.before) / len(late)
                if late:
                    s.before = gradient
                size = self._size(step) * threat.radius
                s.x_adv = brought_in(oracle, ahead(s.x_adv, gradient, threat, size))
            if late:
                oracle.note_agreement(s.agreement)
            oracle.visit(s.x_adv)
        return s.x_adv

    def _late(self) -> range:
        """Steps of the later half of an ascent from x, whose gradients are held against those before."""
        if self.random_start or self.steps < _TELLING:
            return range(0)
        return range(self.steps // 2 + 1, self.steps)

    def _size(self, step: int) -> float:
        """The step's size in units of eps."""
        if self.schedule == "constant":
            return 2.5 / self.steps if self.step_size is None else self.step_size
        share = 0.1 + 0.9 * (1 + math.cos(math.pi * step / (self.steps + 1))) / 2
        return share * (1.0 if self.step_size is None else self.step_size)
