"""What the margin does where it comes to 0: does it jump over the boundary, and how does it fall towards it?

Of honest nets it falls evenly: with a tenth of the way left, near a tenth of the clean margin is. What works on the logits
alone, such as a temperature that depends on the input, keeps every boundary where it was and may bend that: the square root of
an honest margin leaves a third of itself with a tenth of the way. Whoever takes shares of clean margins for how near samples
are is misled; by how much is seen on the way from one sample to another.
"""

from __future__ import annotations

import copy
import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

from robust.attacks.geometry import per_row
from robust.losses import margin
from robust.target import Target

JUMP: Final = 0.5  # of the clean margin; a continuous one is halved with every halving of the way
BENT: Final = 0.6  # one of the honest nets measured is under it (benchmarks/results/bends-honest-cpu.md)
TOLD: Final = 0.4  # with shares straightened, too, more stands than could be broken
LEAST: Final = 0.25  # that shares are straightened by: what bends more is nearly a jump
_HALVINGS: Final = 10  # after six a net of plateaus still jumped by a half
_CLOSE: Final = 9  # halvings after which the boundary is known well enough to look back from it
_PAIRS: Final = 4  # fewer tell nothing
_FIRST: Final = 6  # that many tell enough of margins that fall evenly
_EVEN: Final = 0.7
_LEFT: Final = 0.1, 0.03  # of the way to the boundary, where the margin is compared


class Boundary(NamedTuple):
    """What was seen on the way to boundaries, and its cost in rows passed."""

    jump: float  # of the margin there, in clean margins, the samples' median; nan: not to be told
    bend: float  # power of the way that is left by which the margin falls, the samples' median; nan: not to be told
    forwards: int


class _Ways:
    """Straight ways from samples to points that are taken for another class, and where on them the boundary is.

    Args:
        target: entered; deterministic.
        x, y: samples and labels on its device, of which those that are classified correctly begin a way.
    """

    def __init__(self, target: Target, x: Tensor, y: Tensor) -> None:
        logits = target.logits(x)
        right = (logits.argmax(1) == y).nonzero().squeeze(1)
        end, seen, asked = _ends(target, x, logits, right)
        above = margin(seen, y[right]).double()
        leads = above > 0
        right = right[leads]
        self._target, self.forwards = target, len(x) + asked
        self._begin, self._end, self._label = x[right], end[leads], y[right]
        self._clean = margin(logits[right], self._label).double()
        self._below, self._above = self._clean, above[leads]  # at _near and _far
        self._near, self._far = torch.zeros_like(self._clean), torch.ones_like(self._clean)

    def __len__(self) -> int:
        return len(self._label)

    def part(self, rows: slice) -> _Ways:
        """Some of them alone, at no cost so far."""
        some = copy.copy(self)
        some.forwards = 0
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(some, name, value[rows])
        return some

    def halve(self) -> None:
        """Halve the part that the boundary is in."""
        middle = (self._near + self._far) / 2
        height = self._margins(middle)
        out = height > 0
        self._near, self._far = torch.where(out, self._near, middle), torch.where(out, middle, self._far)
        self._below, self._above = (
            torch.where(out, self._below, height),
            torch.where(out, height, self._above),
        )

    @property
    def jump(self) -> float:
        """How much of the clean margin lies between the two ends of that part, the median."""
        return float(((self._above - self._below) / self._clean.abs().clamp_min(1e-300)).median())

    def powers(self) -> Tensor:
        """Of the way that is left, by which each margin falls towards the boundary, (N,)."""
        boundary = (self._near + self._far) / 2
        farther, nearer = (
            (self._margins((1 - left) * boundary) / self._clean).clamp_min(1e-9) for left in _LEFT
        )
        return (nearer / farther).log() / math.log(_LEFT[1] / _LEFT[0])

    def _margins(self, way: Tensor) -> Tensor:
        """At these parts of the ways, (N,)."""
        self.forwards += len(self)
        points = torch.lerp(self._begin, self._end, per_row(way.to(self._begin.dtype), self._begin))
        return margin(self._target.logits(points), self._label).double()


def _ends(target: Target, x: Tensor, logits: Tensor, right: Tensor) -> tuple[Tensor, Tensor, int]:
    """Where ways from these samples, (M,), end, with the logits there, and what these cost.

    At the next sample of another class, in the order that they came; where all are of one, as in sorted data, at negatives.
    """
    taken = logits.argmax(1)
    others = taken[None, :] != taken[right, None]
    after = (torch.arange(len(x), device=x.device)[None, :] - right[:, None]) % len(x)
    partner = torch.where(others, after, len(x)).argmin(1)
    if bool(others.any(1).all()):
        return x[partner], logits[partner], 0
    low, high = target.bounds
    end = low + high - x[right]
    return end, target.logits(end), len(right)


@torch.no_grad()
def look(target: Target, x: Tensor, y: Tensor) -> Boundary:
    """Go from each sample to one that is taken for another class, and look at the margin around the boundary between them.

    Args:
        target: entered; deterministic.
        x, y: samples on its device, (N, ...) and (N,).
    """
    ways = _Ways(target, x, y)
    if len(ways) < _PAIRS:
        return Boundary(math.nan, math.nan, ways.forwards)
    halvings = 0
    while halvings == 0 or (halvings < _HALVINGS and not ways.jump <= JUMP):
        ways.halve()
        halvings += 1
    if not ways.jump <= JUMP:
        return Boundary(ways.jump, math.nan, ways.forwards)
    parts = [ways.part(slice(_FIRST)), ways.part(slice(_FIRST, None))]
    powers = _powers(parts[0], _CLOSE - halvings)
    if len(parts[1]) and float(powers.median()) < _EVEN:
        powers = torch.cat([powers, _powers(parts[1], _CLOSE - halvings)])
    forwards = ways.forwards + sum(part.forwards for part in parts)
    return Boundary(ways.jump, float(powers.median()), forwards)


def _powers(ways: _Ways, halvings: int) -> Tensor:
    """`_Ways.powers`, once the boundary is known so much better."""
    for _ in range(halvings):
        ways.halve()
    return ways.powers()
