"""Does the surface go in steps, jumps or waves that are fine beside the threat?

Along a short line a net bends here and there: from one interval to the next the margin gains much the same. What rounds
its input or activations, or lets only the highest through, stands still in one and jumps in the next, whatever gradient it
gives. Attacks then end wherever a step is high, and what stands is more than could be broken.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

from robust.attacks.geometry import per_row
from robust.losses import margin
from robust.rng import Streams
from robust.target import Target
from robust.threat import Threat

# tests/test_trust.py has honest models of many kinds, all below, and planted ones, all above; with 8-bit activations
# honest ones come nearest, of steps inputs of some 32 levels, which hide little.
MOST: Final = 0.4
_POINTS: Final = 9
_RADII, _WIDEST = 3.0, 0.1  # how far a pixel is moved each way: radii, and of the box at most
_LEAST_RADIUS: Final = 0.015  # of the box: within less, 8-bit pixels are steps, too
_OFF: Final = 0.02  # of the box, so that no pixel of few values begins where its rounding jumps
_ROUNDINGS: Final = 4.0
JUMP: Final = 0.5  # of the clean margin; a continuous one is halved with every halving of the way
_HALVINGS: Final = 12
_PAIRS: Final = 4  # fewer tell nothing


class Rough(NamedTuple):
    """What a look along lines told, and its cost in rows passed."""

    reach: float  # how far a pixel was moved each way
    share: float  # changes of the gain from interval to interval over all gains, the samples' mean; nan: not to be told
    forwards: int = 0
    backwards: int = 0


def rough(target: Target, x: Tensor, y: Tensor, threat: Threat | None, rounding: float) -> Rough:
    """How unevenly the margin moves along its gradient: 0 on a straight line, 1.7 for noise, 2 for steps far apart.

    Args:
        target: entered; deterministic and differentiable.
        x, y: samples on its device, (N, ...) and (N,).
        threat: of norm linf or l2 and more than a few grey levels; of any other nothing is told.
        rounding: how far logits may be off by rounding alone, as a share of their size: what moves by little more tells nothing.
    """
    reach = _reach(threat, target.bounds, x[0].numel())
    if not reach:
        return Rough(0.0, math.nan)
    values, size = _along(target, x, y, reach)
    gains = values.diff(dim=0)
    moved = gains.abs().sum(0)
    usable = moved.isfinite() & (moved > _ROUNDINGS * rounding * size)
    share = math.nan
    if int(usable.sum()) > len(x) / 2:
        share = float((gains.diff(dim=0).abs().sum(0) / moved)[usable].mean())
    return Rough(reach, share, _POINTS * len(x) + len(x), len(x))


def _reach(threat: Threat | None, bounds: tuple[float, float], pixels: int) -> float:
    """How far to move pixels each way, on the threat's scale; 0: not to be looked at."""
    if threat is None or threat.norm not in ("linf", "l2"):
        return 0.0
    width = bounds[1] - bounds[0]
    radius = threat.radius if threat.norm == "linf" else threat.radius / pixels**0.5
    return min(_RADII * radius, _WIDEST * width) if radius > _LEAST_RADIUS * width else 0.0


def _along(target: Target, x: Tensor, y: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Margins at equal distances along lines in the gradient's direction, (points, N), and the largest logits, (N,)."""
    low, high = target.bounds
    off = _OFF * (high - low)
    streams = Streams(0, torch.arange(len(x), device=x.device), ("rough",))
    x = (x + streams.uniform(x.shape[1:], -off, off).to(x.dtype)).clamp(low + reach, high - reach)
    point = x.clone().requires_grad_()
    with torch.enable_grad():
        logits = target.logits(point)
        value = margin(logits, y).sum()
    gradient = torch.autograd.grad(value, point)[0].nan_to_num(0, 0, 0)
    steepest = gradient.flatten(1).abs().amax(1).clamp_min(1e-30)
    along = gradient / per_row(steepest, x) * reach
    shares = torch.linspace(-1, 1, _POINTS).tolist()
    with torch.no_grad():
        values = [margin(target.logits(x + share * along), y).double() for share in shares]
    return torch.stack(values), logits.detach().double().abs().amax(1)


@torch.no_grad()
def jump(target: Target, x: Tensor, y: Tensor) -> tuple[float, int]:
    """How far the margin jumps at a boundary, in clean margins (the samples' median; nan: not to be told), and forwards.

    On the way from each sample to one that is taken for another class, halved until both ends are all but one point.

    Args:
        target: entered; deterministic.
        x, y: samples on its device, (N, ...) and (N,).
    """
    logits = target.logits(x)
    taken = logits.argmax(1)
    right = (taken == y).nonzero().squeeze(1)
    # The next sample of another class, in the order that they came.
    others = taken[None, :] != y[right, None]
    after = (torch.arange(len(x), device=x.device)[None, :] - right[:, None]) % len(x)
    partner = torch.where(others, after, len(x)).argmin(1)
    right, partner = right[others.any(1)], partner[others.any(1)]
    if len(right) < _PAIRS:
        return math.nan, len(x)
    label, inner, outer = y[right], x[right], x[partner]
    clean = margin(logits[right], label).double()
    below, above = clean, margin(logits[partner], label).double()
    for _ in range(_HALVINGS):
        middle = (inner + outer) / 2
        height = margin(target.logits(middle), label).double()
        out = height > 0
        inner, outer = (
            torch.where(per_row(out, x), inner, middle),
            torch.where(per_row(out, x), middle, outer),
        )
        below, above = torch.where(out, below, height), torch.where(out, height, above)
    return float(((above - below) / clean.abs().clamp_min(1e-300)).median()), len(x) + _HALVINGS * len(right)
