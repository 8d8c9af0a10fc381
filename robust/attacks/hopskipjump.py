"""HopSkipJump, a walk along the boundary by decisions alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.aims import reached
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import choose, per_row, steepest
from robust.errors import InputError
from robust.oracle import Access, Oracle, State
from robust.projections import norm_of

_HALVINGS = 12  # of a step until it stays misclassified


@ATTACKS.register("hopskipjump")
@dataclass(frozen=True)
class HopSkipJump(Attack):
    """HopSkipJump (Chen, Jordan & Wainwright 2020, arXiv 1904.02144): minimum l2 or linf norm from labels alone.

    From a misclassified point it searches the boundary towards x, estimates the boundary's normal there
    from the labels of points around, steps along it and searches again.

    The starting point is looked for in this order: the negative of x, then in turn a plain colour,
    uniform noise, and noise of the box's ends only. A sample for which none of `start_tries` is
    misclassified goes unattacked, and the report says so.

    Args:
        queries: forward passes a run at most, >= start_tries + 50.
        probes: points for the first estimate of the normal, >= 2; later ones take sqrt(step) times as many.
        start_tries: points tried as a start, >= 1.
        targets: 0 against any class; else one run for each of so many classes, the paper's targeted variant.
            Labels tell of no class how near it is: it is the first classes that the tried starts fall into,
            and a sample whose starts fall into fewer gets fewer runs.
    """

    name: ClassVar[str] = "hopskipjump"
    norms: ClassVar[tuple[str, ...]] = ("l2", "linf")
    access: ClassVar[Access] = "decision"
    paper: ClassVar[str] = "Chen et al. 2020"
    minimum_norm: ClassVar[bool] = True

    queries: int = 5000
    probes: int = 100
    start_tries: int = 50
    targets: int = 0

    def __post_init__(self) -> None:
        self.check_numbers()
        if (
            min(self.start_tries, self.targets + 1) < 1
            or self.probes < 2
            or self.queries < self.start_tries + 50
        ):
            raise InputError(
                "hopskipjump: expected start_tries >= 1, probes >= 2, queries >= start_tries + 50 and targets >= 0, "
                f"got {self.start_tries}, {self.probes}, {self.queries} and {self.targets}"
            )

    def run(self, oracle: Oracle) -> None:
        s = oracle.state()
        self._start(oracle, s, most := min(max(self.targets, 1), self.start_tries))
        for rank in oracle.steps(most):
            oracle.rest(s.met <= rank)
            for _ in oracle.steps(1):
                s.aim = s.classes[:, rank] if self.targets else oracle.y
                s.x_adv = s.starts[:, rank]
                self._walk(oracle, s)

    def _start(self, oracle: Oracle, s: State, most: int) -> None:
        """Points of up to `most` wrong classes for every row; rows without any go."""
        low, high = oracle.threat.bounds
        s.starts = oracle.x[:, None].repeat(1, most, *([1] * (oracle.x.dim() - 1)))
        s.classes, s.met = oracle.y[:, None].repeat(1, most), torch.zeros_like(oracle.y)
        for attempt in oracle.steps(self.start_tries):
            streams, shape = oracle.random("start", attempt), oracle.x.shape[1:]
            if attempt == 0:
                point = low + high - oracle.x
            elif attempt % 3 == 1:
                colours = streams.uniform((shape[0], *([1] * (len(shape) - 1))), low, high)
                point = colours.expand_as(oracle.x)
            elif attempt % 3 == 2:
                point = streams.uniform(shape, low, high)
            else:
                point = low + (high - low) * streams.integers(shape, 0, 2).to(oracle.x.dtype)
            label = oracle.label(point)
            new = (label != oracle.y) & (label[:, None] != s.classes).all(1)
            place = new[:, None] & (torch.arange(most, device=label.device) == s.met[:, None])
            s.classes = torch.where(place, label[:, None], s.classes)
            here = place.view(*place.shape, *([1] * len(shape)))
            s.starts = torch.where(here, point[:, None], s.starts)
            s.met = s.met + new
            oracle.rest(s.met == most)
        oracle.give_up(s.met == 0)
        for _ in oracle.steps(1):  # they leave between steps
            pass

    def _walk(self, oracle: Oracle, s: State) -> None:
        """From x_adv along the boundary of the aimed class, ever nearer to x."""
        l2, values = oracle.threat.norm == "l2", oracle.x.shape[1:].numel()
        theta = values**-1.5 if l2 else values**-2.0  # the paper's precision of the search
        halvings = min(25, math.ceil(-math.log2(theta)))
        s.before = _distance(s.x_adv - oracle.x, l2=l2)
        self._search(oracle, s, halvings, l2=l2)
        left = self.queries - self.start_tries - halvings
        for step in oracle.steps(self.queries):
            probes = min(int(self.probes * math.sqrt(step + 1)), left - _HALVINGS - halvings)
            if probes < 2:
                break
            left -= probes + _HALVINGS + halvings
            s.distance = _distance(s.x_adv - oracle.x, l2=l2)
            low, high = oracle.threat.bounds
            scale = math.sqrt(values) * theta if l2 else values * theta
            s.delta = torch.full_like(s.distance, 0.1 * (high - low)) if step == 0 else scale * s.before
            normal = self._normal(oracle, s, step, probes)
            s.direction = steepest(normal, oracle.threat.norm)
            s.before = s.distance
            self._step(oracle, s, step)
            self._search(oracle, s, halvings, l2=l2)

    def _search(self, oracle: Oracle, s: State, halvings: int, *, l2: bool) -> None:
        """Move x_adv towards x as far as it stays misclassified: along the line, or by clipping (linf)."""
        s.near = torch.zeros_like(s.before)
        s.far = torch.ones_like(s.before) if l2 else _distance(s.x_adv - oracle.x, l2=False)
        s.end = s.x_adv
        for _ in oracle.steps(halvings):
            middle = (s.near + s.far) / 2
            point = _towards(s.end, oracle.x, middle, l2=l2)
            wrong = reached(oracle.label(point), oracle.y, s.aim)
            s.x_adv = choose(wrong, point, s.x_adv)
            s.near, s.far = torch.where(wrong, s.near, middle), torch.where(wrong, middle, s.far)

    def _normal(self, oracle: Oracle, s: State, step: int, probes: int) -> Tensor:
        """The boundary's normal by Monte Carlo: mean of (label - mean label) * direction."""
        s.along, s.sum = torch.zeros_like(oracle.x), torch.zeros_like(oracle.x)
        s.labels = torch.zeros_like(s.distance)
        for probe in oracle.steps(probes):
            streams, shape = oracle.random("probe", step, probe), oracle.x.shape[1:]
            noise = streams.normal(shape) if oracle.threat.norm == "l2" else streams.uniform(shape, -1, 1)
            length = s.delta / norm_of(noise.flatten(1), "l2").clamp_min_(1e-30)
            point = torch.addcmul(s.x_adv, noise, per_row(length, noise)).clamp_(*oracle.threat.bounds)
            went, unit = point - s.x_adv, s.delta.clamp_min(1e-30).reciprocal_()
            label = reached(oracle.label(point), oracle.y, s.aim).to(went.dtype) * 2 - 1
            s.along.addcmul_(went, per_row(label * unit, went))
            s.sum.addcmul_(went, per_row(unit, went))
            s.labels = s.labels + label
        mean = per_row(s.labels / probes, s.sum)
        one_sided = mean.abs() == 1
        return torch.where(one_sided, s.along, s.along - mean * s.sum)

    def _step(self, oracle: Oracle, s: State, step: int) -> None:
        """Along the normal: distance / sqrt(step), halved until the point is misclassified."""
        s.size = s.distance / math.sqrt(step + 1)
        for _ in oracle.steps(_HALVINGS):
            point = oracle.clip(s.x_adv + per_row(s.size, s.direction) * s.direction)
            wrong = reached(oracle.label(point), oracle.y, s.aim)
            s.x_adv = choose(wrong, point, s.x_adv)
            s.size = s.size / 2
            oracle.rest(wrong)


def _distance(delta: Tensor, *, l2: bool) -> Tensor:
    return norm_of(delta.flatten(1), "l2" if l2 else "linf")


def _towards(end: Tensor, x: Tensor, share: Tensor, *, l2: bool) -> Tensor:
    """Share of the way from x to end (l2), or end clipped to within `share` of x (linf)."""
    share = per_row(share, x)
    return x + share * (end - x) if l2 else torch.minimum(torch.maximum(end, x - share), x + share)
