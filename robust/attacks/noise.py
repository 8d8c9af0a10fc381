"""Random noise, the floor of all attacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import random_boundary_start, random_start
from robust.errors import InputError
from robust.families import Patch
from robust.oracle import Access, Oracle
from robust.threat import Threat


@ATTACKS.register("noise")
@dataclass(frozen=True)
class Noise(Attack):
    """Random points of the threat: what any attack must beat (the floor in Carlini et al. 2019, arXiv 1902.06705).

    In turn a point drawn uniformly from the threat set and one from its edge (linf: its corners; patch: the ends
    of the box at a random place). Where
    this breaks what gradient attacks left, gradients are masked.

    Args:
        queries: points, each a forward pass, >= 1.
    """

    name: ClassVar[str] = "noise"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "patch")
    access: ClassVar[Access] = "decision"
    paper: ClassVar[str] = "Carlini et al. 2019"

    queries: int = 100

    def __post_init__(self) -> None:
        self.check_numbers()
        if self.queries < 1:
            raise InputError(f"noise: expected queries >= 1, got {self.queries}")

    def run(self, oracle: Oracle) -> None:
        threat = oracle.threat
        for query in oracle.steps(self.queries):
            streams = oracle.random(query)
            if isinstance(threat.family, Patch):
                inside = threat.family.random_window(oracle.x, streams)
                noise = streams.child("pixels").uniform(oracle.x.shape[1:], *threat.bounds)
                oracle.decide(
                    torch.where(inside, noise if query % 2 == 0 else _ends(noise, threat), oracle.x)
                )
            elif query % 2 == 0:
                oracle.decide(random_start(oracle.x, threat, streams))
            elif threat.norm == "linf":
                corner = streams.integers(oracle.x.shape[1:], 0, 2) * 2 - 1
                oracle.decide(oracle.project(oracle.x + threat.radius * corner))
            else:
                oracle.decide(random_boundary_start(oracle.x, threat, streams))


def _ends(noise: Tensor, threat: Threat) -> Tensor:
    """Every value at the end of the box that is nearer."""
    low, high = threat.bounds
    return torch.where(noise < (low + high) / 2, low, high)
