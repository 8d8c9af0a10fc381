"""Random noise, the floor of all attacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import random_boundary_start, random_start
from robust.errors import InputError
from robust.oracle import Access, Oracle


@ATTACKS.register("noise")
@dataclass(frozen=True)
class Noise(Attack):
    """Random points of the threat: what any attack must beat (the floor in Carlini et al. 2019, arXiv 1902.06705).

    In turn a point drawn uniformly from the threat set and one from its edge (linf: its corners). Where
    this breaks what gradient attacks left, gradients are masked.

    Args:
        queries: points, each a forward pass, >= 1.
    """

    name: ClassVar[str] = "noise"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "decision"
    paper: ClassVar[str] = "Carlini et al. 2019"

    queries: int = 100

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise InputError(f"noise: expected queries >= 1, got {self.queries}")

    def run(self, oracle: Oracle) -> None:
        threat = oracle.threat
        for query in oracle.steps(self.queries):
            streams = oracle.random(query)
            if query % 2 == 0:
                oracle.decide(random_start(oracle.x, threat, streams))
            elif threat.norm == "linf":
                corner = streams.integers(oracle.x.shape[1:], 0, 2) * 2 - 1
                oracle.decide(oracle.project(oracle.x + threat.radius * corner))
            else:
                oracle.decide(random_boundary_start(oracle.x, threat, streams))
