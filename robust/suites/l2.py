"""Plans in l2."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from robust.attacks import APGD, DDN, FAB, PGD, BasinHopping, SmoothedAscent, SquareAscent
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
    PROBE,
    PROBED,
    SHRUNK,
    SMALL_STEPS,
    SMALLER_STEPS,
    TO_BOUNDARY,
    turning,
)
from robust.suites.stage import Stage

_ALIKE: Final = 0.35  # here gradients of nets trained for linf agree less, too
_TURNING: Final = turning(_ALIKE, near=0.1, nearer=0.04)

# Where searches inside say that the boundary is much nearer than any point seen outside, minimum-norm searches fail, as on a
# surface that bends over less than the way; there long ascents by small steps gain.
_FAR_AHEAD: Final = [
    Stage(SMALL_STEPS, ahead=0.15),
    Stage(replace(SMALL_STEPS, steps=320, step_size=0.07), near=0.5, follows=True),
]

# Towards single classes ascents begin outside, not within as in linf: on a rugged surface more of what is near is seen from
# three times the radius.
_CLASSES_OUTSIDE: Final = Stage(
    BasinHopping(steps=6, targets=5, odi_steps=1, radii=(3, 1), worth=0.7, near=None, hops=0)
)
# From the far ends of the box inwards, and from less far.
_FAR: Final = BasinHopping(
    steps=50, targets=1, radii=(20, 12, 8, 5, 3, 2, 1.5, 1.2, 1), near=0.2, hops=8, hop_steps=10
)
_NEARER: Final = BasinHopping(steps=30, targets=2, worth=0.5, near=0.2)
# From the nearest break outside, brought into the ball: where it stands tells what gradients inside do not.
_INWARD: Final = BasinHopping(
    inward=True, steps=10, targets=1, odi_steps=0, radii=(1,), near=0.25, hops=8, hop_steps=6, hop_odi_steps=1, hope=4
)  # fmt: skip
_FROM_BREAK: Final = Stage(_INWARD, within=1.4)
_FROM_CLOSER: Final = Stage(_INWARD, within=1.5, closer=True)
_SECOND: Final = replace(TO_BOUNDARY, targets=2, skip=1)
# On nets trained to be certified in linf the plane at the sample may say that the boundary is near, and the first break yet lie
# as far as the box goes. From there large steps whose norm shrinks find the way in, where FAB's stay; of what they brought
# near others find more. What no search inside has moved at all they hardly ever reach.
_SHRINKING: Final = DDN(steps=50, gamma=0.15, growth=0.05, far=True, hope=30)
_FROM_AFAR: Final = [
    Stage(_SHRINKING, beyond=2.5, unless_far=0.97),
    Stage(replace(_SHRINKING, loss="margin"), within=2, closer=True),
    Stage(replace(_SHRINKING, steps=60, gamma=0.1, growth=0.1), within=1.5, closer=True),
]
# Of TO_BOUNDARY ten steps, 23 passes and one to judge, are enough where surfaces are nearly straight. Where it goes on
# and neither its breaks nor the margin come near, ascents from far find nothing; and of what searches inside left far next to none.
_UNSETTLED: Final = (24, 0.7, 1.5)
_FROM_FAR: Final = Stage(
    _FAR, near=0.3, within=1.2, beyond=5, ahead=0.1, longer=_UNSETTLED, unless_behind=0.15, unless_far=0.5
)  # fmt: skip
# Where gradients turn from step to step, as in l2 on nets trained for linf, the mean over wide noise leads on, from far off at first.
# What is next to the boundary then gets another, though noise alone undo the label there.
_UNDER_NOISE: Final = [
    Stage(SmoothedAscent(steps=40, copies=2, stands=0.45), near=0.5, turning=0.9),
    Stage(SmoothedAscent(steps=40, copies=2), near=0.1, turning=0.9),
]
# Where breaks seen outside show most of it, half as much as in linf will do.
_FEW_SQUARES: Final = SquareAscent(rounds=4, queries=64, steps=12, pace=0.03)


def standard() -> list[Stage]:
    """Where the boundary is, seen from outside; long searches where that and what is seen inside disagree, or it is near."""
    return [
        Stage(PGD(steps=7, loss="margin", schedule="cosine", random_start=False)),
        *SHRUNK,
        Stage(TO_BOUNDARY),
        _CLASSES_OUTSIDE,
        LABEL,
        OFF_PLATEAU,
        replace(FROM_PLATEAU, near=0.9),
        *_FROM_AFAR,
        Stage(_SECOND, within=1.5, ahead=0.1, behind=0.25),
        # Where gradients inside see nothing, the boundary is found from outside or not at all.
        Stage(replace(TO_BOUNDARY, targets=6, skip=2, abreast=True), behind=0.55),
        _FROM_BREAK,
        _FROM_FAR,
        _FROM_CLOSER,
        *_TURNING,
        *_FAR_AHEAD,
        FAR_OUT,
        FARTHER_OUT,
        *_UNDER_NOISE,
        Stage(OTHERS, near=0.05),
        # On nets of Gaussian units, as for tables of few columns, where classes are nearly level, steps towards the likeliest.
        Stage(APGD(steps=20, targets=3), level=(0.2, 0), unless_far=0.15),
        *PROBED,
        Stage(_FEW_SQUARES, near=0.1),
    ]


def below() -> list[Stage]:
    """`standard` for samples that broke at a radius not much larger: see `robust.suites.resolve_below`."""
    margin = PGD(steps=10, step_size=0.25, loss="margin", schedule="cosine", random_start=False)
    return [
        Stage(margin),
        *SHRUNK,
        Stage(_NEARER, near=0.25),
        Stage(replace(TO_BOUNDARY, hope=None), near=0.15),
        _CLASSES_OUTSIDE,
        OFF_PLATEAU,
        replace(FROM_PLATEAU, near=0.9),
        _FROM_BREAK,
        Stage(replace(_FAR, steps=27, hops=4), near=0.2),
        Stage(MIFPE, near=0.15),
        Stage(_FEW_SQUARES, near=0.1),
        Stage(PROBE, near=0.06, share=0.05),
        MOVED,
        *_TURNING,
        *_UNDER_NOISE,
        LABEL,
        FAR_OUT,
    ]


def longer() -> list[Stage]:
    """What `thorough` adds: every class from far outside, and long chains of hops of what came near."""
    chain = BasinHopping(steps=60, targets=9, radii=(4, 3, 2, 1.5, 1), hops=20, near=0.4, hope=None)
    return [
        Stage(chain),
        # On nets trained to be certified in linf any class may be the one whose boundary is near in l2.
        Stage(FAB(), near=0.95),
        Stage(replace(chain, targets=4, radii=(6, 4, 2.5, 1.6, 1.2, 1), hop_steps=20), near=0.4),
        Stage(replace(chain, targets=4, odi_steps=5, hop_steps=25), near=0.25),
        Stage(SMALLER_STEPS, turning=_ALIKE),
        *LONGER,
    ]
