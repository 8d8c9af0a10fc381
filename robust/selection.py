"""Which samples a stage of a suite is to see: each by what is known of itself alone, so that no verdict depends on others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robust.suites import Stage


@dataclass(frozen=True)
class Known:
    """What earlier attacks have shown of each sample: (n,) each."""

    margin: Tensor  # the highest inside the threat
    clean_margin: Tensor
    clean_lead: Tensor  # at x, of the leading other class over the mean of those after it; inf where there is one alone
    farthest: Tensor  # the lowest of the other classes' highest gaps, as a share of the lowest at x; 1 of two classes
    distance: Tensor  # of the nearest adversarial point seen anywhere, in radii; inf where none was
    agreement: (
        Tensor  # mean cosine of successive gradients late in the first ascent; nan where none was measured
    )
    spent: Tensor  # most passes of a minimum-norm attack
    rose: Tensor  # bool: the latest attack brought the margin nearer
    closer: Tensor  # bool: it saw an adversarial point nearer than those before
    bend: float = 1.0  # power of the way that is left by which margins fall towards a boundary

    @property
    def share(self) -> Tensor:
        """What is left of the clean margin, straightened where margins are bent: 1 has not moved, 0 is broken."""
        left = self.margin / self.clean_margin
        return left if self.bend == 1 else torch.where(left > 0, left.abs() ** (1 / self.bend), left)

    def near(self, share: float) -> Tensor:
        """Which came within this share, (n,) bool."""
        return self.margin >= share**self.bend * self.clean_margin

    @property
    def behind(self) -> Tensor:
        """By how much searches inside are behind of what the nearest point seen says of a straight surface."""
        straight = (1 - 1 / self.distance).clamp_min(0)  # broken ones are there, too
        return self.share.clamp_min(0) - straight


def meets(stage: Stage, known: Known, draw: Callable[[], Tensor]) -> Tensor:
    """Which samples meet the conditions of a stage, (n,) bool.

    Args:
        draw: gives each sample's random number in [0, 1), (n,), which is held against the stage's share.
    """
    reasons = _reasons(stage, known)
    met = torch.ones_like(known.rose)
    if reasons:
        met &= torch.stack(reasons).any(0) | (draw() < stage.share)
    if stage.unless_behind is not None:
        met &= ~(known.behind > stage.unless_behind)
    if stage.unless_far is not None:
        met &= known.share <= stage.unless_far
    if stage.turning is not None:
        met &= known.agreement < stage.turning
    if stage.follows:
        met &= known.rose
    return met & known.closer if stage.closer else met


def _reasons(stage: Stage, known: Known) -> list[Tensor]:
    """Of each condition any of which will do, and that the stage sets, which samples meet it: (n,) bool."""
    distance, share, behind = known.distance, known.share, known.behind
    conditions: list[tuple[float | None, Callable[[Any], Tensor]]] = [
        (stage.near, known.near),
        (stage.within, lambda most: distance <= most),
        (stage.beyond, lambda least: distance > least),
        (stage.ahead, lambda least: behind < -least),
        (stage.behind, lambda least: behind > least),
        (stage.flat, lambda least: share > least),
        (stage.shrunk, lambda most: known.farthest < most),
    ]
    met = [of(value) for value, of in conditions if value is not None]
    if stage.longer is not None:
        passes, most, multiple = stage.longer
        met.append((known.spent > passes) & ((share <= most) | (distance <= multiple)))
    if stage.level is not None:
        most, least = stage.level
        met.append((known.clean_lead <= most * -known.clean_margin) & (share > least))
    return met
