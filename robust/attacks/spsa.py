"""SPSA, gradients from finite differences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import brought_in, per_row
from robust.errors import InputError
from robust.losses import LOSSES
from robust.oracle import Access, Oracle, State

_BETAS = (0.9, 0.999)  # of Adam
_BYTES = 3  # of each random word
_SIGNS = torch.tensor([[1.0 if byte >> bit & 1 else -1.0 for bit in range(8)] for byte in range(256)])


@ATTACKS.register("spsa")
@dataclass(frozen=True)
class SPSA(Attack):
    """Simultaneous perturbation: ascent on a gradient estimated from values (Uesato et al. 2018, arXiv 1802.05666).

    Each step asks at x_adv +- delta v for `samples` random sign vectors v, kept inside the threat, and gives the
    mean of their differences to Adam. Sees values only: for masked, shattered and noisy gradients.

    Args:
        queries: forward passes, >= 2 samples + 1; the steps are what fits.
        samples: directions a step, >= 1; each costs two queries.
        delta: how far to look, in units of the box's width, > 0.
        step_size: of Adam, in units of eps, > 0.
        loss: "margin" as in the paper, or another.
    """

    name: ClassVar[str] = "spsa"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    access: ClassVar[Access] = "score"
    paper: ClassVar[str] = "Uesato et al. 2018"

    queries: int = 5000
    samples: int = 32
    delta: float = 0.01
    step_size: float = 0.2
    loss: str = "margin"

    def __post_init__(self) -> None:
        self.check_numbers()
        if self.samples < 1 or self.queries < 2 * self.samples + 1 or self.delta <= 0 or self.step_size <= 0:
            raise InputError(
                "spsa: expected samples >= 1, queries >= 2 samples + 1, delta > 0 and step_size > 0, got "
                f"{self.samples}, {self.queries}, {self.delta} and {self.step_size}"
            )

    def run(self, oracle: Oracle) -> Tensor:
        low, high = oracle.threat.bounds
        delta, loss = self.delta * (high - low), LOSSES[self.loss]
        s = oracle.state()
        s.x_adv, s.mean, s.square = oracle.x, torch.zeros_like(oracle.x), torch.zeros_like(oracle.x)
        for step in oracle.steps(self.queries // (2 * self.samples + 1)):
            s.gradient, s.drawn = torch.zeros_like(oracle.x), self._bytes(oracle, step)
            for sample in oracle.steps(self.samples):
                v = _signs(s.drawn[:, sample], oracle.x)
                above = brought_in(oracle, torch.add(s.x_adv, v, alpha=delta))
                below = brought_in(oracle, torch.add(s.x_adv, v, alpha=-delta))
                rise = loss(oracle.logits(above), oracle.y) - loss(oracle.logits(below), oracle.y)
                s.gradient.addcmul_(v, per_row(rise / (2 * delta * self.samples), v))
            s.x_adv = oracle.project(s.x_adv + self._adam(s.gradient, s, step) * self._reach(oracle))
            oracle.visit(s.x_adv)
        return s.x_adv

    def _adam(self, gradient: Tensor, s: State, step: int) -> Tensor:
        """The ascent direction, each value about 1 in size."""
        first, second = _BETAS
        s.mean = first * s.mean + (1 - first) * gradient
        s.square = second * s.square + (1 - second) * gradient.square()
        mean = s.mean / (1 - first ** (step + 1))
        square = s.square / (1 - second ** (step + 1))
        return mean / (square.sqrt() + 1e-12)

    def _reach(self, oracle: Oracle) -> float:
        """The size of a value's step: in l2 shared out among the values."""
        spread = math.prod(oracle.x.shape[1:]) ** 0.5 if oracle.threat.norm == "l2" else 1.0
        return self.step_size * oracle.threat.radius / spread

    def _bytes(self, oracle: Oracle, step: int) -> Tensor:
        """A step's random bytes, three a word and all at once, since drawing costs as much as a pass: (N, samples, bytes)."""
        words = -(-math.prod(oracle.x.shape[1:]) // (8 * _BYTES))
        drawn = oracle.random(step).integers((self.samples, words), 0, 256**_BYTES).to(torch.int32)
        return torch.stack([drawn >> 8 * place & 255 for place in range(_BYTES)], 3).flatten(2)


def _signs(drawn: Tensor, like: Tensor) -> Tensor:
    """The bits of bytes, (N, bytes) int32, as +-1 of the shape of `like`: looked up, eight at a time."""
    signs = _SIGNS.to(like).index_select(0, drawn.flatten()).view(len(drawn), -1)
    return signs[:, : like.shape[1:].numel()].reshape(like.shape)
