"""DeepFool: to the nearest linearised boundary, until it is crossed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.aims import nearest_boundary
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import per_row
from robust.errors import InputError
from robust.oracle import Access, Jacobian, Oracle


@ATTACKS.register("deepfool")
@dataclass(frozen=True)
class DeepFool(Attack):
    """Steps onto the nearest linearised boundary (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599).

    A sample stops at the first adversarial point, as in the paper: quick, and not the nearest there is.

    Args:
        steps: most linearisations, >= 1; each costs a forward and a backward per candidate class.
        candidates: leading wrong classes whose boundaries are looked at, >= 1.
        overshoot: share by which the whole perturbation is lengthened, >= 0.
    """

    name: ClassVar[str] = "deepfool"
    norms: ClassVar[tuple[str, ...]] = ("l2", "linf")
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Moosavi-Dezfooli et al. 2016"
    minimum_norm: ClassVar[bool] = True

    steps: int = 50
    candidates: int = 9
    overshoot: float = 0.02

    def __post_init__(self) -> None:
        if min(self.steps, self.candidates) < 1 or self.overshoot < 0:
            raise InputError(
                "deepfool: expected steps >= 1, candidates >= 1 and overshoot >= 0, got "
                f"{self.steps}, {self.candidates} and {self.overshoot}"
            )

    def run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        s.x_adv, s.delta = oracle.x, torch.zeros_like(oracle.x)
        for _ in oracle.steps(self.steps):
            near = oracle.jacobian(s.x_adv, self.candidates)
            crossed = near.gaps[:, 0] > 0
            step = to_nearest_boundary(near, oracle.threat.norm)
            s.delta = torch.where(per_row(crossed, step), s.delta, s.delta + step)
            s.x_adv = oracle.clip(oracle.x + (1 + self.overshoot) * s.delta)
            oracle.rest(crossed)
        oracle.visit(s.x_adv)
        return s.x_adv


def to_nearest_boundary(near: Jacobian, norm: str) -> Tensor:
    """The least step (l2 or linf) onto the nearest of the linearised boundaries: -> (N, ...)."""
    slope, gap = nearest_boundary(near, norm)
    gap = gap.abs() + 1e-4
    if norm == "linf":
        return slope.sign() * per_row(gap / slope.flatten(1).abs().sum(1).clamp_min(1e-12), slope)
    return slope * per_row(gap / slope.flatten(1).square().sum(1).clamp_min(1e-12), slope)
