"""The nearest point of a plane within the box, and how far it is: what FAB steps by and targets are ranked by."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from robust.attacks.geometry import falling_order, rising
from robust.crossing import crossing
from robust.projections import MOST, norm_of

_ROUNDS: Final = 60  # seen: 15 at most


def project_on_plane(x: Tensor, w: Tensor, offset: Tensor, norm: str, bounds: tuple[float, float]) -> Tensor:
    """The least d (in the norm) with <w, d> = offset and x + d in the box; the box's best where none reaches it.

    All values move in the direction that helps, as far as their room allows: linf moves all by the same
    t, l2 by t |w|, l1 the largest |w| first.

    Args:
        x, w: (N, ...). offset: (N,).
        norm: "linf", "l2" or "l1".
    """
    base, weight, goal = x.flatten(1), w.flatten(1), offset.abs()[:, None]
    low, high = bounds  # no masks: they take several times as long
    way = weight.sign().mul_(torch.where(offset > 0, 1.0, -1.0)[:, None])
    room = base.add(way, alpha=min(high - low, MOST)).clamp_(low, high).sub_(base).mul_(way).clamp_min_(0)
    weight = weight.abs()
    if norm == "l1":
        order = falling_order(weight)
        gain = (weight * room).gather(1, order)
        missing = (goal - (gain.cumsum(1) - gain)).clamp_min_(0)
        part = (missing / gain.clamp_min(1e-30)).clamp_max_(1.0)
        size = torch.zeros_like(room).scatter_(1, order, part * room.gather(1, order))
    elif norm == "l2":
        meets = room / weight.clamp_min(1e-30)
        size = torch.minimum(_pace(meets, weight.square(), weight * room, goal) * weight, room)
    else:
        size = torch.minimum(_pace(room, weight, weight * room, goal), room)
    return size.mul_(way).view_as(x)


def _pace(meets: Tensor, rate: Tensor, full: Tensor, goal: Tensor) -> Tensor:
    """The t at which values that gain `rate` a unit until t = `meets`, and `full` in all, sum to the goal.

    The sum is concave in t, so that Newton's steps from 0 never go too far and end on the right piece:
    a few rounds, where sorting the meeting points costs as much as a pass of a small net.

    Args:
        meets, rate, full: (N, D). goal: (N, 1).

    Returns:
        (N, 1); past all meeting points where the goal is out of reach.
    """
    if rate.device.type == "cuda":
        return crossing(meets, rate, full, goal)
    every, t = rate.sum(1, keepdim=True), torch.zeros_like(goal)
    settled, part = torch.empty_like(rate), torch.empty_like(rate)
    for _ in range(_ROUNDS):
        torch.le(meets, t, out=settled)
        left = (every - torch.mul(rate, settled, out=part).sum(1, keepdim=True)).clamp_min_(1e-30)
        further = (goal - torch.mul(full, settled, out=part).sum(1, keepdim=True)) / left
        if bool((further <= t).all()):
            break
        t = torch.maximum(t, further)
    return t


def plane_distance(x: Tensor, w: Tensor, offset: Tensor, norm: str, bounds: tuple[float, float]) -> Tensor:
    """How far x is from the plane <w, d> = offset within the box: (N, ...), (N, ...), (N,) -> (N,).

    For l0 as many values as it takes, and a fraction by how fully they are used. Where the box keeps the plane
    out of reach, what is as near as it gets counts, lengthened by the share that is missing.
    """
    if norm == "l0":
        base, weight = x.flatten(1), w.flatten(1)
        up = (weight > 0) == (offset > 0)[:, None]
        gain = weight.abs() * torch.where(up, bounds[1] - base, base - bounds[0])
        reached = rising(gain).flip(1).cumsum(1)
        length = (reached < offset.abs()[:, None]).sum(1) + (offset.abs() / reached[:, -1]).clamp_max(0.999)
        return torch.where(offset == 0, 0.0, length)
    d = project_on_plane(x, w, offset, norm, bounds)
    share = (d * w).flatten(1).sum(1) / offset
    return torch.where(offset == 0, 0.0, norm_of(d.flatten(1), norm) / share.clamp(1e-6, 1.0).square())
