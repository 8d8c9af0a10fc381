"""Ascent by gradients averaged over wide noise, which narrows on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import ahead, brought_in, per_row
from robust.errors import InputError
from robust.losses import margin
from robust.oracle import Access, Oracle
from robust.row_copies import repeated
from robust.rows import by_row


@ATTACKS.register("smoothed-ascent")
@dataclass(frozen=True)
class SmoothedAscent(Attack):
    """Steepest ascent of the margin's mean over noise, first wide, then ever narrower.

    Graduated optimisation (Mobahi & Fisher 2015, arXiv 1503.03712) with gradients averaged over noise as in Wu et al. 2018
    (arXiv 1802.09707), whose noise stays narrow. Behind a sharp choice, such as a softmax of low temperature over patches,
    gradients tell how to change what is chosen at a point, and not what would be chosen beside it; the mean over noise of
    several radii tells both.

    Noisy points lie in the box, most of them outside the threat. Momentum adds gradients up by their size in l1
    (Dong et al. 2018); steps fall by a cosine from the whole radius to a tenth of it, and the noise with them to nothing.

    Args:
        steps: of an ascent, >= 1; each costs a forward and a backward a copy, and a forward where it ends.
        copies: noisy points that a gradient is the mean over, >= 1.
        width: of the noise at first, in units of eps, > 0: in linf each value moves by at most so much, in l2
            all together by about so much, before the box.
        momentum: share of the past steps' direction that is kept, in [0, 1).
        restarts: ascents from x, each with noise of its own, >= 1.
        stands: after the first step an ascent ends whose mean margin over the noise was less than this share of the margin at
            x, > 0: noise alone undoes the label there, and its gradients are those of another image. None: none does.

    Raises:
        InputError: an option is out of its range.
    """

    name: ClassVar[str] = "smoothed-ascent"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Mobahi & Fisher 2015"

    steps: int = 40
    copies: int = 8
    width: float = 4.0
    momentum: float = 0.75
    restarts: int = 1
    stands: float | None = None

    def __post_init__(self) -> None:
        self.check_numbers("width")
        if min(self.steps, self.copies, self.restarts) < 1 or not 0 <= self.momentum < 1:
            raise InputError(
                "smoothed-ascent: expected steps, copies and restarts >= 1 and momentum in [0, 1), got "
                f"{self.steps}, {self.copies}, {self.restarts} and {self.momentum}"
            )
        if self.stands is not None and self.stands <= 0:
            raise InputError(f"smoothed-ascent: expected stands > 0, got {self.stands}")

    @property
    def stays_inside(self) -> bool:
        """Whether every visited point lies in the threat set: not here."""
        return False

    def run(self, oracle: Oracle) -> Tensor:
        s, threat = oracle.state(), oracle.threat
        s.clean = oracle.clean_margin
        for restart in oracle.steps(self.restarts):
            s.x_adv, s.velocity = oracle.start, torch.zeros_like(oracle.x)
            for step in oracle.steps(self.steps):
                left = (1 + math.cos(math.pi * step / self.steps)) / 2
                gradient, mean = self._smoothed(
                    oracle, s.x_adv, self.width * left, restart * self.steps + step
                )
                length = gradient.flatten(1).abs().sum(1).clamp_min(1e-30)
                s.velocity = self.momentum * s.velocity + gradient / per_row(length, gradient)
                size = (0.1 + 0.9 * left) * threat.radius
                s.x_adv = brought_in(oracle, ahead(s.x_adv, s.velocity, threat, size))
                oracle.logits(s.x_adv)  # what counts, for noisy points may lie outside
                if step == 0 and self.stands is not None:
                    oracle.rest(mean > self.stands * s.clean)
        return s.x_adv

    def _smoothed(self, oracle: Oracle, at: Tensor, width: float, draw: int) -> tuple[Tensor, Tensor]:
        """Means over copies of a point with noise: of the margin's gradients, (N, ...), and of the margin, (N,)."""
        shape = at.shape[1:]
        reach = width * oracle.threat.radius * _reach(oracle.threat.norm, shape.numel())
        with oracle.multiplied(self.copies) as many:
            noise = many.random(draw).uniform(shape, -reach, reach)
            gradient, value, _ = many.gradient(many.clip(repeated(at, self.copies).add_(noise)), margin)
        return by_row(gradient, self.copies).mean(1), by_row(value, self.copies).mean(1)


def _reach(norm: str, values: int) -> float:
    """How far each of so many values may move by uniform noise whose norm is to be about 1: in linf at most."""
    return 1.0 if norm == "linf" else (3 / values) ** 0.5
