"""Plans in l0."""

from __future__ import annotations

from typing import Final

from robust.attacks import GradientSwaps, SigmaZero, SparseRS, SwapSearch
from robust.suites.stage import Stage, for_all

# What has found nothing within half of the clean margin after a fifth of the queries seldom finds more.
_SPARSE: Final = SparseRS(queries=2000, proposals=4, pace=0.1)


def standard() -> list[Stage]:
    """Random search and exact effects for masked gradients; where these tell, swaps by gradients and longer descents find more."""
    return [
        Stage(SigmaZero()),
        Stage(_SPARSE),
        # What single values do, measured, goes on where random search came nearer than gradients.
        Stage(SwapSearch(), near=0.3, follows=True),
        Stage(GradientSwaps(pace=0.1), near=0.6),
        Stage(SigmaZero(steps=600), near=0.5),
    ]


def longer() -> list[Stage]:
    """What `thorough` adds: the long forms of the same searches."""
    return for_all(
        SigmaZero(steps=1000),
        SigmaZero(steps=500, targets=9),
        GradientSwaps(rounds=200),
        SparseRS(queries=10_000, proposals=4),
        SwapSearch(queries=10_000),
    )
