"""Do gradients around a sample go one way?

A softmax of small temperature over places looks at one of them, and at another a little farther on. Between two such switches
its surface is as even as any, and each gradient right; but it is that of one place, and says nothing of what lies past the next
switch. Those around a sample go as many ways as there are places in reach.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from robust.losses import margin
from robust.rng import Streams
from robust.target import Target
from robust.threat import Threat

# Of a net that bends as much as here is asked for, hardly a sample's agree less; of nets trained for large radii in linf more
# samples' do, and these bend little (benchmarks/results/surfaces-cpu.md).
UNEVEN: Final = 0.4
MOST: Final = 0.25
ALIKE: Final = 0.5
_RADII, _WIDEST = 2.0, 0.2  # how far pixels are moved: radii, and of the box at most
POINTS: Final = 4


def scattered(target: Target, x: Tensor, y: Tensor, threat: Threat) -> float:
    """The share of samples whose margin's gradients at four random points, none of them 0, agree to a mean cosine under 0.5.

    Args:
        target: entered; deterministic and differentiable. It is passed four times, forward and backward.
        x, y: samples on its device, (N, ...) and (N,).
        threat: of norm linf or l2; pixels are moved by up to twice its radius.
    """
    low, high = target.bounds
    # Uniform noise whose norm is as large, or nearly.
    share = 1.0 if threat.norm == "linf" else math.sqrt(3 / x[0].numel())
    width = min(_RADII * threat.radius * share, _WIDEST * (high - low))
    total, alive = torch.zeros_like(x, dtype=torch.float64).flatten(1), torch.ones_like(y, dtype=torch.bool)
    for draw in range(POINTS):
        streams = Streams(0, torch.arange(len(x), device=x.device), ("scattered", draw))
        point = (x + streams.uniform(x.shape[1:], -width, width).to(x.dtype)).clamp(low, high)
        gradient = _gradient(target, point, y)
        total += functional.normalize(gradient, dim=1)
        alive &= gradient.any(1)
    pairs = POINTS * (POINTS - 1)
    cosine = (total.square().sum(1) - POINTS) / pairs
    return float((alive & (cosine < ALIKE)).float().mean())


def _gradient(target: Target, point: Tensor, y: Tensor) -> Tensor:
    """The margin's, (N, D) float64."""
    point = point.requires_grad_()
    with torch.enable_grad():
        value = margin(target.logits(point), y).sum()
    return torch.autograd.grad(value, point)[0].nan_to_num(0, 0, 0).flatten(1).double()
