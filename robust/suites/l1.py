"""Plans in l1."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from robust.attacks import APGD, FAB, PGD, MultiTargeted, OuterBoundary, SparseRS, SwapSearch
from robust.suites.shared import FAR_OUT, FARTHER_OUT, LABEL, PROBED, SHRUNK, TO_BOUNDARY, WIDENED
from robust.suites.stage import Stage, for_all

# In l1 a few values that change by much: where they come near, and nearer than ascents did, swaps of one for another. On some
# nets that answer beyond a threshold they break much of what ascents leave, on most next to nothing, as their first queries tell.
_BY_FEW_VALUES: Final = SparseRS(queries=1500, proposals=4, early=0.12, spread=1.25)
_SWAPS: Final = SwapSearch(pace=0.15, spread=1.25)
# From far beyond the box inwards, on a loss that sees every class: where gradients near the sample vanish or mislead, as on
# Madry's nets and on units that are dead, this finds what starts nearby do not.
_FAR_OUTSIDE: Final = APGD(steps=27, outside=256)
_WIDE_STARTS: Final = APGD(steps=50, restarts=4, loss="margin", outside=16)


def standard() -> list[Stage]:
    """Ascents from outside, from far outside, and random search for a few values; longer ones of what is near."""
    return [
        Stage(PGD(steps=7, loss="margin", schedule="cosine", random_start=False)),
        *SHRUNK,
        Stage(APGD(steps=15, loss="margin", outside=4)),
        LABEL,
        Stage(_BY_FEW_VALUES),
        Stage(_SWAPS, near=0.35, follows=True),
        Stage(_FAR_OUTSIDE),
        Stage(replace(_FAR_OUTSIDE, steps=20, restarts=2), follows=True),
        # In few dimensions, where ascents in l1 zigzag, projections to the boundary find more.
        Stage(TO_BOUNDARY, near=0.5),
        Stage(replace(TO_BOUNDARY, targets=4, skip=1), near=0.3),
        # Without momentum it is the starts that tell.
        Stage(APGD(steps=40, restarts=3, loss="margin", outside=4), near=0.3),
        Stage(_WIDE_STARTS, near=0.15),
        # Where any class may break: at small radii longer ascents find it, at larger ones an ascent towards each.
        Stage(APGD(steps=50, restarts=2), level=(0.1, 0)),
        Stage(MultiTargeted(steps=12, odi_steps=1, radii=(4, 1)), level=(0.1, 0)),
        # Behind a code of each value, what begins outside comes in along slopes of other values' bumps. From inside, on
        # cross-entropy, ascents gain for long there, and hardly anywhere else.
        Stage(APGD(steps=40), near=0.5),
        Stage(APGD(restarts=3), near=0.3, follows=True),
        Stage(APGD(targets=3), near=0.4, follows=True),
        # What is nearest it is the starts that tell of, there and elsewhere, but where gradients agree all along.
        Stage(APGD(restarts=4), near=0.1, turning=0.95),
        FAR_OUT,
        FARTHER_OUT,
        *PROBED,
    ]


def longer() -> list[Stage]:
    """What `thorough` adds: the long forms of the same searches, towards every class."""
    wide = MultiTargeted(steps=60, restarts=3, random_start=True, radii=(3, 2, 1))
    searches = (
        APGD(restarts=5),
        replace(_WIDE_STARTS, steps=60, restarts=9),
        APGD(targets=9),
        FAB(),
        wide,
        OuterBoundary(),
    )
    swaps = [replace(_SWAPS, queries=8000, pace=None, spread=spread) for spread in (1, 1.5)]
    return [*for_all(*searches), *(Stage(search, near=0.4) for search in swaps), *WIDENED]
