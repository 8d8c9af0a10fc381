"""MultiTargeted: projected gradient ascent towards each class in turn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import random_start, steepest, toward_set
from robust.errors import InputError
from robust.oracle import Access, Oracle, State
from robust.threat import Threat


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
        radii: radii to search in turn, in units of eps, the last being 1: starting outside and coming in
            finds what a search inside the ball does not, above all in l2.
        momentum: weight of the new step against the previous move, in (0, 1].
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
    radii: tuple[float, ...] = (1.0,)
    momentum: float = 0.75

    def __post_init__(self) -> None:
        if min(self.steps, self.targets, self.restarts) < 1 or self.odi_steps < 0:
            raise InputError(
                "multitargeted: expected steps, targets and restarts >= 1 and odi_steps >= 0, got "
                f"{self.steps}, {self.targets}, {self.restarts} and {self.odi_steps}"
            )
        if not 0 < self.momentum <= 1:
            raise InputError(f"multitargeted: momentum: expected a weight in (0, 1], got {self.momentum}")
        if not self.radii or self.radii[-1] != 1 or len(self.radii) > self.steps or min(self.radii) <= 0:
            raise InputError(
                f"multitargeted: radii: expected positive factors that end in 1, one per step at most, got {self.radii}"
            )

    @property
    def stays_inside(self) -> bool:
        """Whether every visited point lies in the threat set."""
        return max(self.radii) <= 1

    def run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        s.clean = oracle.clean_margin
        s.x_adv = s.previous = oracle.x
        s.aim = oracle.y[:, None]
        s.tried = torch.zeros_like(oracle.gaps, dtype=torch.bool).scatter(1, s.aim, True)
        s.weights = torch.zeros_like(oracle.gaps)
        for rank in oracle.steps(min(self.targets, s.tried.shape[1] - 1)):
            gap, s.aim = oracle.gaps.masked_fill(s.tried, -torch.inf).max(1, keepdim=True)
            s.tried = s.tried.scatter(1, s.aim, True)
            if self.near is not None and rank >= self.least:
                oracle.rest(gap.squeeze(1) < self.near * s.clean)
            for restart in oracle.steps(self.restarts):
                self._start(oracle, s, rank, restart)
                self._ascend(oracle, s)
        return s.x_adv

    def _start(self, oracle: Oracle, s: State, rank: int, restart: int) -> None:
        """A point of the first radius along a random direction in logit space, leaning to the target."""
        widest = _scaled(oracle.threat, self.radii[0])
        streams = oracle.random("start", rank, restart)
        s.x_adv = random_start(oracle.x, oracle.threat, streams) if self.random_start else oracle.start
        weights = streams.child("odi").uniform((s.weights.shape[1],), -1, 1)
        s.weights = weights.scatter(1, s.aim, 0.8).scatter(1, oracle.y[:, None], -0.8)
        for _ in oracle.steps(self.odi_steps):
            gradient = oracle.gradient(s.x_adv, _weighted, s.weights).gradient
            s.x_adv = widest.project(s.x_adv + widest.radius * steepest(gradient, widest.norm), oracle.x)

    def _ascend(self, oracle: Oracle, s: State) -> None:
        s.previous = s.x_adv
        schedule = list(self._schedule(oracle.threat))
        for step in oracle.steps(self.steps):
            threat, size, first = schedule[step]
            gradient = oracle.gradient(s.x_adv, _gap, s.aim).gradient
            at = threat.project(s.x_adv, oracle.x) if first and step else s.x_adv
            z = toward_set(torch.add(at, steepest(gradient, threat.norm), alpha=size), oracle.x, threat)
            s.previous, s.x_adv = (
                at,
                threat.project(z if first else self._carried(z, at, s.previous), oracle.x),
            )
        oracle.visit(s.x_adv)

    def _carried(self, z: Tensor, at: Tensor, previous: Tensor) -> Tensor:
        """at + momentum (z - at) + (1 - momentum) (at - previous), in three passes over the values."""
        stay = 1 - self.momentum
        return z.mul(self.momentum).add_(at, alpha=2 * stay).sub_(previous, alpha=stay)

    def _schedule(self, threat: Threat) -> Iterator[tuple[Threat, float, bool]]:
        """For every step: the set to stay in, the step's size, and whether the set is new."""
        length, spare = divmod(self.steps, len(self.radii))
        for i, factor in enumerate(self.radii):
            inside, count = _scaled(threat, factor), length + (i < spare)
            for k in range(count):
                share = (1 + math.cos(math.pi * k / (count + 1))) / 2
                yield inside, 2 * inside.radius * (0.01 + 0.99 * share), k == 0


def _scaled(threat: Threat, factor: float) -> Threat:
    return threat if factor == 1 else replace(threat, eps=repr(threat.radius * factor))


def _gap(logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
    return (logits.gather(1, aim) - logits.gather(1, y[:, None])).squeeze(1)


def _weighted(logits: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    return (logits * weights).sum(1)
