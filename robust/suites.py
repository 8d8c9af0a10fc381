"""Named, versioned attack suites: ordered lists of attacks with their parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from robust.attacks import ATTACKS, CW, FGSM, PGD, Attack, make_attack
from robust.errors import InputError
from robust.registry import Registry
from robust.threat import Threat

Suite = Callable[[Threat], list[Attack]]
SUITES: Registry[Suite] = Registry("suite", "robust.suites")


@SUITES.register("quick")
def quick(threat: Threat) -> list[Attack]:
    """Smoke test: FGSM, then 10 steps on the margin. Finds broken models, proves nothing."""
    return [FGSM(), PGD(steps=10, loss="margin")]


@SUITES.register("demo")
def demo(threat: Threat) -> list[Attack]:
    """The demonstration's attacks: FGSM, PGD on cross-entropy and margin, CW where the norm is l2."""
    attacks: list[Attack] = [FGSM(), PGD(steps=20), PGD(steps=20, loss="margin")]
    return [*attacks, CW(steps=40, binary_search_steps=5)] if threat.norm == "l2" else attacks


def resolve(
    suite: str | Attack | Mapping[str, Any] | Iterable[str | Attack | Mapping[str, Any]], threat: Threat
) -> tuple[str, list[Attack]]:
    """Name and attacks of a suite name, one attack, or a list of attacks; all checked against the threat.

    Raises:
        UnknownNameError: no such suite or attack.
        UnsupportedError: an attack does not know the threat's norm.
        InputError: an empty list.
    """
    if isinstance(suite, str) and suite not in ATTACKS:
        name, attacks = suite, SUITES[suite](threat)
    elif isinstance(suite, str | Attack | Mapping):
        attacks = [make_attack(suite)]
        name = attacks[0].label
    else:
        attacks = [make_attack(item) for item in suite]
        name = "+".join(attack.label for attack in attacks)
    if not attacks:
        raise InputError("suite: expected at least one attack, got an empty list")
    for attack in attacks:
        attack.check(threat)
    return name, attacks
