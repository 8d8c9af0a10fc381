"""A3, the adaptive auto attack's search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.aims import aimed_margin, runs
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import random_start, steepest
from robust.errors import InputError
from robust.oracle import Access, Oracle, State


@ATTACKS.register("a3")
@dataclass(frozen=True)
class A3(Attack):
    """Restarts whose directions adapt, most of them for the samples nearest their boundary (Liu et al. 2022).

    arXiv 2203.05154: each round begins with a diversified start along random logit weights that lean to
    what raised the margin before, then climbs the margin with steps that fall from eps by a cosine.

    The paper ranks the survivors of a batch and shares the weights that worked among them. Here a sample
    is judged and taught by its own rounds alone, so that its verdict does not depend on who else is
    attacked: it stays while its best margin is within a share of its clean margin that narrows.

    Args:
        steps: of the first round, >= 1; each later round takes 5 more, up to twice as many.
        rounds: restarts at most, >= 1.
        odi_steps: steps of eps along the weights before each climb, >= 0.
        near: the narrowest share of the clean margin, in [0, 1]; reached after six rounds.
        adapt: weight of what worked before in the next start's direction, in [0, 1].
        targets: 0 against any class; else so many rounds for each of so many nearest classes.
    """

    name: ClassVar[str] = "a3"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Liu et al. 2022"

    steps: int = 25
    rounds: int = 12
    odi_steps: int = 7
    near: float = 0.1
    adapt: float = 0.5
    targets: int = 0

    def __post_init__(self) -> None:
        self.check_numbers()
        if min(self.steps, self.rounds) < 1 or min(self.odi_steps, self.targets) < 0:
            raise InputError(
                "a3: expected steps >= 1, rounds >= 1, odi_steps >= 0 and targets >= 0, got "
                f"{self.steps}, {self.rounds}, {self.odi_steps} and {self.targets}"
            )
        if not (0 <= self.near <= 1 and 0 <= self.adapt <= 1):
            raise InputError(f"a3: expected near and adapt in [0, 1], got {self.near} and {self.adapt}")

    def run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        s.x_adv, s.clean, s.gaps = oracle.x, oracle.clean_margin, oracle.gaps
        for rank in runs(oracle, s, self.targets):
            s.leader = s.aim if self.targets else s.gaps.argmax(1, keepdim=True)
            if self.targets:
                s.clean = s.gaps.gather(1, s.aim).squeeze(1)
            self._search(oracle, s, rank)
        return s.x_adv

    def _search(self, oracle: Oracle, s: State, rank: int) -> None:
        s.best, s.memory = torch.full_like(s.clean, -torch.inf), torch.zeros_like(s.gaps)
        for number in oracle.steps(self.rounds):
            if number >= 2:  # two rounds for all, then the easiest first
                share = max(self.near, 1 - (1 - self.near) * (number - 1) / 5)
                oracle.rest(s.best < share * s.clean)
            for _ in oracle.steps(1):  # who rests sits out this round, and is looked at again
                self._round(oracle, s, number, rank * self.rounds + number)

    def _round(self, oracle: Oracle, s: State, number: int, start: int) -> None:
        threat = oracle.threat
        streams = oracle.random("start", start)
        draw = streams.uniform((s.memory.shape[1],), -1, 1)
        draw = draw.scatter(1, s.leader, 0.8).scatter(1, oracle.y[:, None], -0.8)
        s.weights = draw + self.adapt * s.memory
        s.x_adv = random_start(oracle.x, threat, streams)
        for _ in oracle.steps(self.odi_steps):
            gradient = oracle.gradient(s.x_adv, _weighted, s.weights).gradient
            s.x_adv = oracle.project(s.x_adv + threat.radius * steepest(gradient, threat.norm))
        steps = min(self.steps + 5 * number, 2 * self.steps)
        least = 0.1 if steps <= 10 else 0.001
        s.reached = torch.full_like(s.best, -torch.inf)
        for step in oracle.steps(steps):
            gradient, value, logits = oracle.gradient(s.x_adv, aimed_margin, s.aim)
            s.reached = torch.maximum(s.reached, value)
            s.last = logits
            share = least + (1 - least) * (1 + math.cos(math.pi * step / (steps + 1))) / 2
            s.x_adv = oracle.project(s.x_adv + share * threat.radius * steepest(gradient, threat.norm))
        for _ in oracle.steps(1):  # none where all left in the ascent, though others rest
            oracle.visit(s.x_adv)
            self._learn(oracle, s)

    def _learn(self, oracle: Oracle, s: State) -> None:
        """Keep the weights of the round that came nearest, and which class led there."""
        better = s.reached > s.best
        s.best = torch.maximum(s.best, s.reached)
        s.memory = torch.where(better[:, None], s.weights, s.memory)
        leader = s.last.scatter(1, oracle.y[:, None], -torch.inf).argmax(1, keepdim=True)
        if not self.targets:
            s.leader = torch.where(better[:, None], leader, s.leader)


def _weighted(logits: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    return (logits * weights).sum(1)
