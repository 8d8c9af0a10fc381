"""MultiTargeted: projected gradient ascent towards each class in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.ascent import begin_ascent, check_radii, classes_in_turn, climb, diversify, schedule
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import random_start
from robust.errors import InputError
from robust.oracle import Access, Oracle, State


@ATTACKS.register("multitargeted")
@dataclass(frozen=True)
class MultiTargeted(Attack):
    """Ascent of z_t - z_y for each likely class t (Gowal et al. 2019, arXiv 1910.09338).

    Classes come in the order of how near they were seen to come, by this attack and those before it
    in the suite. Each run begins with a diversified start (ODI, Tashiro et al. 2020, arXiv 2003.06878)
    and takes momentum steps whose size falls from 2 eps by a cosine.

    Args:
        steps: gradient steps a run, >= 1.
        targets: most classes to run against, >= 1.
        odi_steps: steps of eps along random logit weights before a run (.8 for the target, -.8 for
            the label), >= 0.
        restarts: runs per class, >= 1.
        random_start: start at a random point of the threat set, else at x.
        near: a class is run against only if its logit came within this share of the clean margin of the
            label's; None runs against all. Passes go to the samples nearest their boundary.
        least: classes that are run against however far they are.
        worth: classes after the first only where the margin came within this share of the clean one; None for all.
        radii: radii to search in turn, in units of eps, the last being 1: starting outside and coming in
            finds what a search inside the ball does not, above all in l2.
        momentum: weight of the new step against the previous move, in (0, 1].
        skip: so many of the classes, those that came nearest, are left out, as a search before went towards them; 0 or more,
            below targets.
    """

    name: ClassVar[str] = "multitargeted"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Gowal et al. 2019"

    steps: int = 20
    targets: int = 9
    odi_steps: int = 5
    restarts: int = 1
    random_start: bool = False
    near: float | None = None
    least: int = 0
    worth: float | None = None
    radii: tuple[float, ...] = (1.0,)
    momentum: float = 0.75
    skip: int = 0

    def __post_init__(self) -> None:
        self.check_numbers()
        if min(self.steps, self.targets, self.restarts) < 1 or self.odi_steps < 0:
            raise InputError(
                "multitargeted: expected steps, targets and restarts >= 1 and odi_steps >= 0, got "
                f"{self.steps}, {self.targets}, {self.restarts} and {self.odi_steps}"
            )
        if not 0 <= self.skip < self.targets:
            raise InputError(
                f"multitargeted: skip: expected 0 or more, below targets ({self.targets}), got {self.skip}"
            )
        if not 0 < self.momentum <= 1:
            raise InputError(f"multitargeted: momentum: expected a weight in (0, 1], got {self.momentum}")
        check_radii(self.name, self.radii, self.steps)

    @property
    def stays_inside(self) -> bool:
        """Whether every visited point lies in the threat set."""
        return max(self.radii) <= 1

    @property
    def least_classes(self) -> int:
        """The label's, those that are left out, and one."""
        return self.skip + 2

    def run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        s.clean = oracle.clean_margin
        for rank in classes_in_turn(oracle, s, self.targets):
            if rank < self.skip:
                continue
            self._rest_the_far(oracle, s, rank)
            for restart in oracle.steps(self.restarts):
                self._start(oracle, s, rank, restart)
                self._ascend(oracle, s)
        return s.x_adv

    def _rest_the_far(self, oracle: Oracle, s: State, rank: int) -> None:
        """Let rows sit out that the class in turn is not for."""
        far = []
        if self.near is not None and rank >= self.least:
            far.append(oracle.gaps.gather(1, s.aim).squeeze(1) < oracle.left_at(self.near) * s.clean)
        if self.worth is not None and rank:
            far.append(oracle.gaps.amax(1) < oracle.left_at(self.worth) * s.clean)
        if far:
            oracle.rest(torch.stack(far).any(0))

    def _start(self, oracle: Oracle, s: State, rank: int, restart: int) -> None:
        streams = oracle.random("start", rank, restart)
        s.x_adv = random_start(oracle.x, oracle.threat, streams) if self.random_start else oracle.start
        diversify(oracle, s, self.odi_steps, streams, self.radii[0])

    def _ascend(self, oracle: Oracle, s: State) -> None:
        begin_ascent(oracle, s)
        steps = list(schedule(oracle.threat, self.radii, self.steps))
        for step in oracle.steps(self.steps):
            climb(oracle, s, steps[step], self.momentum)
        oracle.visit(s.x_adv)
