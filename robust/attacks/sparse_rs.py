"""Sparse-RS, random search over which values change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from robust.attacks.base import ATTACKS
from robust.attacks.random_search import RandomSearch
from robust.errors import InputError
from robust.oracle import Oracle, State
from robust.rng import Streams

# Of 10,000 queries, those after which a smaller part of the values moves, and the divisors of p_init from there on.
_SHRINKING: Final = tuple(
    zip((0, 50, 200, 500, 1000, 2000, 4000, 6000, 8000), (2, 4, 5, 6, 8, 10, 12, 15, 20), strict=True)
)


@ATTACKS.register("sparse-rs")
@dataclass(frozen=True)
class SparseRS(RandomSearch):
    """Score-based random search of the values that change and the ends of the box they go to.

    Croce et al. 2022 (arXiv 2006.12834), for values where the paper has pixels: eps values at most. An end is drawn the
    more likely the more room there is towards it, so that on black and white nearly every change is one. In l1 a few values
    share eps evenly. Sees no gradient, so masking does not stop it.

    Args:
        queries: forward passes a restart, >= 2.
        restarts: independent searches, >= 1.
        p_init: part of the values that the first changes move, in (0, 1].
        stretched: the paper's schedule of shrinking, made for 10,000 queries, ends with the queries; else they see
            only its first part.
        targets: 0 against any class; else one search (and its restarts) for each of so many likeliest
            classes, on the gap to it.
        proposals: changes that are tried at once, of which the best is taken if it gains, >= 1.
        pace: a sample goes on while its best gap, as a share of the clean margin, times the part of the queries that are
            spent is at most this, > 0. None: to the last query.
        early: a sample goes on while its best gap, as a share of the clean margin, is at most early / (early + the part of the
            queries that are spent), > 0, which asks for some of the way from the first look on. None: no such question.
        spread: in l1 so many times as many values change as eps lets cross the whole box, each by its share of eps, > 0; where
            a net answers to values beyond a threshold alone, few that change by much break what ascents in l1 do not.
    """

    name: ClassVar[str] = "sparse-rs"
    norms: ClassVar[tuple[str, ...]] = ("l0", "l1")
    paper: ClassVar[str] = "Croce et al. 2022"
    carried: ClassVar[tuple[str, ...]] = ("x_adv", "places", "ends")

    queries: int = 5000
    restarts: int = 1
    p_init: float = 0.3
    stretched: bool = True
    targets: int = 0
    proposals: int = 1
    pace: float | None = None
    early: float | None = None
    spread: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers("spread")
        if self.early is not None and self.early <= 0:
            raise InputError(f"{self.name}: expected early > 0, got {self.early}")

    @property
    def _paced(self) -> bool:
        return super()._paced or self.early is not None

    def _behind(self, s: State, spent: float) -> Tensor | None:
        behind = super()._behind(s, spent)
        if self.early is None:
            return behind
        late = (self.early + spent) * s.best < self.early * s.clean
        return late if behind is None else behind | late

    def _begin(self, oracle: Oracle, s: State, streams: Streams) -> None:
        values = oracle.x.shape[1:].numel()
        order = streams.child("places").uniform((values,)).topk(self._most(oracle), dim=1)
        s.places = order.indices
        unit = streams.child("ends").uniform((self._most(oracle),))
        s.ends = drawn_ends(oracle, s.places, unit, self._most(oracle))
        s.x_adv = with_ends(oracle, s.places, s.ends)

    def _numbers(self, oracle: Oracle) -> int:
        return 3 * self._most(oracle)

    def _change(self, oracle: Oracle, s: State, size: float, unit: Tensor) -> tuple[Tensor, ...]:
        most, values = self._most(oracle), oracle.x.shape[1:].numel()
        leave, come, to = unit.split(most, dim=1)
        count = max(1, round(size * most))
        leaving = leave.topk(count, dim=1).indices
        free = values - most
        coming = s.places.gather(1, leaving)  # where all may change, ends alone are drawn anew
        if moving := min(count, free):
            coming = coming.clone()
            coming[:, :moving] = outside(s.places, come[:, :moving], free)
        places = s.places.scatter(1, leaving, coming)
        ends = s.ends.scatter(1, leaving, drawn_ends(oracle, coming, to[:, :count], most))
        return with_ends(oracle, places, ends), places, ends

    def _most(self, oracle: Oracle) -> int:
        return most_changes(oracle, self.spread)

    def _size(self, query: int) -> float:
        """Part of the values that moves."""
        return self.p_init / max([1, *(divisor for at, divisor in _SHRINKING if query > at)])


def most_changes(oracle: Oracle, spread: float) -> int:
    """How many values change: in l0 eps, in l1 `spread` times as many as eps lets cross the box."""
    threat, values = oracle.threat, oracle.x.shape[1:].numel()
    if threat.norm == "l0":
        return min(int(threat.radius), values)
    low, high = threat.bounds
    return min(max(1, round(spread * threat.radius / (high - low))), values)


def drawn_ends(oracle: Oracle, places: Tensor, unit: Tensor, most: int) -> Tensor:
    """Where each place goes, towards an end of the box, the likelier the more room is there: (N, k) int64, (N, k) -> (N, k).

    In l0 all the way, in l1 as far as each of so many may.
    """
    low, high = oracle.threat.bounds
    value = oracle.x.flatten(1).gather(1, places)
    ends = torch.where(unit < (value - low) / (high - low), low, high).to(value.dtype)
    if oracle.threat.norm == "l0":
        return ends
    step = oracle.threat.radius / most
    return value + (ends - value).clamp_(-step, step)


def with_ends(oracle: Oracle, places: Tensor, ends: Tensor) -> Tensor:
    return oracle.x.flatten(1).scatter(1, places, ends).view_as(oracle.x)


def outside(places: Tensor, unit: Tensor, free: int) -> Tensor:
    """Distinct places that are not among those given: (N, k) int64, (N, m) in [0, 1), their number -> (N, m) int64."""
    count = unit.shape[1]
    rank = (unit * (free - count + 1)).long().clamp_(max=free - count).sort(dim=1).values
    rank += torch.arange(count, device=rank.device)  # of those left, no two alike
    before = places.sort(dim=1).values - torch.arange(places.shape[1], device=places.device)
    return rank + torch.searchsorted(before, rank, right=True)
