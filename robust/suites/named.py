"""The suites by name, and their versions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from robust.attacks import (
    APGD,
    CW,
    FAB,
    FGSM,
    PGD,
    Attack,
    CommonCorruptions,
    Noise,
    PatchPGD,
    SigmaZero,
    SpatialGrid,
    Square,
)
from robust.registry import Registry
from robust.suites import l0, l1, l2, linf
from robust.suites.stage import Stage, for_all
from robust.threat import Threat

Suite = Callable[[Threat], list[Stage]]
SUITES: Registry[Suite] = Registry("suite", "robust.suites")
# Raised with any change of what a record lists of a suite's attacks, under any threat; see leaderboard.suite_history.
VERSIONS: Final = {"quick": 2, "standard": 37, "thorough": 37, "autoattack": 7, "demo": 1}


class _Plan(Protocol):
    """A module with what the suites run in a norm ball."""

    def standard(self) -> list[Stage]: ...
    def longer(self) -> list[Stage]: ...


_PLANS: Final[dict[str, _Plan]] = {"linf": linf, "l2": l2, "l1": l1, "l0": l0}
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
    return for_all(*attacks or (FGSM(), PGD(steps=10, loss="margin")))


@SUITES.register("standard")
def standard(threat: Threat) -> list[Stage]:
    """The default: cheap attacks for all, most passes for the samples nearest their boundary.

    linf (version 37): 10 steps on the margin and 8 on mifpe, 5 towards the likeliest classes, and 12 from outside
    inwards, with hops from the best point of what that brought near, or much nearer than before; 5 on the difference
    of logits ratio towards each class of what has hardly moved, and more of what that brought nearer; from outside
    towards nine where the logits do not tell one class from another; 8 towards the other classes of what came near,
    random search as a probe, and of what is near random search and ascents in turns, while these do not all end on one
    top, with more hops and longer walks of squares of what is nearest. l2 (version 37): 7 steps on the margin, and
    FAB, which ends early where the surface is straight; 6 from outside towards the likeliest classes; the same ratio;
    DDN from far off where all that was seen is far; ascents and hops from the nearest break outside brought into the
    ball, ascents from far outside inwards and FAB towards more classes where the two disagree or the boundary is near,
    steps towards nine classes, and APGD towards three where they are nearly level, random search as a probe, and of
    what is near random search and ascents in turns. A survivor costs some tens to some hundreds of passes, the more
    the nearer it is, against some 9,760 of AutoAttack. l1 (version 37): 7 steps on the margin, and APGD, which comes
    in from outside, on the margin; random search for a few values that change by much, and swaps of them where that
    came near; APGD on cross-entropy from 256 times the radius, and from two more starts where that came nearer; FAB
    where they came near, and towards three classes more where nearer; longer ascents from three and four starts of
    what is nearest; longer ones and steps towards nine classes where the logits do not tell; ascents from inside while
    they bring it nearer, and from four starts of what is nearest where gradients turn at all; squares as a probe. In
    all three 20 steps on the difference of logits ratio of what has its logits shrink; 6 on the label's own logit of
    what stays far, and a look at it from far out; in linf and l2 40 small steps of what has its gradients turn from
    step to step (l2: or searches inside far ahead of breaks outside), more of what these brought nearer, and APGD and
    squares with ascents of what is near; in l2 ascents on the mean over noise that narrows of what came near and has
    them turn a little. l0 (version 31): sigma-zero, and random search for all; a search by swaps where that came
    nearer, and near; swaps that gradients propose and sigma-zero for longer of what came near. spatial and
    corruptions: all there are. patch (version 15): ascent at ten places, and noise, which says whether gradients tell.
    """
    if threat.norm in _FAMILIES:
        return for_all(*_FAMILIES[threat.norm])
    return _PLANS[threat.norm].standard()


@SUITES.register("thorough")
def thorough(threat: Threat) -> list[Stage]:
    """For claims: `standard`, then longer searches against every class, and long chains of them where one came near.

    linf and l2 (version 37): a longer ascent towards each class with hops where it came near, one or two long chains
    of hops of what is near, 500 small steps of what has its gradients turn, APGD on two losses, a longer look from far
    out, ascents on the mean over noise of what came near, and 1,000 queries of random search for all; 5,000 queries
    where the 1,000 brought a sample nearer. l1 (version 37) and l0 (version 31): the long forms of the same attacks.
    """
    if threat.norm in _FAMILIES:
        return standard(threat)
    return [*standard(threat), *_PLANS[threat.norm].longer()]


@SUITES.register("autoattack")
def autoattack(threat: Threat) -> list[Stage]:
    """AutoAttack's four components in its order and with its budgets (linf, l2 and l1)."""
    if threat.norm == "l1":
        return for_all(APGD(restarts=5), APGD(targets=5), FAB(), Square(stretched=False))
    return for_all(APGD(), APGD(targets=9), FAB(), Square(stretched=False))


@SUITES.register("demo")
def demo(threat: Threat) -> list[Stage]:
    """The demonstration's attacks: FGSM, PGD on cross-entropy and margin, CW where the norm is l2."""
    attacks: list[Attack] = [FGSM(), PGD(steps=20), PGD(steps=20, loss="margin")]
    return for_all(*attacks, *([CW(steps=30, binary_search_steps=3)] if threat.norm == "l2" else []))
