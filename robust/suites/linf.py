"""Plans in linf."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from robust.attacks import PGD, BasinHopping, MultiTargeted, Square, SquareAscent
from robust.suites.shared import (
    FAR_OUT,
    FARTHER_OUT,
    FROM_PLATEAU,
    LABEL,
    LONGER,
    MIFPE,
    MOVED,
    OFF_PLATEAU,
    OTHERS,
    PROBED,
    SHRUNK,
    SMALLER_STEPS,
    turning,
)
from robust.suites.stage import Stage

_ALIKE: Final = 0.6
_TURNING: Final = turning(_ALIKE, near=0.3, nearer=0.1)

# Within the ball: from an ascent that begins a little outside, hops that are wide pushes alone.
_HOPS: Final = BasinHopping(
    steps=20, targets=2, odi_steps=5, radii=(2, 1), near=None, hop_steps=14, hop_odi_steps=0, push=1
)
# For all an ascent from outside. Hops are for what is near, and for what this brought nearer by much than gradients inside
# could: where those are masked, hops break samples that seemed far.
_FROM_OUTSIDE: Final = replace(_HOPS, steps=12, targets=1, odi_steps=0, near=0.2, gained=0.05)

# From outside any of the classes that seem level is seen, as of nets trained on one-hot labels by squares: each of nine of what
# came within .8, and of what stays farther next to none breaks.
_ANY_CLASS: Final = Stage(replace(_HOPS, targets=9, steps=10, hops=0), level=(0.1, 0), unless_far=0.8)
# Of what came within .7 four classes however far they seem: on recurrent nets and mixers it is often one of these that breaks.
_CLASSES: Final = Stage(MultiTargeted(steps=5, odi_steps=1, near=0.5, least=4, worth=0.7))
# From where random search stands ascents reach hills that those from x, from outside and from pushes do not, on rugged
# surfaces more of them than hops at the same cost. Where all that was tried ends on one top, another round is for nothing.
_UP_FROM_SQUARES: Final = SquareAscent(rounds=8, queries=96, steps=16, pace=0.025, scatter=8)
# What all that left next to the boundary: more hops, and for the nearest longer walks of squares before each ascent.
_AT_THE_EDGE: Final = [
    Stage(replace(_HOPS, hops=40), near=0.03),
    Stage(SquareAscent(rounds=4, queries=300, steps=16), near=0.01),
]


def standard() -> list[Stage]:
    """Ascents on two losses, towards classes and from outside for all; hops and random search with ascents for what is near."""
    return [
        Stage(PGD(steps=10, loss="margin", schedule="cosine", random_start=False)),
        *SHRUNK,
        Stage(replace(MIFPE, steps=8)),
        _CLASSES,
        LABEL,
        OFF_PLATEAU,
        FROM_PLATEAU,
        _ANY_CLASS,
        Stage(_FROM_OUTSIDE),
        *_TURNING,
        FAR_OUT,
        FARTHER_OUT,
        # Three had their turn at all that is near.
        Stage(replace(OTHERS, skip=3), near=0.05),
        *PROBED,
        Stage(_UP_FROM_SQUARES, near=0.3),
        *_AT_THE_EDGE,
    ]


def below() -> list[Stage]:
    """`standard` for samples that broke at a radius not much larger: see `robust.suites.resolve_below`.

    Where gradients within are masked, ascents from outside alone tell who is near.
    """
    margin = PGD(steps=10, step_size=0.25, loss="margin", schedule="cosine", random_start=False)
    return [
        Stage(margin),
        *SHRUNK,
        Stage(MIFPE, near=0.5),
        _CLASSES,
        OFF_PLATEAU,
        FROM_PLATEAU,
        _ANY_CLASS,
        Stage(_FROM_OUTSIDE),
        Stage(_UP_FROM_SQUARES, near=0.1),
        Stage(Square(queries=48, proposals=4), near=0.1),
        MOVED,
        *_TURNING,
        LABEL,
        FAR_OUT,
        *_AT_THE_EDGE,
    ]


def longer() -> list[Stage]:
    """What `thorough` adds: every class, and long chains of hops of what came near."""
    chain = replace(_HOPS, steps=60, hops=15, near=0.4, hope=None)
    return [
        Stage(replace(chain, targets=9)),
        Stage(replace(chain, targets=4, radii=(1,), hop_steps=20, hops=40), near=0.25),
        Stage(SMALLER_STEPS, turning=_ALIKE),
        *LONGER,
    ]
