"""Where a sum of values that each grow until they are full reaches a goal: what projections onto bounded sets come to."""

from __future__ import annotations

import torch
from torch import Tensor


def crossing(meets: Tensor, rate: Tensor, full: Tensor, goal: Tensor) -> Tensor:
    """The least t at which values that gain `rate` a unit of t until t = `meets`, and `full` in all, sum to the goal.

    By sorting: the host is told nothing on the way, so that a GPU need not stand still. On a CPU Newton's steps that end
    where they are done take a fraction of the time.

    Args:
        meets, rate, full: (N, D), none below 0.
        goal: (N, 1).

    Returns:
        (N, 1), the last of the meeting points where the goal is out of reach.
    """
    ends, order = meets.sort(dim=1)
    gained, slope = (part.gather(1, order).cumsum(1, dtype=torch.float64) for part in (full, rate))
    left = slope[:, -1:] - slope  # what still grows beyond an end
    before = (gained + ends * left < goal).sum(1, keepdim=True)  # ends that come before the crossing
    place = (before - 1).clamp_min(0)
    start, pace = (
        torch.where(before > 0, part.gather(1, place), first)
        for part, first in ((gained, 0.0), (left, slope[:, -1:]))
    )
    there = ((goal - start).clamp_min(0) / pace.clamp_min(1e-30)).to(meets.dtype)
    return torch.minimum(there, ends[:, -1:])
