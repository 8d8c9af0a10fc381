"""Threats of finitely many transformations, tried one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robust.attacks.base import ATTACKS, Attack
from robust.families import FiniteFamily
from robust.oracle import Access, Oracle


class _Enumerate(Attack):
    """Every member of the threat, the smallest first: brute force, which no masking withstands."""

    access: ClassVar[Access] = "decision"

    def run(self, oracle: Oracle) -> None:
        family = oracle.threat.family
        assert isinstance(family, FiniteFamily)
        for index in oracle.steps(len(family.sizes)):
            oracle.decide(family.member(oracle.x, index, oracle.threat.bounds))


@ATTACKS.register("spatial")
@dataclass(frozen=True)
class SpatialGrid(_Enumerate):
    """Every rotation and shift of the threat's grid (Engstrom et al. 2019, arXiv 1712.02779), smallest first."""

    name: ClassVar[str] = "spatial"
    norms: ClassVar[tuple[str, ...]] = ("spatial",)
    paper: ClassVar[str] = "Engstrom et al. 2019"


@ATTACKS.register("corruptions")
@dataclass(frozen=True)
class CommonCorruptions(_Enumerate):
    """Every corruption of the threat's severities (Hendrycks & Dietterich 2019, arXiv 1903.12261), mildest first.

    A sample stands if it is right under all of them. For the mean over kinds and severities, the figure
    that is usually published, see `robust.corruption_accuracy`.
    """

    name: ClassVar[str] = "corruptions"
    norms: ClassVar[tuple[str, ...]] = ("corruptions",)
    paper: ClassVar[str] = "Hendrycks & Dietterich 2019"
