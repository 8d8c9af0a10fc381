"""SuperDeepFool: DeepFool, drawn back to the boundary's normal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.aims import aimed_margin, runs
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.deepfool import to_nearest_boundary
from robust.attacks.geometry import choose, per_row
from robust.errors import InputError
from robust.oracle import Access, Jacobian, Oracle, State


@ATTACKS.register("superdeepfool")
@dataclass(frozen=True)
class SuperDeepFool(Attack):
    """DeepFool to the boundary, then its displacement projected on the normal there, in turn.

    Abdolahpourrostam et al. 2024 (arXiv 2303.12481), the variant SDF(inf, 1); at the end a bisection
    between x and the nearest adversarial point found takes up the slack.

    Args:
        rounds: DeepFool and projection, so often, >= 1.
        steps: most DeepFool steps a round, >= 1; each costs two forwards and a backward per candidate.
        candidates: leading wrong classes whose boundaries are looked at, >= 1.
        overshoot: share by which a DeepFool step is lengthened, >= 0.
        bisections: forwards of the final line search, >= 0.
        targets: 0 against any class; else one run for each of so many nearest classes, each step onto its
            boundary alone.
    """

    name: ClassVar[str] = "superdeepfool"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Abdolahpourrostam et al. 2024"
    minimum_norm: ClassVar[bool] = True

    rounds: int = 10
    steps: int = 10
    candidates: int = 9
    overshoot: float = 0.02
    bisections: int = 10
    targets: int = 0

    def __post_init__(self) -> None:
        self.check_numbers()
        if (
            min(self.rounds, self.steps, self.candidates) < 1
            or min(self.overshoot, self.bisections, self.targets) < 0
        ):
            raise InputError(
                "superdeepfool: expected rounds, steps and candidates >= 1, overshoot, bisections and targets >= 0, "
                f"got {self.rounds}, {self.steps}, {self.candidates}, {self.overshoot}, {self.bisections} and {self.targets}"
            )

    def run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        s.best = oracle.x
        s.least = torch.full_like(oracle.y, torch.inf, dtype=oracle.x.dtype)
        for _ in runs(oracle, s, self.targets):
            self._search(oracle, s)
        self._bisect(oracle, s)
        return s.best

    def _search(self, oracle: Oracle, s: State) -> None:
        s.x_adv = oracle.x
        for _ in oracle.steps(self.rounds):
            self._cross(oracle, s)
            normal = oracle.gradient(s.x_adv, aimed_margin, s.aim).gradient
            delta = s.x_adv - oracle.x
            along = (delta * normal).flatten(1).sum(1)
            shadow = normal * per_row(along / normal.flatten(1).square().sum(1).clamp_min(1e-12), normal)
            # Where the normal points back to x there is nothing to project on: DeepFool goes on from there.
            s.x_adv = choose(along > 0, oracle.clip(oracle.x + shadow), s.x_adv)
        self._note(s, oracle, oracle.decide(s.x_adv))

    def _cross(self, oracle: Oracle, s: State) -> None:
        """DeepFool until the boundary is crossed."""
        for _ in oracle.steps(self.steps):
            near = self._boundaries(oracle, s)
            step = (1 + self.overshoot) * to_nearest_boundary(near, oracle.threat)
            crossed = near.gaps[:, 0] > 0
            s.x_adv = choose(crossed, s.x_adv, oracle.clip(s.x_adv + step))
            crossed = aimed_margin(oracle.logits(s.x_adv), oracle.y, s.aim) > 0
            self._note(s, oracle, crossed)
            oracle.rest(crossed)

    def _boundaries(self, oracle: Oracle, s: State) -> Jacobian:
        if self.targets == 0:
            return oracle.jacobian(s.x_adv, self.candidates)
        gradient, gap, _ = oracle.gradient(s.x_adv, aimed_margin, s.aim)
        return Jacobian(s.aim, gap[:, None], gradient[:, None])

    def _note(self, s: State, oracle: Oracle, wrong: Tensor) -> None:
        size = (s.x_adv - oracle.x).flatten(1).norm(dim=1)
        nearer = wrong & (size < s.least)
        s.least = torch.where(nearer, size, s.least)
        s.best = choose(nearer, s.x_adv, s.best)

    def _bisect(self, oracle: Oracle, s: State) -> None:
        s.low, s.high = torch.zeros_like(s.least), torch.ones_like(s.least)
        for _ in oracle.steps(self.bisections):
            middle = (s.low + s.high) / 2
            wrong = oracle.decide(oracle.x + per_row(middle, s.best) * (s.best - oracle.x))
            s.low, s.high = torch.where(wrong, s.low, middle), torch.where(wrong, middle, s.high)
