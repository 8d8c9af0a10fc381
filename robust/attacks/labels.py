"""Attack labels, such as "pgd(steps=20,loss=margin)", in as few words as tell them apart."""

from __future__ import annotations

import re
from typing import Final

_TOLD: Final = 3  # parameters that a head has room for
_LIST: Final = re.compile(r"\(([^,()]+), (?:.*, )?([^,()]+)\)")


def told_apart(labels: list[str]) -> list[list[str]]:
    """Lines for each attack label: its name, and the parameters that tell attacks of one name apart.

    Of a list of values the ends are shown. Attacks of a name that differ in many parameters are numbered in their order; whole
    labels where the lines do not tell them apart.
    """
    names = [label.partition("(")[0] for label in labels]
    options = [_options(label) for label in labels]
    heads = []
    for name, own in zip(names, options, strict=True):
        same = [set(other) for peer, other in zip(names, options, strict=True) if peer == name]
        shared = set.intersection(*same)
        heads.append([name, *(_LIST.sub(r"(\1..\2)", option) for option in own if option not in shared)])
    long = {head[0] for head in heads if len(head) > 1 + _TOLD}
    heads = [
        [name, f"#{1 + names[:place].count(name)}"] if name in long else head
        for place, (name, head) in enumerate(zip(names, heads, strict=True))
    ]
    return heads if len({*map(tuple, heads)}) == len(heads) else [[label] for label in labels]


def _options(label: str) -> list[str]:
    """The options of a label: those of "a(b=1,c=(2, 3))" are "b=1" and "c=(2, 3)"."""
    inside = label.partition("(")[2].removesuffix(")")
    return re.split(r",(?! )", inside) if inside else []
