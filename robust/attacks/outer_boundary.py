"""A search from far out: where lines to noise cross the boundary, and what is nearest on its plane there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import choose, per_row
from robust.attacks.planes import project_on_plane
from robust.errors import InputError
from robust.losses import margin
from robust.oracle import Access, Oracle, State

_ENDS: Final = 4  # of a line that are tried
_UPHILL: Final = 3  # which of them


@ATTACKS.register("outer-boundary")
@dataclass(frozen=True)
class OuterBoundary(Attack):
    """The point nearest to x on the boundary's plane, as seen from where a line to a random image crosses it.

    The line's crossing is found by halving. From there goes a step to the nearest point on the linearised boundary and a
    little beyond it, as FAB's (Croce & Hein 2020, arXiv 1907.02044) would from x: where that is misclassified, the plane there
    is next, else half of the way back. Planes are those at misclassified points alone: what logits say at x does not matter,
    nor where ascents from there lead, such as after a class that never takes over. Lines begin as decision attacks do (Chen
    et al. 2020, arXiv 1904.02144), at the box's ends uphill of x where noise and others are not misclassified; a sample that
    no end is misclassified for is left alone.

    Args:
        steps: onto planes and back, >= 1; each costs a forward and a backward.
        lines: that are tried in turn, >= 1.
        halvings: of a line, >= 1; each costs a forward.
        overshoot: how far beyond the plane a step goes, >= 1.
        reach: after three points a walk ends whose nearest misclassified one is farther than so many times eps, > 0. None: none.
    """

    name: ClassVar[str] = "outer-boundary"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Croce & Hein 2020b"

    steps: int = 20
    lines: int = 3
    halvings: int = 6
    overshoot: float = 1.05
    reach: float | None = None

    def __post_init__(self) -> None:
        self.check_numbers()
        if min(self.steps, self.lines, self.halvings) < 1 or self.overshoot < 1:
            raise InputError(
                "outer-boundary: expected steps, lines, halvings and overshoot >= 1, got "
                f"{self.steps}, {self.lines}, {self.halvings} and {self.overshoot}"
            )
        if self.reach is not None and self.reach <= 0:
            raise InputError(f"outer-boundary: reach: expected a multiple of eps > 0, got {self.reach}")

    @property
    def stays_inside(self) -> bool:
        """Whether every visited point lies in the threat set: not here."""
        return False

    @property
    def ascends(self) -> bool:
        """It looks for the boundary alone."""
        return False

    def run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        # All there is from the start: rows that rest come back with it.
        s.x_adv = s.end = s.base = oracle.x
        s.near = s.far = s.least = torch.zeros_like(oracle.y, dtype=oracle.x.dtype)
        for line in oracle.steps(self.lines):
            self._find_end(oracle, s, line)
            oracle.rest(~s.found)
            for _ in oracle.steps(1):
                self._halve(oracle, s)
                self._walk(oracle, s)
        return s.x_adv

    def _find_end(self, oracle: Oracle, s: State, line: int) -> None:
        """Misclassified ends of lines, s.x_adv, where s.found: noise, the box's farther ends, noise of its ends, those uphill."""
        s.found = torch.zeros_like(oracle.y, dtype=torch.bool)
        for attempt in oracle.steps(_ENDS):
            point = self._end(oracle, line, attempt)
            wrong = oracle.decide(point)
            s.x_adv, s.found = choose(wrong, point, s.x_adv), wrong
            oracle.rest(wrong)

    def _end(self, oracle: Oracle, line: int, attempt: int) -> Tensor:
        low, high = oracle.threat.bounds
        if attempt == _UPHILL:
            return torch.where(oracle.gradient(oracle.x, margin).gradient > 0, high, low)
        noise = oracle.random("end", line, attempt).uniform(oracle.x.shape[1:], low, high)
        if attempt == 0:
            return noise
        return torch.where((oracle.x if attempt == 1 else noise) < (low + high) / 2, high, low)

    def _halve(self, oracle: Oracle, s: State) -> None:
        """Draw s.x_adv back along its line to where it is just misclassified."""
        s.end, s.near, s.far = s.x_adv, torch.zeros_like(s.near), torch.ones_like(s.far)
        for _ in oracle.steps(self.halvings):
            middle = (s.near + s.far) / 2
            point = torch.lerp(oracle.x, s.end, per_row(middle, s.end))
            wrong = oracle.decide(point)
            s.x_adv = choose(wrong, point, s.x_adv)
            s.near, s.far = torch.where(wrong, s.near, middle), torch.where(wrong, middle, s.far)

    def _walk(self, oracle: Oracle, s: State) -> None:
        """From s.x_adv, misclassified, ever nearer to x."""
        s.base, s.least = s.x_adv, torch.full_like(s.least, torch.inf)
        for step in oracle.steps(self.steps + 1):
            gradient, gap, logits = oracle.gradient(s.x_adv, margin)
            wrong = logits.argmax(1) != oracle.y
            s.least = torch.where(wrong, s.least.minimum(oracle.distance(s.x_adv)), s.least)
            s.base = choose(wrong, s.x_adv, s.base)
            onto, ahead = self._onto_plane(oracle, s.x_adv, gradient, gap)
            # A plane that has x on its far side shows no way: half of the way back to x, or from x to where it was wrong.
            back = (s.base + choose(wrong, oracle.x, s.x_adv)) / 2
            s.x_adv = choose(wrong & ahead, onto, back)
            if self.reach is not None and step == 2:
                oracle.rest(s.least > self.reach * oracle.threat.radius)

    def _onto_plane(self, oracle: Oracle, at: Tensor, gradient: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Beyond the nearest point to x of the plane that the gap has at a point, and whether x is on this side, (N,) bool."""
        threat = oracle.threat
        offset = (gradient * (at - oracle.x)).flatten(1).sum(1) - gap
        move = project_on_plane(oracle.x, gradient, offset, threat.norm, threat.bounds)
        return oracle.clip(oracle.x + self.overshoot * move), offset > 0
