"""Named, versioned attack suites: ordered lists of attacks with their parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from robust.attacks import (
    APGD,
    ATTACKS,
    CW,
    DDN,
    FAB,
    FGSM,
    FMN,
    PGD,
    Attack,
    BasinHopping,
    CommonCorruptions,
    GradientSwaps,
    MultiTargeted,
    Noise,
    PatchPGD,
    SigmaZero,
    SparseRS,
    SpatialGrid,
    Square,
    SquareAscent,
    SwapSearch,
    make_attack,
)
from robust.errors import InputError, UnsupportedError
from robust.registry import Registry
from robust.threat import Threat


@dataclass(frozen=True)
class Stage:
    """An attack of a suite, and which of the survivors it is let at.

    Samples are chosen one by one, by what is known of them alone, so that a verdict never depends on
    who else is in the data. How near a sample is to its boundary is told by its highest margin so far
    as a share of its clean margin: 1 has not moved, 0 is broken.

    Args:
        attack: what to run.
        near: only samples that came within this share; None for all.
        within: only samples of which an adversarial point was seen within this multiple of eps.
        beyond: only samples of which none was seen within this multiple of eps, though searches began farther out: what
            leads nowhere there may be masked.
        ahead: only samples of which searches inside say the boundary is nearer than any point seen: their share is by more
            than this under 1 - eps / distance, which a straight surface has.
        behind: only samples of which a point seen says the boundary is nearer than searches inside do: their share is by
            more than this over 1 - eps / distance. Gradients inside mislead there.
        longer: (passes, share, multiple): only samples on which a minimum-norm search spent more than so many passes, for
            it ends early where it has no hope (of several classes all passes count), and which came within that share or
            were seen broken within that multiple of eps. Of near, within, beyond, ahead, behind, longer, flat and level any
            will do.
        flat: only samples of which all searches so far left more than this share of the clean margin: gradients inside may
            be those of a plateau.
        level: (lead, share): only samples whose other classes are level at the sample, the leading one ahead of the mean of the
            rest by at most this share of the clean margin, and of which all searches so far left more than that share: which
            class is near cannot be told from the logits.
        share: of the other samples, those whose random draw is under this share are seen too.
        unless_behind: of all these, none that is behind by more than this.
        follows: only samples that the stage before brought nearer than they were.
        closer: only samples of which the stage before saw an adversarial point nearer than those before.
    """

    attack: Attack
    near: float | None = None
    within: float | None = None
    beyond: float | None = None
    ahead: float | None = None
    behind: float | None = None
    longer: tuple[int, float, float] | None = None
    flat: float | None = None
    level: tuple[float, float] | None = None
    share: float = 0.0
    unless_behind: float | None = None
    follows: bool = False
    closer: bool = False

    @property
    def selection(self) -> dict[str, Any]:
        """Its conditions, as a record lists them: those that older versions had not only where they are set."""
        conditions = {key: value for key, value in vars(self).items() if key != "attack"}
        return {
            key: value
            for key, value in conditions.items()
            if key not in _LATER or not (value is None or value is False)
        }


_LATER: Final = ("behind", "unless_behind", "closer", "flat", "level")
Suite = Callable[[Threat], list[Stage]]
SUITES: Registry[Suite] = Registry("suite", "robust.suites")
# Raised with any change of what a record lists of a suite's attacks, under any threat; see leaderboard.suite_history.
AND_FMN: Final = "+fmn"  # after the name of a suite that `resolve_minimizing` has added it to
VERSIONS: Final = {"quick": 2, "standard": 31, "thorough": 31, "autoattack": 7, "demo": 1}


# The best searches of the threats that are no norm balls.
_FAMILIES: Final[dict[str, list[Attack]]] = {
    "spatial": [SpatialGrid()],
    "corruptions": [CommonCorruptions()],
    "patch": [PatchPGD(steps=20, places=1), PatchPGD(), Noise()],
}


@SUITES.register("quick")
def quick(threat: Threat) -> list[Stage]:
    """Smoke test: finds broken models, proves nothing.

    linf, l2 and l1: FGSM, then 10 steps on the margin. l0 (version 2): 20 steps of sigma-zero. patch (version 2): 10
    steps at one place. spatial and corruptions (version 2): all there are, as in `standard`.
    """
    short: dict[str, list[Attack]] = {"l0": [SigmaZero(steps=20)], "patch": [PatchPGD(steps=10, places=1)]}
    attacks = short.get(threat.norm) or _FAMILIES.get(threat.norm)
    return _all(*attacks or (FGSM(), PGD(steps=10, loss="margin")))


@SUITES.register("standard")
def standard(threat: Threat) -> list[Stage]:
    """The default: cheap attacks for all, most passes for the samples nearest their boundary.

    linf (version 29): 10 steps each on the margin and on mifpe, 5 towards the likeliest classes, and 12 from outside
    inwards, with hops from the best point of what that brought near, or much nearer than before; 5 on the difference of
    logits ratio towards each class of what has hardly moved, and more of what that brought nearer; from outside towards
    five where the logits do not tell one class from another; 8 towards the other classes of what came near, random search
    as a probe, and of what is near random search and ascents in turns. l2 (version 29): 7 steps on the margin, and FAB,
    which ends early where the surface is straight; 6 from outside towards the likeliest classes; the same ratio; DDN from far
    off where all that was seen is far; ascents and hops from the nearest break outside brought into the ball, ascents from
    far outside inwards and FAB towards more classes where the two disagree or the boundary is near, steps towards nine
    classes, random search as a probe, and of what is near random search and ascents in turns. A survivor costs some tens to
    some hundreds of passes, the more the nearer it is, against some 9,760 of AutoAttack. l1 (version 30): 7 steps on the
    margin, and APGD, which comes in from outside, on the margin; random search for a few values that change by much, and swaps
    of them where that came near; APGD on cross-entropy from 256 times the radius, and from two more starts where that came
    nearer; FAB where they came near, and towards three classes more where nearer; longer ascents from three and four starts of
    what is nearest; longer ones and steps towards nine classes where the logits do not tell; squares as a probe. l0
    (version 31): sigma-zero, and random search for all; a search by swaps where that came nearer, and near; swaps that
    gradients propose and sigma-zero for longer of what came near. spatial and corruptions: all there are. patch (version 15):
    ascent at ten places, and noise, which says whether gradients tell.
    """
    if threat.norm in _FAMILIES:
        return _all(*_FAMILIES[threat.norm])
    if threat.norm == "l0":
        return _l0()
    margin = PGD(steps=7, loss="margin", schedule="cosine", random_start=False)
    if threat.norm in ("l2", "l1"):
        return [Stage(margin), *(_l2() if threat.norm == "l2" else _l1())]
    return [Stage(replace(margin, steps=10)), *_linf()]


_MIFPE: Final = PGD(steps=10, loss="mifpe", schedule="cosine")
# Within the ball: from an ascent that begins a little outside, hops that are wide pushes alone.
_HOPS: Final = BasinHopping(
    steps=20, targets=2, odi_steps=5, radii=(2, 1), near=None, hop_steps=14, hop_odi_steps=0, push=1
)
# For all an ascent from outside. Hops are for what is near, and for what this brought nearer by much than gradients inside
# could: where those are masked, hops break samples that seemed far.
_FROM_OUTSIDE: Final = replace(_HOPS, steps=12, targets=1, odi_steps=0, near=0.2, gained=0.05)
# What squares bring nearer than all gradients did is searched on.
_MOVED: Final = Stage(Square(queries=2000, proposals=8), follows=True)
_PROBE: Final = Square(queries=100, proposals=4)
_WIDE_STARTS: Final = APGD(steps=50, restarts=4, loss="margin", outside=16)
# Where logits hardly move, as on a plateau, the label's own slope leads nowhere. The targeted difference of logits ratio
# leaves it out, as long as the label is ahead, and climbs towards each class by what the others tell. Where all other
# classes are level at the sample, as where one is as unlikely as the next, their order says nothing, and any may break.
_OFF_PLATEAU: Final = Stage(APGD(steps=5, targets=9), flat=0.95, level=(0.1, 0.8))
# What that brought nearer; from outside, where linf looks next, little of what stays farther than this is missed.
_FROM_PLATEAU: Final = Stage(MultiTargeted(steps=5, odi_steps=5, restarts=2), near=0.5, follows=True)


# From outside any of the classes that seem level is seen, as of nets trained on one-hot labels by squares.
_ANY_CLASS: Final = Stage(replace(_HOPS, targets=5, steps=10, hops=0), level=(0.1, 0))


# Of what came within .7 four classes however far they seem: on recurrent nets and mixers it is often one of these that breaks.
_CLASSES: Final = Stage(MultiTargeted(steps=5, odi_steps=1, near=0.5, least=4, worth=0.7))


# Of many classes it may be any of the others, too.
_OTHERS: Final = MultiTargeted(steps=8, odi_steps=1)


# Random search of what is near and of a share of the others; what it brings nearer is searched on.
_PROBED: Final = [Stage(_PROBE, near=0.03, share=0.03), _MOVED]


# From where random search stands ascents reach hills that those from x, from outside and from pushes do not, on rugged
# surfaces more of them than hops at the same cost.
_UP_FROM_SQUARES: Final = SquareAscent(rounds=8, queries=96, steps=16, pace=0.025)
# In l2, where breaks seen outside show most of it, half as much will do.
_FEW_SQUARES: Final = SquareAscent(rounds=4, queries=64, steps=12, pace=0.03)


def _linf() -> list[Stage]:
    return [
        Stage(_MIFPE),
        _CLASSES,
        _OFF_PLATEAU,
        _FROM_PLATEAU,
        _ANY_CLASS,
        Stage(_FROM_OUTSIDE),
        # Three had their turn at all that is near.
        Stage(replace(_OTHERS, skip=3), near=0.1),
        *_PROBED,
        Stage(_UP_FROM_SQUARES, near=0.3),
    ]


# In l2 these are looked at from outside: on a rugged surface more of what is near is seen from three times the radius than
# from within.
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
_TO_BOUNDARY: Final = FAB(steps=60, targets=1, overshoot=1.1, backward=0.8, hope=4, reuse=True)
_SECOND: Final = replace(_TO_BOUNDARY, targets=2, skip=1)
# On nets trained to be certified in linf the plane at the sample may say that the boundary is near, and the first break yet lie
# as far as the box goes. From there large steps whose norm shrinks find the way in, where FAB's stay; of what they brought
# nearer others find more.
_SHRINKING: Final = DDN(steps=50, gamma=0.15, growth=0.05, far=True, hope=30)
_FROM_AFAR: Final = [
    Stage(_SHRINKING, beyond=2.5),
    Stage(replace(_SHRINKING, loss="margin"), closer=True),
    Stage(replace(_SHRINKING, steps=60, gamma=0.1, growth=0.1), closer=True),
]
# As in the paper: less far over the plane, and drawn back less after a step; finer, for what is near.
_FINER: Final = replace(_TO_BOUNDARY, targets=4, skip=1, overshoot=1.05, backward=0.9, abreast=True)
# Of _TO_BOUNDARY ten steps, 23 passes and one to judge, are enough where surfaces are nearly straight. Where it goes on
# and neither its breaks nor the margin come near, ascents from far find nothing.
_UNSETTLED: Final = (24, 0.7, 1.5)


def _l2() -> list[Stage]:
    return [
        Stage(_TO_BOUNDARY),
        _CLASSES_OUTSIDE,
        _OFF_PLATEAU,
        replace(_FROM_PLATEAU, near=0.9),
        *_FROM_AFAR,
        Stage(_SECOND, within=1.5, ahead=0.1, behind=0.25),
        # Where gradients inside see nothing, the boundary is found from outside or not at all.
        Stage(replace(_TO_BOUNDARY, targets=6, skip=2, abreast=True), behind=0.55),
        _FROM_BREAK,
        Stage(_FAR, near=0.3, within=1.2, beyond=5, ahead=0.1, longer=_UNSETTLED, unless_behind=0.15),
        # The likeliest class need not be the nearest, least of all where gradients mislead, as in l2 on nets trained for linf.
        Stage(_FINER, within=1.13, ahead=0.1),
        _FROM_CLOSER,
        Stage(replace(_FAR, near=0.15, hops=4), near=0.13, ahead=0.1),
        Stage(_OTHERS, near=0.05),
        *_PROBED,
        Stage(_FEW_SQUARES, near=0.1),
    ]


def _standard_below(threat: Threat) -> list[Stage]:
    """`standard` (linf, l2) for samples that broke at a radius not much larger.

    Ascent begins at that break, moved into the ball. So other starts within are for what it brings near alone, and long
    searches are short here; where gradients within are masked, ascents from outside alone tell who is near. All are near
    here, so that random search, with ascents in turns and without, is for the nearest.
    """
    margin = PGD(steps=10, step_size=0.25, loss="margin", schedule="cosine", random_start=False)
    if threat.norm == "l2":
        return [
            Stage(margin),
            Stage(_NEARER, near=0.25),
            Stage(replace(_TO_BOUNDARY, hope=None), near=0.15),
            _CLASSES_OUTSIDE,
            _OFF_PLATEAU,
            replace(_FROM_PLATEAU, near=0.9),
            _FROM_BREAK,
            Stage(replace(_FAR, steps=27, hops=4), near=0.2),
            Stage(_MIFPE, near=0.15),
            Stage(_FEW_SQUARES, near=0.1),
            Stage(_PROBE, near=0.06, share=0.05),
            _MOVED,
        ]
    return [
        Stage(margin),
        Stage(_MIFPE, near=0.5),
        _CLASSES,
        _OFF_PLATEAU,
        _FROM_PLATEAU,
        _ANY_CLASS,
        Stage(_FROM_OUTSIDE),
        Stage(_UP_FROM_SQUARES, near=0.1),
        Stage(Square(queries=48, proposals=4), near=0.1),
        _MOVED,
    ]


# In l1 a few values that change by much: where they come near, and nearer than ascents did, swaps of one for another. On some
# nets that answer beyond a threshold they break much of what ascents leave, on most next to nothing, as their first queries tell.
_BY_FEW_VALUES: Final = SparseRS(queries=1500, proposals=4, early=0.12, spread=1.25)
_SWAPS: Final = SwapSearch(pace=0.15, spread=1.25)
# From far beyond the box inwards, on a loss that sees every class: where gradients near the sample vanish or mislead, as on
# Madry's nets and on units that are dead, this finds what starts nearby do not.
_FAR_OUTSIDE: Final = APGD(steps=27, outside=256)


def _l1() -> list[Stage]:
    return [
        Stage(APGD(steps=15, loss="margin", outside=4)),
        Stage(_BY_FEW_VALUES),
        Stage(_SWAPS, near=0.35, follows=True),
        Stage(_FAR_OUTSIDE),
        Stage(replace(_FAR_OUTSIDE, steps=20, restarts=2), follows=True),
        # In few dimensions, where ascents in l1 zigzag, projections to the boundary find more.
        Stage(_TO_BOUNDARY, near=0.5),
        Stage(replace(_TO_BOUNDARY, targets=4, skip=1), near=0.3),
        # Without momentum it is the starts that tell.
        Stage(APGD(steps=40, restarts=3, loss="margin", outside=4), near=0.3),
        Stage(_WIDE_STARTS, near=0.15),
        # Where any class may break: at small radii longer ascents find it, at larger ones an ascent towards each.
        Stage(APGD(steps=50, restarts=2), level=(0.1, 0)),
        Stage(MultiTargeted(steps=12, odi_steps=1, radii=(4, 1)), level=(0.1, 0)),
        *_PROBED,
    ]


# What has found nothing within half of the clean margin after a fifth of the queries seldom finds more.
_SPARSE: Final = SparseRS(queries=2000, proposals=4, pace=0.1)


def _l0() -> list[Stage]:
    """Random search and exact effects for masked gradients; where these tell, swaps by gradients and longer descents find more."""
    return [
        Stage(SigmaZero()),
        Stage(_SPARSE),
        # What single values do, measured, goes on where random search came nearer than gradients.
        Stage(SwapSearch(), near=0.3, follows=True),
        Stage(GradientSwaps(pace=0.1), near=0.6),
        Stage(SigmaZero(steps=600), near=0.5),
    ]


@SUITES.register("thorough")
def thorough(threat: Threat) -> list[Stage]:
    """For claims: `standard`, then longer searches against every class, and long chains of them where one came near.

    linf and l2 (version 29): a longer ascent towards each class with hops where it came near, one or two long chains of
    hops of what is near, APGD on two losses and 1,000 queries of random search for all; 5,000 queries
    where the 1,000 brought a sample nearer. l1 (version 30) and l0 (version 31): the long forms of the same attacks.
    """
    if threat.norm in _FAMILIES:
        return standard(threat)
    if threat.norm not in ("linf", "l2"):
        return [*standard(threat), *(_longer_l0() if threat.norm == "l0" else _longer_l1())]
    return [*standard(threat), *_longer(threat)]


def _thorough_below(threat: Threat) -> list[Stage]:
    return [*_standard_below(threat), *_longer(threat)]


def _longer(threat: Threat) -> list[Stage]:
    return [
        *(_longer_l2() if threat.norm == "l2" else _longer_linf()),
        *_all(APGD(), APGD(loss="dlr")),
        Stage(SquareAscent(rounds=12), near=0.4),
        *_WIDENED,
    ]


# Random search for all, and of what it brought nearer five times as long.
_WIDENED: Final = [
    Stage(Square(queries=1000, proposals=4)),
    Stage(Square(queries=5000, proposals=8), follows=True),
]


def _longer_linf() -> list[Stage]:
    chain = replace(_HOPS, steps=60, hops=15, near=0.4, hope=None)
    return [
        Stage(replace(chain, targets=9)),
        Stage(replace(chain, targets=4, radii=(1,), hop_steps=20, hops=40), near=0.25),
    ]


def _longer_l2() -> list[Stage]:
    chain = BasinHopping(steps=60, targets=9, radii=(4, 3, 2, 1.5, 1), hops=20, near=0.4, hope=None)
    return [
        Stage(chain),
        # On nets trained to be certified in linf any class may be the one whose boundary is near in l2.
        Stage(FAB(), near=0.95),
        Stage(replace(chain, targets=4, radii=(6, 4, 2.5, 1.6, 1.2, 1), hop_steps=20), near=0.4),
        Stage(replace(chain, targets=4, odi_steps=5, hop_steps=25), near=0.25),
    ]


def _longer_l1() -> list[Stage]:
    wide = MultiTargeted(steps=60, restarts=3, random_start=True, radii=(3, 2, 1))
    searches = APGD(restarts=5), replace(_WIDE_STARTS, steps=60, restarts=9), APGD(targets=9), FAB(), wide
    swaps = [replace(_SWAPS, queries=8000, pace=None, spread=spread) for spread in (1, 1.5)]
    return [*_all(*searches), *(Stage(search, near=0.4) for search in swaps), *_WIDENED]


def _longer_l0() -> list[Stage]:
    return _all(
        SigmaZero(steps=1000),
        SigmaZero(steps=500, targets=9),
        GradientSwaps(rounds=200),
        SparseRS(queries=10_000, proposals=4),
        SwapSearch(queries=10_000),
    )


@SUITES.register("autoattack")
def autoattack(threat: Threat) -> list[Stage]:
    """AutoAttack's four components in its order and with its budgets (linf, l2 and l1)."""
    if threat.norm == "l1":
        return _all(APGD(restarts=5), APGD(targets=5), FAB(), Square(stretched=False))
    return _all(APGD(), APGD(targets=9), FAB(), Square(stretched=False))


@SUITES.register("demo")
def demo(threat: Threat) -> list[Stage]:
    """The demonstration's attacks: FGSM, PGD on cross-entropy and margin, CW where the norm is l2."""
    attacks: list[Attack] = [FGSM(), PGD(steps=20), PGD(steps=20, loss="margin")]
    return _all(*attacks, *([CW(steps=30, binary_search_steps=3)] if threat.norm == "l2" else []))


def _all(*attacks: Attack) -> list[Stage]:
    return [Stage(attack) for attack in attacks]


_BELOW: Final[dict[str, Suite]] = {"standard": _standard_below, "thorough": _thorough_below}


def resolve_below(suite: Any, threat: Threat) -> list[Stage] | None:
    """Stages of a suite for samples of which an adversarial example a little beyond the threat is at hand.

    They are to be run with that example as the start (`attack_part`, near). None where the suite has no such
    stages: then those of `resolve` are to be run.
    """
    if not isinstance(suite, str) or suite not in _BELOW or threat.norm not in ("linf", "l2"):
        return None
    return _BELOW[suite](threat)


def resolve(
    suite: str | Attack | Mapping[str, Any] | Iterable[str | Attack | Mapping[str, Any]], threat: Threat
) -> tuple[str, list[Stage]]:
    """Name and stages of a suite name, one attack, or a list of attacks; all checked against the threat.

    Raises:
        UnknownNameError: no such suite or attack.
        UnsupportedError: an attack does not know the threat's norm.
        InputError: an empty list, or none of these.
    """
    if isinstance(suite, str) and suite not in ATTACKS and ":" not in suite:
        name, stages = suite, SUITES[suite](threat)
    elif isinstance(suite, str | Attack | Mapping):
        stages = _all(make_attack(suite))
        name = stages[0].attack.label
    elif not isinstance(suite, Iterable) or isinstance(suite, type):
        raise InputError(
            f"suite: expected the name of a suite or attack, an attack, or a list of attacks, got {suite!r}"
        )
    else:
        stages = _all(*(make_attack(item) for item in suite))
        name = "+".join(stage.attack.label for stage in stages)
    if not stages:
        raise InputError("suite: expected at least one attack, got an empty list")
    for stage in stages:
        if name in SUITES and threat.norm not in stage.attack.norms:
            raise UnsupportedError(
                f"suite {name!r} has {stage.attack.name!r}, which works for {', '.join(stage.attack.norms)}, not for {threat.norm} "
                f"(threat {threat}); 'standard' is for every threat"
            )
        stage.attack.check(threat)
    return name, stages


def resolve_minimizing(
    suite: str | Attack | Mapping[str, Any] | Iterable[str | Attack | Mapping[str, Any]], threat: Threat
) -> tuple[str, list[Stage]]:
    """As `resolve`; where a suite searches at eps alone, FMN too: else a curve would show no break at any smaller radius."""
    name, stages = resolve(suite, threat)
    unlimited = any(stage.attack.minimum_norm for stage in stages)
    if name not in SUITES or threat.norm not in FMN.norms or unlimited:
        return name, stages
    return name + AND_FMN, [*stages, Stage(FMN())]


def version_of(name: str) -> int | None:
    """The version that is installed of a suite, with FMN added or without; None where it has no versions."""
    return VERSIONS.get(name.removesuffix(AND_FMN))
