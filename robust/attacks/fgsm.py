"""FGSM, the fast gradient (sign) method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import random_start, uphill
from robust.losses import LOSSES
from robust.oracle import Access, Oracle


@ATTACKS.register("fgsm")
@dataclass(frozen=True)
class FGSM(Attack):
    """One step of length eps along the steepest direction (Goodfellow et al. 2015, arXiv 1412.6572).

    Args:
        loss: "ce", "margin", "dlr", "mifpe", "logit" or "probability".
        start: "x" as in the paper; "uniform", a random point of the threat set (Wong et al. 2020, arXiv
            2001.03994); "wide", one of twice its radius (N-FGSM, de Jorge et al. 2022, arXiv 2202.01181).
        step_size: in units of eps, > 0. The last point is projected onto the threat set.
    """

    name: ClassVar[str] = "fgsm"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Goodfellow et al. 2015"

    loss: str = "ce"
    start: Literal["x", "uniform", "wide"] = "x"
    step_size: float = 1.0

    def __post_init__(self) -> None:
        self.check_numbers("step_size")

    @property
    def stays_inside(self) -> bool:
        """Whether every visited point lies in the threat set."""
        return self.start != "wide"

    def run(self, oracle: Oracle) -> Tensor:
        threat = oracle.threat
        start = oracle.x
        if self.start != "x":
            around = threat if self.start == "uniform" else replace(threat, eps=repr(2 * threat.radius))
            start = random_start(oracle.x, around, oracle.random("start"))
        gradient = oracle.gradient(start, LOSSES[self.loss]).gradient
        x_adv = oracle.project(start + self.step_size * threat.radius * uphill(gradient, start, threat))
        oracle.visit(x_adv)
        return x_adv
