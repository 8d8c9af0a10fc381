"""APGD, projected gradient ascent that sets its own step size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.apgd_l1 import ascend_l1
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import brought_in, choose, moved, random_boundary_start, replace
from robust.errors import InputError
from robust.losses import LOSSES, dlr_targeted
from robust.oracle import Access, Oracle, State


@ATTACKS.register("apgd")
@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD (Croce & Hein 2020, arXiv 2003.01690), untargeted or over the likeliest classes.

    Momentum steps that start at 2 eps; at checkpoints the step halves and the search goes back to its
    best point where too few steps raised the loss, or where nothing improved since the last halving.
    l1 takes sparse steps from outside inwards (Croce & Hein 2021, arXiv 2103.01208), without momentum.

    Args:
        steps: gradient steps a restart, >= 1.
        restarts: random starts (per target class), >= 1.
        loss: for untargeted runs; targeted ones use the targeted difference of logits ratio.
        targets: 0 for untargeted; else how many of the likeliest wrong classes to run against, in order.
        rho: share of steps that must raise the loss between checkpoints, in [0, 1]; not in l1.
        momentum: weight of the new step against the previous move, in (0, 1]; not in l1.
        outside: in l1, where the search comes in from, in units of eps, >= 1: it runs at this radius, at half of it and so on
            to eps, with as many steps at each. None: at 3, 2 and 1 times eps, as in the paper. Where gradients are masked,
            as by the first layer of Madry's MNIST nets, more is to be seen from 16.
    """

    name: ClassVar[str] = "apgd"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Croce & Hein 2020"

    steps: int = 100
    restarts: int = 1
    loss: str = "ce"
    targets: int = 0
    rho: float = 0.75
    momentum: float = 0.75
    outside: float | None = None

    def __post_init__(self) -> None:
        self.check_numbers()
        if min(self.steps, self.restarts) < 1 or self.targets < 0:
            raise InputError(
                "apgd: expected steps >= 1, restarts >= 1 and targets >= 0, got "
                f"{self.steps}, {self.restarts} and {self.targets}"
            )
        if not (0 <= self.rho <= 1 and 0 < self.momentum <= 1):
            raise InputError(
                f"apgd: expected rho in [0, 1] and momentum in (0, 1], got {self.rho} and {self.momentum}"
            )
        if self.outside is not None and not 1 <= self.outside < math.inf:
            raise InputError(
                f"apgd: outside: expected a radius in units of eps, 1 or more, got {self.outside}"
            )

    @property
    def stays_inside(self) -> bool:
        """Whether every visited point lies in the threat set: not in l1."""
        return False

    def run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        if self.targets == 0:
            for restart in oracle.steps(self.restarts):
                self._ascend(oracle, s, LOSSES[self.loss], restart)
            return s.x_adv
        s.ranking = likeliest_wrong(oracle.logits(oracle.x), oracle.y)
        for rank in oracle.steps(min(self.targets, s.ranking.shape[1])):
            for restart in oracle.steps(self.restarts):
                s.aim = s.ranking[:, rank : rank + 1]
                self._ascend(oracle, s, dlr_targeted, rank, restart)
        return s.x_adv

    def _ascend(self, oracle: Oracle, s: State, loss: Callable[..., Tensor], *run: int) -> None:
        threat, streams = oracle.threat, oracle.random("start", *run)
        if threat.norm == "l1":
            ascend_l1(oracle, s, loss, lambda: self._columns(s), streams, self.steps, self.outside)
            return
        s.x_adv = random_boundary_start(oracle.x, threat, streams)
        s.previous = s.x_adv
        s.step = torch.full_like(oracle.y, 2 * threat.radius, dtype=s.x_adv.dtype)
        s.best = torch.full_like(s.step, -torch.inf)
        s.best_x, s.best_gradient = s.x_adv.clone(), torch.zeros_like(s.x_adv)
        s.last = s.best
        s.best_at_checkpoint, s.halved = s.best, torch.ones_like(oracle.y, dtype=torch.bool)
        s.rises = torch.zeros_like(s.step)
        checkpoints = dict(_checkpoints(self.steps))
        for step in oracle.steps(self.steps + 1):
            gradient, value, _ = oracle.gradient(s.x_adv, loss, *self._columns(s))
            self._note(s, gradient, value, first=step == 0)
            if step in checkpoints:
                gradient = self._checkpoint(s, gradient, checkpoints[step])
            weight = self.momentum if step > 0 else 1.0
            z = brought_in(oracle, moved(s.x_adv, gradient, threat.norm, s.step))
            move = z.mul_(weight).add_(s.x_adv, alpha=2 * (1 - weight)).sub_(s.previous, alpha=1 - weight)
            s.previous, s.x_adv = s.x_adv, brought_in(oracle, move)

    def _columns(self, s: State) -> tuple[Tensor, ...]:
        return (s.aim,) if self.targets else ()

    def _note(self, s: State, gradient: Tensor, value: Tensor, *, first: bool) -> None:
        if not first:
            s.rises = s.rises + (value > s.last)
        better = value > s.best
        s.best = torch.where(better, value, s.best)
        replace(better, (s.best_x, s.x_adv), (s.best_gradient, gradient))
        s.last = value
        if first:
            s.best_at_checkpoint = s.best

    def _checkpoint(self, s: State, gradient: Tensor, length: int) -> Tensor:
        """Halve the step and go back to the best point where the last `length` steps earned it."""
        oscillates = s.rises <= self.rho * length
        stuck = ~s.halved & (s.best_at_checkpoint >= s.best)
        s.halved = oscillates | stuck
        s.best_at_checkpoint, s.rises = s.best, torch.zeros_like(s.rises)
        s.step = torch.where(s.halved, s.step / 2, s.step)
        s.x_adv = s.x_adv.clone()  # best_x changes in place, and must be no other point's memory
        replace(s.halved, (s.x_adv, s.best_x))
        return choose(s.halved, s.best_gradient, gradient)


def _checkpoints(steps: int) -> Iterator[tuple[int, int]]:
    """(step, steps since the last one): gaps of 22 % of the budget, shrinking by 3 % down to 6 %."""
    gap, least, shrink = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    at = 0
    while at + gap <= steps:
        at += gap
        yield at, gap
        gap = max(gap - shrink, least)


def likeliest_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Classes other than the label, likeliest first: (N, C), (N,) -> (N, C - 1)."""
    order = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
    return order[:, :-1]
