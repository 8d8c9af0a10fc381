"""FGSM, the fast gradient (sign) method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import steepest
from robust.losses import LOSSES
from robust.oracle import Access, Oracle


@ATTACKS.register("fgsm")
@dataclass(frozen=True)
class FGSM(Attack):
    """One step of length eps along the steepest direction (Goodfellow et al. 2015, arXiv 1412.6572).

    Args:
        loss: "ce", "margin", "dlr", "mifpe" or "probability".
    """

    name: ClassVar[str] = "fgsm"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Goodfellow et al. 2015"

    loss: str = "ce"

    def run(self, oracle: Oracle) -> Tensor:
        threat = oracle.threat
        gradient = oracle.gradient(oracle.x, LOSSES[self.loss]).gradient
        x_adv = oracle.project(oracle.x + threat.radius * steepest(gradient, threat.norm))
        oracle.visit(x_adv)
        return x_adv
