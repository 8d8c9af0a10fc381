"""PDPGD, the primal-dual proximal gradient descent attack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from robust.attacks.aims import aimed_hinge, runs
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import per_row
from robust.errors import InputError
from robust.oracle import Access, Oracle, State
from robust.projections import norm_of, project

# The dual norm of a gradient of values about 1 in size, as a power of how many there are.
_UNIT: Final = {"linf": 1.0, "l2": 0.5, "l1": 0.0, "l0": 0.0}


@ATTACKS.register("pdpgd")
@dataclass(frozen=True)
class PDPGD(Attack):
    """Minimum norm by a game of two players (Matyasko & Chau 2021, arXiv 2106.01538).

    The primal player lowers norm + lambda * hinge of the margin: a gradient step on the hinge, scaled by
    the gradients' running size, then the norm's proximal map. The dual player raises log lambda while the
    point is not adversarial and lowers it while it is.

    Args:
        steps: gradient steps a run, >= 1.
        step_size: of the primal player in units of the box, falling by a cosine to a hundredth, > 0.
        dual_rate: change of log lambda a step, falling by a cosine to a tenth, > 0.
        initial_ratio: what the norm weighs against the hinge at first, > 0; None for 0.1, and in l1 and l0 for
            0.3: a sparse change needs a heavy norm, and the dual player takes long to raise it.
        targets: one run for each of so many nearest classes; 0 for one against whichever leads.
    """

    name: ClassVar[str] = "pdpgd"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0")
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Matyasko & Chau 2021"
    minimum_norm: ClassVar[bool] = True

    steps: int = 200
    step_size: float = 0.1
    dual_rate: float = 0.1
    initial_ratio: float | None = None
    targets: int = 1

    def __post_init__(self) -> None:
        self.check_numbers()
        if self.steps < 1 or self.targets < 0:
            raise InputError(
                f"pdpgd: expected steps >= 1 and targets >= 0, got {self.steps} and {self.targets}"
            )
        ratio = 1 if self.initial_ratio is None else self.initial_ratio
        if min(self.step_size, self.dual_rate, ratio) <= 0:
            raise InputError(
                "pdpgd: expected step_size, dual_rate and initial_ratio > 0, got "
                f"{self.step_size}, {self.dual_rate} and {self.initial_ratio}"
            )

    def run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        for _ in runs(oracle, s, self.targets):
            self._play(oracle, s)
        return s.x_adv

    def _play(self, oracle: Oracle, s: State) -> None:
        low, high = oracle.threat.bounds
        ratio = self.initial_ratio or (0.3 if oracle.threat.norm in ("l1", "l0") else 0.1)
        values = oracle.x.shape[1:].numel()
        unit = values ** _UNIT[oracle.threat.norm]
        if oracle.threat.norm == "l0":  # what stands in for it grows as its values do by a power of 2/3
            unit = (high - low) ** (1 / 3)
        s.x_adv, s.mean = oracle.x, torch.zeros_like(oracle.x)
        s.price = torch.full_like(oracle.y, math.log(ratio), dtype=oracle.x.dtype)  # log 1/lambda
        s.spread = torch.zeros_like(s.price)
        for step in oracle.steps(self.steps):
            fall = (1 + math.cos(math.pi * step / self.steps)) / 2
            gradient, value, _ = oracle.gradient(s.x_adv, aimed_hinge, s.aim)
            s.mean.lerp_(gradient, 0.1)
            s.spread = 0.99 * s.spread + 0.01 / values * norm_of(gradient.flatten(1), "l2").square()
            size = (s.spread / (1 - 0.99 ** (step + 1))).sqrt().clamp_min(1e-12)
            rate = self.step_size * (high - low) * (0.01 + 0.99 * fall)
            pace = per_row(rate / (1 - 0.9 ** (step + 1)) / size, gradient)
            moved = torch.addcmul(oracle.change(s.x_adv), s.mean, pace)
            shrunk = proximal(moved, rate * unit * s.price.exp(), oracle.threat.norm)
            s.x_adv = shrunk.add_(oracle.x).clamp_(low, high)
            change = self.dual_rate * (0.1 + 0.9 * fall)
            s.price = s.price + torch.where(value >= 0, change, -change)
        oracle.visit(s.x_adv)


def proximal(delta: Tensor, weight: Tensor, norm: str) -> Tensor:
    """argmin over z of ||z - delta||^2 / 2 + weight ||z||_norm: (N, ...), (N,) -> (N, ...).

    For l0 the sum of |z|^(2/3) stands in: it makes as few changes, and these are drawn back before they
    are dropped, where l0 itself would keep or drop them as they are.
    """
    weight = weight.clamp_min(1e-12)
    if norm == "l2":
        length = norm_of(delta.flatten(1), "l2").clamp_min(1e-12)
        return delta * per_row((1 - weight / length).clamp_min(0), delta)
    if norm == "linf":  # Moreau: what the projection onto the dual norm's ball leaves
        return delta - project(delta, torch.zeros_like(delta), "l1", weight, (-torch.inf, torch.inf))
    if norm == "l0":
        return _proximal_two_thirds(delta, per_row(2 * weight, delta))
    weight = per_row(weight, delta)
    return delta - delta.clamp(-weight, weight)


def _proximal_two_thirds(delta: Tensor, weight: Tensor) -> Tensor:
    """argmin over z of (z - delta)^2 + weight |z|^(2/3), by the root of a quartic (Cao et al. 2013)."""
    size = delta.abs()
    angle = torch.arccosh((27 / 16 * size.square() * weight.pow(-1.5)).clamp_min(1.0)) / 3
    a = 2 / math.sqrt(3) * weight.pow(0.25) * angle.cosh().sqrt()
    root = (a + (2 * size / a - a.square()).clamp_min(0).sqrt()) / 2
    return torch.where(size > 2 / 3 * (3 * weight.pow(3)).pow(0.25), delta.sign() * root.pow(3), 0.0)
