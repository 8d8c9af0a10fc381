"""FAB, the fast adaptive boundary attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from robust.attacks.aims import CANDIDATES, nearest_boundary
from robust.attacks.apgd import likeliest_wrong
from robust.attacks.ascent import gap_weights
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import choose, per_row, random_boundary_start
from robust.attacks.hope import begin_with_hope, end_the_hopeless
from robust.attacks.planes import project_on_plane
from robust.errors import InputError
from robust.oracle import Access, Oracle, State
from robust.projections import norm_of
from robust.replayed import Replayed


@ATTACKS.register("fab")
@dataclass(frozen=True)
class FAB(Attack):
    """Steps onto the linearised boundary, drawn back to the original (Croce & Hein 2020, arXiv 1907.02044).

    Minimum-norm; by default the targeted variant of AutoAttack: one search per likeliest wrong class.

    Args:
        steps: per restart and class, >= 1; each costs two forwards and one backward (untargeted: up to ten), with `reuse`
            a forward less.
        restarts: the first starts at x, others at random inside the threat, >= 1.
        targets: how many of the likeliest wrong classes; 0 for one search against the nearest boundary
            at each step, the untargeted variant of the paper.
        skip: so many of these classes, the likeliest, are left out, as a search before saw to them; the others then come in
            the order in which they were seen to come near. >= 0, below targets.
        alpha_max: largest weight of the original point, in [0, 1].
        overshoot: how far beyond the linearised boundary a step goes, >= 1.
        backward: share of the distance kept when stepping back from an adversarial point, in (0, 1].
        abreast: the classes are searched side by side, in batches of so many times the rows, rather than in turn.
        reuse: the plane found at an adversarial point also serves for the step after stepping back from it, so that the model
            is evaluated at no point but those that may be adversarial.
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
    reuse: bool = False
    abreast: bool = False

    def __post_init__(self) -> None:
        self.check_numbers()
        if min(self.steps, self.restarts) < 1 or self.targets < 0:
            raise InputError(
                "fab: expected steps >= 1, restarts >= 1 and targets >= 0, got "
                f"{self.steps}, {self.restarts} and {self.targets}"
            )
        if not 0 <= self.skip < max(self.targets, 1):
            raise InputError(
                f"fab: skip: expected 0 or more, below targets ({self.targets}), got {self.skip}"
            )
        if not (0 <= self.alpha_max <= 1 <= self.overshoot and 0 < self.backward <= 1):
            raise InputError(
                "fab: expected alpha_max in [0, 1], overshoot >= 1 and backward in (0, 1], got "
                f"{self.alpha_max}, {self.overshoot} and {self.backward}"
            )
        if self.hope is not None and self.hope <= 0:
            raise InputError(f"fab: hope: expected a factor > 0, got {self.hope}")

    @property
    def least_classes(self) -> int:
        """The label's, those that are left out, and one."""
        return self.skip + 2

    def run(self, oracle: Oracle) -> Tensor:
        ranking, classes = self._ranking(oracle)
        count = ranking.shape[1]
        if not self.abreast or count < 2:
            return self._search_in_turn(oracle, ranking, classes)
        with oracle.multiplied(count) as many:
            x_adv = self._search_in_turn(many, ranking.reshape(-1, 1), classes)
        return x_adv[::count] if len(x_adv) == count * len(oracle) else oracle.x

    def _search_in_turn(self, oracle: Oracle, ranking: Tensor, classes: int) -> Tensor:
        s = oracle.state()
        s.x_adv = oracle.x
        s.ranking, s.weights = ranking, oracle.x.new_zeros(len(ranking), classes)
        for rank in oracle.steps(s.ranking.shape[1]):
            for restart in oracle.steps(self.restarts):
                s.aim = s.ranking[:, rank : rank + 1]
                s.x_adv = oracle.x
                if restart:
                    streams = oracle.random("start", rank + self.skip, restart)
                    s.x_adv = random_boundary_start(oracle.x, oracle.threat, streams)
                self._search(oracle, s)
        return s.x_adv

    def _ranking(self, oracle: Oracle) -> tuple[Tensor, int]:
        """The classes to search towards, in turn, (N, K), and how many there are in all."""
        likeliest = likeliest_wrong(oracle.logits(oracle.x), oracle.y)
        classes = likeliest.shape[1] + 1
        if self.skip == 0:
            return likeliest[:, : max(self.targets, 1)], classes
        done = torch.cat([oracle.y[:, None], likeliest[:, : self.skip]], 1)
        nearest = oracle.gaps.scatter(1, done, -torch.inf).argsort(1, descending=True)
        return nearest[:, : max(0, min(self.targets, classes - 1) - self.skip)], classes

    def _search(self, oracle: Oracle, s: State) -> None:
        begin_with_hope(oracle, s)
        if self.targets:
            s.weights = gap_weights(s.weights, oracle.y, s.aim)
        rounds = self.steps + self.reuse  # the last one of `reuse` looks at the last point
        for step in oracle.steps(rounds):
            plane = self._boundary(oracle, s)
            if self.reuse:
                base = self._drawn_back(oracle, s, plane.wrong)
                offset = -plane.gap - _dot(plane.gradient, base - s.x_adv)
                s.x_adv = self._stepped(oracle, base, plane.gradient, offset)
            else:
                s.x_adv = self._stepped(oracle, s.x_adv, plane.gradient, -plane.gap)
                s.x_adv = self._drawn_back(oracle, s, oracle.decide(s.x_adv))
            end_the_hopeless(oracle, s, self.hope, step + (not self.reuse))

    def _boundary(self, oracle: Oracle, s: State) -> _Plane:
        if self.targets == 0:
            near = oracle.jacobian(s.x_adv, CANDIDATES)
            return _Plane(*nearest_boundary(near, oracle.threat.norm), near.gaps.amax(1) > 0)
        gradient, gap, logits = oracle.slope(s.x_adv, s.weights)
        return _Plane(gradient, gap, logits.argmax(1) != oracle.y)

    def _stepped(self, oracle: Oracle, base: Tensor, w: Tensor, offset: Tensor) -> Tensor:
        threat = oracle.threat
        return _onto_plane(
            base, oracle.x, w, offset,
            norm=threat.norm, bounds=threat.bounds, overshoot=self.overshoot, alpha_max=self.alpha_max,
        )  # fmt: skip

    def _drawn_back(self, oracle: Oracle, s: State, wrong: Tensor) -> Tensor:
        """s.x_adv, which was visited just now, or where it is adversarial a point nearer to x; s.least is kept."""
        s.least = torch.where(wrong, s.least.minimum(oracle.distance(s.x_adv)), s.least)
        back = oracle.x + self.backward * (s.x_adv - oracle.x)
        return choose(wrong, back, s.x_adv)


@Replayed
def _onto_plane(
    base: Tensor,
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    *,
    norm: str,
    bounds: tuple[float, float],
    overshoot: float,
    alpha_max: float,
) -> Tensor:
    """A step from `base` onto the plane <w, z - base> = offset and beyond, drawn towards the plane's point nearest x."""
    both, offsets = torch.cat([base, x]), torch.cat([offset, offset + _dot(w, base - x)])
    moves = project_on_plane(both, torch.cat([w, w]), offsets, norm, bounds)
    (here, there), (far, near) = moves.chunk(2), norm_of(moves.flatten(1), norm).chunk(2)
    alpha = per_row((far / (far + near).clamp_min(1e-12)).clamp_max(alpha_max), w)
    forward = (base + overshoot * here) * (1 - alpha)
    return (forward + (x + overshoot * there) * alpha).clamp(*bounds)


class _Plane(NamedTuple):
    """The linearised boundary at a point, and whether that point is adversarial."""

    gradient: Tensor  # (N, ...)
    gap: Tensor  # (N,): above 0 beyond the boundary
    wrong: Tensor  # (N,) bool


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
