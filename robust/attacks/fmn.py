"""FMN, the fast minimum-norm attack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.aims import aimed_margin, boundary_distance, runs
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import into_box_then_ball, moved
from robust.errors import InputError
from robust.oracle import Access, Oracle, State
from robust.projections import keep_largest, project


@ATTACKS.register("fmn")
@dataclass(frozen=True)
class FMN(Attack):
    """Fast minimum norm (Pintor et al. 2021, arXiv 2102.12827) in l0, l1, l2 and linf.

    A step along the gradient, then projection onto a ball whose radius shrinks while the point is
    adversarial and grows while it is not. Before the first success the radius goes a little (gamma) beyond
    the linearised boundary, which the search else nears and never crosses where the box is in the way
    (l0: the radius grows from one value).

    Args:
        steps: gradient steps a run, >= 1.
        step_size: l2 length of the first step in units of the box, falling by a cosine to a hundredth, > 0;
            None for 1 as in the paper, and in linf a third for each value in l2, since its balls reach so far.
        gamma: share by which the radius changes at first, in (0, 1); it falls by a cosine to a fiftieth.
        targets: 0 for one run against whichever class leads, as in the paper; else one for each of so many
            nearest classes.
    """

    name: ClassVar[str] = "fmn"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0")
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Pintor et al. 2021"
    minimum_norm: ClassVar[bool] = True

    steps: int = 100
    step_size: float | None = None
    gamma: float = 0.05
    targets: int = 0

    def __post_init__(self) -> None:
        self.check_numbers()
        if (
            self.steps < 1
            or (self.step_size is not None and self.step_size <= 0)
            or not 0 < self.gamma < 1
            or self.targets < 0
        ):
            raise InputError(
                "fmn: expected steps >= 1, step_size > 0, 0 < gamma < 1 and targets >= 0, got "
                f"{self.steps}, {self.step_size}, {self.gamma} and {self.targets}"
            )

    def run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        for _ in runs(oracle, s, self.targets):
            self._search(oracle, s)
        return s.x_adv

    def _search(self, oracle: Oracle, s: State) -> None:
        norm, bounds = oracle.threat.norm, oracle.threat.bounds
        first = self._first_step(norm, oracle.x.shape[1:].numel())
        s.x_adv = oracle.x
        s.best = torch.full_like(oracle.y, torch.inf, dtype=oracle.x.dtype)
        s.radius = torch.ones_like(s.best)
        for step in oracle.steps(self.steps):
            fall = (1 + math.cos(math.pi * step / self.steps)) / 2
            gradient, value, _ = oracle.gradient(s.x_adv, aimed_margin, s.aim)
            size = oracle.distance(s.x_adv)
            s.best = torch.where(value > 0, s.best.minimum(size), s.best)
            gamma = self.gamma * (0.02 + 0.98 * fall)
            s.radius = _radius(norm, s.radius, s.best, value > 0, size, value, gradient, gamma)
            rate = first * (bounds[1] - bounds[0]) * (0.01 + 0.99 * fall)
            ahead = moved(s.x_adv, gradient, "l2", rate)
            s.x_adv = _into_ball(ahead, oracle.x, norm, s.radius, bounds)
        oracle.visit(s.x_adv)

    def _first_step(self, norm: str, values: int) -> float:
        if self.step_size is not None:
            return self.step_size
        return math.sqrt(values) / 3 if norm == "linf" else 1.0


def _into_ball(ahead: Tensor, x: Tensor, norm: str, radius: Tensor, bounds: tuple[float, float]) -> Tensor:
    """A point in balls of the radii (N,) and the box, in l2 and l0 not the nearest: (N, ...), in the memory of `ahead`.

    l0 keeps the values with the largest product of the change asked for and what of it lies in the box. The paper's choice,
    by the first alone, spends the radius on values at the box's end.
    """
    if norm == "l2":
        return into_box_then_ball(ahead, x, radius, bounds)
    if norm != "l0":
        return project(ahead, x, norm, radius, bounds)
    change = ahead.sub(x).flatten(1)
    inside = ahead.clamp_(*bounds).sub_(x).flatten(1)
    return keep_largest(inside, change.mul_(inside), radius[:, None]).view_as(x).add_(x).clamp_(*bounds)


def _radius(
    norm: str,
    radius: Tensor,
    best: Tensor,
    wrong: Tensor,
    size: Tensor,
    value: Tensor,
    gradient: Tensor,
    gamma: float,
) -> Tensor:
    """The next radius of points of a `size`: all (N,) but gradient and gamma; `best` is inf before the first success."""
    less, more = radius * (1 - gamma), radius * (1 + gamma)
    if norm == "l0":  # whole numbers, and one at least
        less, more = torch.minimum(radius - 1, less.floor()), torch.maximum(radius + 1, more.floor())
        return torch.where(wrong, torch.minimum(less, best - 1), more).clamp_min(1)
    ahead = boundary_distance(value[:, None], gradient[:, None], norm).squeeze(1)
    grown = torch.where(best.isinf(), (size + ahead) * (1 + gamma), more)
    return torch.where(wrong, torch.minimum(less, best), grown)
