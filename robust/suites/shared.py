"""Attacks and stages that plans of more than one norm have."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from robust.attacks import APGD, FAB, PGD, MultiTargeted, OuterBoundary, SmoothedAscent, Square, SquareAscent
from robust.suites.stage import Stage, for_all

MIFPE: Final = PGD(steps=10, loss="mifpe", schedule="cosine")
TO_BOUNDARY: Final = FAB(steps=60, targets=1, overshoot=1.1, backward=0.8, hope=4, reuse=True)

# Where logits hardly move, as on a plateau, the label's own slope leads nowhere. The targeted difference of logits ratio
# leaves it out, as long as the label is ahead, and climbs towards each class by what the others tell. Where all other
# classes are level at the sample, as where one is as unlikely as the next, their order says nothing, and any may break.
OFF_PLATEAU: Final = Stage(APGD(steps=5, targets=9), flat=0.95, level=(0.1, 0.8))
# What that brought nearer; from outside, where linf looks next, little of what stays farther than this is missed.
FROM_PLATEAU: Final = Stage(MultiTargeted(steps=5, odi_steps=5, restarts=2), near=0.5, follows=True)

# Where all classes come near together the logits shrink, as with a temperature that falls with the change, and what climbs on
# their differences goes where these vanish. The ratio of two differences sees the boundary.
SHRUNK: Final = [
    Stage(PGD(steps=20, loss="dlr", schedule="cosine", random_start=False), shrunk=0.15),
    Stage(APGD(steps=20, targets=3), shrunk=0.15),
]

# Where gradients turn from one step to the next, as behind logarithms of a spectrum, steps are too large for the surface: many
# small ones go where it leads.
SMALL_STEPS: Final = PGD(steps=160, step_size=0.1, loss="margin", schedule="cosine", random_start=False)
SMALLER_STEPS: Final = replace(SMALL_STEPS, steps=500, step_size=0.05)


def turning(cosine: float, *, near: float, nearer: float) -> list[Stage]:
    """For samples whose gradients agree less than this: small steps, smaller ones, steps that adapt, and squares with ascents.

    Args:
        near, nearer: the shares within which what gradients do not mislead on gets the last two.
    """
    return [
        Stage(replace(SMALL_STEPS, steps=40, step_size=0.15), turning=cosine, unless_behind=0.15),
        Stage(SMALL_STEPS, near=0.5, follows=True),
        Stage(replace(SMALL_STEPS, steps=320, step_size=0.07), near=0.4, follows=True),
        Stage(APGD(), near=near, turning=cosine, unless_behind=0.05),
        Stage(SquareAscent(rounds=4, queries=96, steps=48), near=nearer, turning=cosine, unless_behind=0.05),
    ]


# Where a class follows the label's at a distance, and never takes over, margins and ascents on them go after it. Of what they
# leave over half of the label's own logit is brought down, until others lead; and it is looked at from where lines to noise
# cross the boundary, which no logit at the sample can hide.
LABEL: Final = Stage(PGD(steps=6, loss="logit", schedule="cosine", random_start=False), flat=0.5)
FAR_OUT: Final = Stage(OuterBoundary(steps=3, lines=1, reach=3), flat=0.5)
FARTHER_OUT: Final = Stage(OuterBoundary(steps=8), within=1.5, closer=True)

# It may be any of the other classes, too.
OTHERS: Final = MultiTargeted(steps=8, odi_steps=1)

# What squares bring nearer than all gradients did is searched on.
MOVED: Final = Stage(Square(queries=2000, proposals=8), follows=True)
PROBE: Final = Square(queries=100, proposals=4)
# Random search of what is near and of a share of the others; what it brings nearer is searched on.
PROBED: Final = [Stage(PROBE, near=0.03, share=0.03), MOVED]

# Random search for all, and of what it brought nearer five times as long.
WIDENED: Final = [
    Stage(Square(queries=1000, proposals=4)),
    Stage(Square(queries=5000, proposals=8), follows=True),
]

# What `thorough` has in linf and l2 after the long chains.
LONGER: Final = [
    *for_all(APGD(), APGD(loss="dlr"), OuterBoundary()),
    Stage(SquareAscent(rounds=12), near=0.4),
    Stage(SmoothedAscent(), near=0.6),
    *WIDENED,
]
