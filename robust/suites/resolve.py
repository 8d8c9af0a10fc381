"""From what a caller names to stages that are checked against the threat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from robust.attacks import ATTACKS, FMN, Attack, make_attack
from robust.errors import InputError, UnknownNameError, UnsupportedError
from robust.registry import nearest
from robust.suites import l2, linf
from robust.suites.named import SUITES, VERSIONS
from robust.suites.stage import Stage, for_all
from robust.threat import Threat

AND_FMN: Final = "+fmn"  # after the name of a suite that `resolve_minimizing` has added it to


def resolve_below(suite: Any, threat: Threat) -> list[Stage] | None:
    """Stages of a suite for samples of which an adversarial example a little beyond the threat is at hand.

    They are to be run with that example as the start (`attack_part`, near): ascent begins there, moved into the ball. So
    other starts within are for what it brings near alone, and long searches are short. All are near, so that random search,
    with ascents in turns and without, is for the nearest. None where the suite has no such stages: then those of `resolve`
    are to be run.
    """
    plan = {"linf": linf, "l2": l2}.get(threat.norm)
    if plan is None or suite not in ("standard", "thorough"):
        return None
    return [*plan.below(), *(plan.longer() if suite == "thorough" else ())]


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
        name, stages = suite, _suite(suite)(threat)
    elif isinstance(suite, str | Attack | Mapping):
        stages = for_all(make_attack(suite))
        name = stages[0].attack.label
    elif not isinstance(suite, Iterable) or isinstance(suite, type):
        raise InputError(
            f"suite: expected the name of a suite or attack, an attack, or a list of attacks, got {suite!r}"
        )
    else:
        stages = for_all(*(make_single(item) for item in suite))
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


def make_single(item: str | Attack | Mapping[str, Any], **options: object) -> Attack:
    """As `make_attack`; the name of a suite is told as what it is.

    Raises:
        InputError: a suite's name, or what `make_attack` refuses.
    """
    if isinstance(item, str) and item in SUITES and item not in ATTACKS:
        raise InputError(
            f"attack: {item!r} is a suite of attacks; give it alone, as the suite (--suite {item}, suite={item!r})"
        )
    return make_attack(item, **options)


def _suite(name: str) -> Callable[[Threat], list[Stage]]:
    """The suite of this name. An attack's name would have done too, so that a miss looks among both."""
    try:
        return SUITES[name]
    except UnknownNameError as error:
        near = nearest(name, [*SUITES, *ATTACKS])
        if near is None:
            hint = f"known: {', '.join(SUITES)}, and every attack (`robust list attacks`)"
        else:
            hint = f"did you mean {'the attack ' if near in ATTACKS else ''}{near!r}?"
        raise UnknownNameError(f"unknown suite {name!r}; {hint}") from error


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
