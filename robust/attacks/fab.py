"""FAB, the fast adaptive boundary attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from robust.attacks.aims import CANDIDATES, nearest_boundary
from robust.attacks.apgd import likeliest_wrong
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import choose, per_row, random_boundary_start
from robust.attacks.planes import project_on_plane
from robust.errors import InputError
from robust.oracle import Access, Oracle, State
from robust.threat import norm_of

_STRETCH: Final = 5  # steps


@ATTACKS.register("fab")
@dataclass(frozen=True)
class FAB(Attack):
    """Steps onto the linearised boundary, drawn back to the original (Croce & Hein 2020, arXiv 1907.02044).

    Minimum-norm; by default the targeted variant of AutoAttack: one search per likeliest wrong class.

    Args:
        steps: per restart and class, >= 1; each costs two forwards and one backward (untargeted: up to ten).
        restarts: the first starts at x, others at random inside the threat, >= 1.
        targets: how many of the likeliest wrong classes; 0 for one search against the nearest boundary
            at each step, the untargeted variant of the paper.
        skip: so many of these classes, the likeliest, are left out, as a search before saw to them; >= 0, below targets.
        alpha_max: largest weight of the original point, in [0, 1].
        overshoot: how far beyond the linearised boundary a step goes, >= 1.
        backward: share of the distance kept when stepping back from an adversarial point.
        hope: from the tenth step on, a search ends where what it is short of eps is over so many times what its last five
            steps gained, > 0; a surface with straight boundaries is settled then, and gains no more. None: to the last step.
    """

    name: ClassVar[str] = "fab"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Croce & Hein 2020b"
    minimum_norm: ClassVar[bool] = True

    steps: int = 100
    restarts: int = 1
    targets: int = 9
    alpha_max: float = 0.1
    overshoot: float = 1.05
    backward: float = 0.9
    hope: float | None = None
    skip: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts) < 1 or self.targets < 0:
            raise InputError(
                "fab: expected steps >= 1, restarts >= 1 and targets >= 0, got "
                f"{self.steps}, {self.restarts} and {self.targets}"
            )
        if not 0 <= self.skip < max(self.targets, 1):
            raise InputError(
                f"fab: skip: expected 0 or more, below targets ({self.targets}), got {self.skip}"
            )
        if self.hope is not None and self.hope <= 0:
            raise InputError(f"fab: hope: expected a factor > 0, got {self.hope}")

    def run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        s.x_adv = oracle.x
        s.ranking = likeliest_wrong(oracle.logits(oracle.x), oracle.y)
        for turn in oracle.steps(min(max(self.targets, 1), s.ranking.shape[1]) - self.skip):
            rank = turn + self.skip
            for restart in oracle.steps(self.restarts):
                s.aim = s.ranking[:, rank : rank + 1]
                s.x_adv = oracle.x
                if restart:
                    s.x_adv = random_boundary_start(
                        oracle.x, oracle.threat, oracle.random("start", rank, restart)
                    )
                self._search(oracle, s)
        return s.x_adv

    def _search(self, oracle: Oracle, s: State) -> None:
        norm, bounds = oracle.threat.norm, oracle.threat.bounds
        s.least = s.mark = torch.full_like(oracle.y, torch.inf, dtype=oracle.x.dtype)
        for step in oracle.steps(self.steps):
            w, gap = self._boundary(oracle, s)
            offset = -gap  # <w, z - x_adv> = -gap on the linearised boundary
            here = project_on_plane(s.x_adv, w, offset, norm, bounds)
            offset = offset + ((s.x_adv - oracle.x) * w).flatten(1).sum(1)
            there = project_on_plane(oracle.x, w, offset, norm, bounds)
            far, near = norm_of(here.flatten(1), norm), norm_of(there.flatten(1), norm)
            alpha = per_row((far / (far + near).clamp_min(1e-12)).clamp_max(self.alpha_max), w)
            forward = (s.x_adv + self.overshoot * here) * (1 - alpha)
            s.x_adv = oracle.clip(forward + (oracle.x + self.overshoot * there) * alpha)
            wrong = oracle.decide(s.x_adv)
            back = oracle.x + self.backward * (s.x_adv - oracle.x)
            size = oracle.distance(s.x_adv)
            s.least = torch.where(wrong, s.least.minimum(size), s.least)
            s.x_adv = choose(wrong, back, s.x_adv)
            if self.hope is not None and step % _STRETCH == _STRETCH - 1:
                if step >= _STRETCH:
                    oracle.rest(s.least - oracle.threat.radius > self.hope * (s.mark - s.least))
                s.mark = s.least

    def _boundary(self, oracle: Oracle, s: State) -> tuple[Tensor, Tensor]:
        if self.targets == 0:
            return nearest_boundary(oracle.jacobian(s.x_adv, CANDIDATES), oracle.threat.norm)
        gradient, gap, _ = oracle.gradient(s.x_adv, _gap, s.aim)
        return gradient, gap


def _gap(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return (logits.gather(1, target) - logits.gather(1, y[:, None])).squeeze(1)
