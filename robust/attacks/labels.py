"""Attack labels, such as "pgd(steps=20,loss=margin)", in as few words as tell them apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

_TOLD: Final = 3  # parameters that a head has room for
_LIST: Final = re.compile(r"\(([^,()]+), (?:.*, )?([^,()]+)\)")


def told_apart(
    labels: list[str], *, beside: int = 0, parameters: Sequence[Mapping[str, Any]] = ()
) -> list[list[str]]:
    """Lines for each attack label: its name, and the parameters that tell attacks of one name apart.

    Of a list of values the ends are shown. Attacks of a name that differ in many parameters, or some of whose labels are the same,
    are numbered in their order; whole labels where the lines do not tell them apart.

    Args:
        beside: so many parameters at most are shown beside a number, those that tell the most of these attacks apart.
        parameters: of each attack all that there are, from which one is shown that is at its default, where all of those are.
    """
    names = [label.partition("(")[0] for label in labels]
    options = [[_LIST.sub(r"(\1..\2)", option) for option in _options(label)] for label in labels]
    same = {name: [own for peer, own in zip(names, options, strict=True) if peer == name] for name in names}
    shared = {name: set.intersection(*map(set, peers)) for name, peers in same.items()}
    heads = [
        [name, *(option for option in own if option not in shared[name])]
        for name, own in zip(names, options, strict=True)
    ]
    numbered = {
        head[0]: _telling(same[head[0]], beside)
        for head, label in zip(heads, labels, strict=True)
        if len(head) > 1 + _TOLD or labels.count(label) > 1
    }
    heads = [
        [
            name,
            f"#{1 + names[:place].count(name)}",
            *(_shown(own, numbered[name], parameters[place] if parameters else {})),
        ]
        if name in numbered
        else head
        for place, (name, own, head) in enumerate(zip(names, options, heads, strict=True))
    ]
    return heads if len({*map(tuple, heads)}) == len(heads) else [[label] for label in labels]


def _telling(attacks: list[list[str]], most: int) -> list[str]:
    """Few of the parameters in these lists of options: each time the one by which most attacks are told apart."""

    def kinds(parameters: list[str]) -> int:
        return len({tuple(o for o in own if _parameter(o) in parameters) for own in attacks})

    every = list(dict.fromkeys(_parameter(option) for own in attacks for option in own))
    chosen: list[str] = []
    while len(chosen) < most and kinds(chosen) < kinds(every):
        chosen.append(max(every, key=lambda parameter: kinds([*chosen, parameter])))
    return chosen


def _shown(own: list[str], telling: list[str], parameters: Mapping[str, Any]) -> list[str]:
    """An attack's options of the telling parameters; where it has none, as all are at their defaults, the first of these."""
    changed = [option for option in own if _parameter(option) in telling]
    return changed or [f"{name}={parameters[name]}" for name in telling[:1] if name in parameters]


def _parameter(option: str) -> str:
    return option.partition("=")[0]


def _options(label: str) -> list[str]:
    """The options of a label: those of "a(b=1,c=(2, 3))" are "b=1" and "c=(2, 3)"."""
    inside = label.partition("(")[2].removesuffix(")")
    return re.split(r",(?![ )])", inside) if inside else []
