"""Does the surface go in steps, jumps or waves that are fine beside the threat?

Along a short line a net bends: from one interval to the next the margin gains much the same, or its gain changes much as it
did before, or rises once to a steep slope and falls. What rounds its input or activations, or lets only the highest
through, stands still in one and jumps in the next, whatever gradient it gives. Attacks then end wherever a step is high,
and what stands is more than could be broken.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

from robust.attacks.geometry import per_row
from robust.diagnose.answers import margins_at
from robust.losses import margin
from robust.rng import Streams
from robust.target import Target
from robust.threat import Threat

# Honest nets in float32 stay under half of it, with activations in 8 bits under it. A net of plateaus, fitted to one-hot
# targets, may be over it, but its cliffs are steep slopes, not jumps, and few.
MOST: Final = 0.6
TURNS: Final = 0.06
KEPT: Final = 0.2  # of a continuous rise 1 / 64 is left
_SAMPLES: Final = 16
_FIRST: Final = 6  # that many tell enough of a surface
_CLEAR: Final = 0.3  # that is no more uneven than this
_POINTS: Final = 9
_RADII, _WIDEST = 3.0, 0.1  # how far a pixel is moved each way: radii, and of the box at most
_LEAST_RADIUS: Final = 0.03  # of the box: within less, 8-bit pixels and activations are steps, too
_OFF: Final = 0.02  # of the box, so that no pixel of few values begins where its rounding jumps
_ROUNDINGS: Final = 4.0
_CLOSER: Final = 6  # halvings of the steepest interval


class Rough(NamedTuple):
    """What a look along lines told, and its cost in rows passed.

    Args:
        reach: how far the pixel that moves most was moved each way, the samples' median; 0: nothing was looked at.
        share: third differences of the margin over its first ones, the samples' mean; nan: not to be told.
        turns: what its gain changes beyond one rise and fall, over all that it moves, the samples' median.
        kept: of the steepest interval's gain, what is left after its length was halved six times, the samples' mean; looked
            at where the others leave it open.
    """

    reach: float
    share: float = math.nan
    turns: float = math.nan
    kept: float = math.nan
    forwards: int = 0
    backwards: int = 0

    @property
    def told(self) -> bool:
        """Whether the surface goes in steps or waves: uneven, and not by one steep slope between two plateaus."""
        return self.share > MOST and (self.turns > TURNS or self.kept > KEPT)


class _Line(NamedTuple):
    """Straight lines through samples, at shares of the way from -1 to 1."""

    target: Target
    y: Tensor
    middle: Tensor
    along: Tensor
    reach: Tensor  # how far the pixel that moves most is moved, (N,)
    size: Tensor  # of the largest logits, (N,)

    def margins(self, shares: Tensor) -> Tensor:
        """At shares of the way, (S, 1) for all samples or (S, N): (S, N)."""
        shares = shares.to(self.middle.dtype).expand(-1, len(self.y))
        points = [self.middle + per_row(share, self.middle) * self.along for share in shares]
        return margins_at(self.target, points, self.y)


def rough(target: Target, x: Tensor, y: Tensor, threat: Threat | None, rounding: float) -> Rough:
    """How unevenly the margin moves along its gradient: `share` is 0 on a parabola, 3.2 for noise, 4 for steps far apart.

    Args:
        target: entered; deterministic and differentiable.
        x, y: samples on its device, (N, ...) and (N,); the first 16 are looked at, or 6 that leave no doubt.
        threat: of norm linf or l2 and more than a few grey levels; of any other nothing is told.
        rounding: how far logits may be off by rounding alone, as a share of their size: what moves by little more tells nothing.
    """
    if threat is None or threat.norm not in ("linf", "l2"):
        return Rough(0.0)
    first = _rough(target, x[:_FIRST], y[:_FIRST], threat, rounding)
    if first.reach == 0 or first.share < _CLEAR or len(x) <= _FIRST:
        return first
    found = _rough(target, x[:_SAMPLES], y[:_SAMPLES], threat, rounding)
    return found._replace(
        forwards=first.forwards + found.forwards, backwards=first.backwards + found.backwards
    )


def _rough(target: Target, x: Tensor, y: Tensor, threat: Threat, rounding: float) -> Rough:
    """`rough` of all these samples."""
    line = _line(target, x, y, threat)
    reach = float(line.reach.median())
    if reach < _RADII * _LEAST_RADIUS * (target.bounds[1] - target.bounds[0]):
        return Rough(0.0, forwards=len(x), backwards=len(x))
    shares = torch.linspace(-1, 1, _POINTS, device=x.device)
    values = line.margins(shares[:, None])
    gains = values.diff(dim=0)
    moved = gains.abs().sum(0)
    usable = moved.isfinite() & (moved > _ROUNDINGS * rounding * line.size)
    found = Rough(reach, forwards=(1 + _POINTS) * len(x), backwards=len(x))
    if int(usable.sum()) <= len(x) / 2:
        return found
    uneven = gains.diff(n=2, dim=0).abs().sum(0) / moved
    found = found._replace(
        share=float(uneven[usable].mean()), turns=float((_turns(gains) / moved)[usable].median())
    )
    if found.share > MOST and not found.told:
        kept = _kept(line, shares, values)[usable]
        found = found._replace(kept=float(kept.mean()), forwards=found.forwards + _CLOSER * len(x))
    return found


def _turns(gains: Tensor) -> Tensor:
    """What gains change beyond one rise and one fall, or one fall and one rise: 0 for plateaus and the slope between; (N,)."""
    ends = gains[0] + gains[-1]
    once = torch.maximum(2 * gains.amax(0) - ends, ends - 2 * gains.amin(0))
    return gains.diff(dim=0).abs().sum(0) - once


def _kept(line: _Line, shares: Tensor, values: Tensor) -> Tensor:
    """What is left of the largest gain when its interval is halved, and halved again where most is; (N,)."""
    steepest = values.diff(dim=0).abs().argmax(0)
    ends = [(shares[i], values.gather(0, i[None])[0]) for i in (steepest, steepest + 1)]
    first = (ends[1][1] - ends[0][1]).abs()
    for _ in range(_CLOSER):
        (low, below), (high, above) = ends
        middle = (low + high) / 2
        value = line.margins(middle[None])[0]
        lower = (value - below).abs() > (above - value).abs()
        ends = [
            (torch.where(lower, low, middle), torch.where(lower, below, value)),
            (torch.where(lower, middle, high), torch.where(lower, value, above)),
        ]
    return (ends[1][1] - ends[0][1]).abs() / first.clamp_min(1e-300)


def _line(target: Target, x: Tensor, y: Tensor, threat: Threat) -> _Line:
    """In the gradient's direction, by some radii of the threat, but no pixel by more than a part of the box."""
    low, high = target.bounds
    off, widest = _OFF * (high - low), _WIDEST * (high - low)
    streams = Streams(0, torch.arange(len(x), device=x.device), ("rough",))
    x = (x + streams.uniform(x.shape[1:], -off, off).to(x.dtype)).clamp(low + widest, high - widest)
    point = x.clone().requires_grad_()
    with torch.enable_grad():
        logits = target.logits(point)
        value = margin(logits, y).sum()
    gradient = torch.autograd.grad(value, point)[0].nan_to_num(0, 0, 0)
    rows = gradient.flatten(1)
    steepest = rows.abs().amax(1).clamp_min(1e-30)
    size = steepest if threat.norm == "linf" else (rows / steepest[:, None]).norm(dim=1) * steepest
    reach = (_RADII * threat.radius * steepest / size).clamp(max=widest)
    along = gradient / per_row(steepest, x) * per_row(reach, x)
    return _Line(target, y, x, along, reach, logits.detach().double().abs().amax(1))
