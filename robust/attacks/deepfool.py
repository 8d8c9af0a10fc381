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
from robust.losses import margin
from robust.oracle import Access, Jacobian, Oracle
from robust.projections import norm_of
from robust.threat import Threat


@ATTACKS.register("deepfool")
@dataclass(frozen=True)
class DeepFool(Attack):
    """Steps onto the nearest linearised boundary (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599).

    A sample stops at the first adversarial point, as in the paper: quick, and not the nearest there is.

    Args:
        steps: most linearisations, >= 1; each costs two forwards and a backward per candidate class.
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
        self.check_numbers()
        if min(self.steps, self.candidates) < 1 or self.overshoot < 0:
            raise InputError(
                "deepfool: expected steps >= 1, candidates >= 1 and overshoot >= 0, got "
                f"{self.steps}, {self.candidates} and {self.overshoot}"
            )

    def run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        s.x_adv, s.delta = oracle.x, torch.zeros_like(oracle.x)
        oracle.rest(oracle.clean_margin > 0)
        for _ in oracle.steps(self.steps):
            near = oracle.jacobian(s.x_adv, self.candidates)
            step = to_nearest_boundary(near, oracle.threat)
            s.delta = step.add_(s.delta).add_(oracle.x).clamp_(*oracle.threat.bounds).sub_(oracle.x)
            s.x_adv = oracle.x.add(s.delta, alpha=1 + self.overshoot).clamp_(*oracle.threat.bounds)
            # A forward tells who is across: no backwards are spent where the search ends.
            oracle.rest(margin(oracle.logits(s.x_adv), oracle.y) > 0)
        return s.x_adv


def to_nearest_boundary(near: Jacobian, threat: Threat) -> Tensor:
    """The least step (l2 or linf) onto the nearest of the linearised boundaries: -> (N, ...)."""
    norm, (low, high) = threat.norm, threat.bounds
    slope, gap = nearest_boundary(near, norm)
    steepness = norm_of(slope.flatten(1), "l1" if norm == "linf" else "l2").clamp_min(1e-12)
    length = gap.abs() / steepness + 1e-4 * (high - low)  # beyond it by as much as the authors' code goes
    if norm == "linf":
        return slope.sign_().mul_(per_row(length, slope))
    return slope.mul_(per_row(length / steepness, slope))
