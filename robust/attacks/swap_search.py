"""Local search by swaps: which few values to change, found from what each does alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from robust.attacks.aims import aimed_margin
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import replace
from robust.attacks.random_search import behind_pace, in_copies, rest_where_done, share_best
from robust.attacks.sparse_rs import drawn_ends, most_changes, with_ends
from robust.errors import InputError
from robust.oracle import Access, Oracle, State

_WORST: Final = -math.inf
_CARRIED: Final = ("places", "ends", "x_adv", "swapped", "left")  # of the best point, and how it was come to


@ATTACKS.register("swap-search")
@dataclass(frozen=True)
class SwapSearch(Attack):
    """Score-based local search of the few values that change, by swaps of one for another.

    As CornerSearch (Croce & Hein 2019, arXiv 1909.05040) it sets values to an end of the box, in l1 a share of eps towards it,
    one by one, and combines those that move the gap most; greedy local search (Narodytska & Kasiviswanathan 2017, arXiv
    1612.06299) from there: in each round the gain of some further values and the loss of each that is changed are measured,
    and the swaps tried whose sum is the largest. Where none gains, the last best is taken, and the value that left does not
    soon come back (tabu search, Glover 1989). Sees no gradient, so masking does not stop it.

    Args:
        queries: forward passes, at least what the first combination takes.
        alone: values, drawn at random, of which the effect is measured at the beginning, >= 1.
        kept: of the best values so far, how many are measured in a round, >= 1.
        fresh: how many others at random, >= 0.
        swaps: tried in a round, rounded up to `at_once`, >= 1.
        at_once: queries of a sample that go through the model together, >= 1.
        pace: a sample goes on while its best gap, as a share of the clean margin, times the part of the queries that are
            spent is at most this, > 0. None: to the last query.
        spread: in l1 so many times as many values change as eps lets cross the whole box, each by its share of eps, > 0.
    """

    name: ClassVar[str] = "swap-search"
    norms: ClassVar[tuple[str, ...]] = ("l0", "l1")
    access: ClassVar[Access] = "score"
    paper: ClassVar[str] = "Croce & Hein 2019"
    stays_inside: ClassVar[bool] = False  # what a value adds is measured on top of all that are changed

    queries: int = 3000
    alone: int = 800
    kept: int = 64
    fresh: int = 32
    swaps: int = 48
    at_once: int = 16
    pace: float | None = None
    spread: float = 1.0

    def __post_init__(self) -> None:
        if min(self.queries, self.alone, self.kept, self.swaps, self.at_once) < 1 or self.fresh < 0:
            raise InputError(
                "swap-search: expected queries, alone, kept, swaps and at_once >= 1 and fresh >= 0, got "
                f"{self.queries}, {self.alone}, {self.kept}, {self.swaps}, {self.at_once} and {self.fresh}"
            )
        self.check_numbers("pace", "spread")

    def run(self, oracle: Oracle) -> Tensor:
        return in_copies(oracle, self.at_once, self._search)

    def _search(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        s.clean = oracle.clean_margin
        self._measure_alone(oracle, s)
        self._combine(oracle, s)
        most, free = self._most(oracle), oracle.x.shape[1:].numel() - self._most(oracle)
        spent = self.at_once * (self._steps(self._some(oracle)) + 1)
        parts = (min(self.kept + self.fresh, free), most, self.swaps)
        a_round = self.at_once * sum(map(self._steps, parts))
        rounds = (self.queries - spent) // a_round if free else 0
        for done in oracle.steps(max(0, rounds) + 1):
            if done:
                self._swap(oracle, s, done)
            self._end_round(oracle, s)
            share = (spent + done * a_round) / self.queries
            rest_where_done(oracle, self.at_once, behind_pace(s, self.pace, share))  # from the next round on
        return s.x_adv

    def _some(self, oracle: Oracle) -> int:
        """How many values are measured alone: enough to choose from."""
        return min(oracle.x.shape[1:].numel(), max(self.alone, 2 * self._most(oracle)))

    def _steps(self, queries: int) -> int:
        return -(-queries // self.at_once)

    def _measure_alone(self, oracle: Oracle, s: State) -> None:
        """Set `pool`, `to` and `gain`, (N, P), of values measured alone, the best first; and the `scores`."""
        unit = self._of_sample(oracle, self._unit(oracle, "places"))
        s.pool = self._each(unit.topk(self._some(oracle), dim=1).indices)
        s.to = self._drawn(oracle, s.pool, "ends")
        s.x_adv, s.best = oracle.x, oracle.clean_margin
        s.scores = self._dealt(torch.full_like(unit, _WORST))
        s.gain = oracle.x.flatten(1)[:, :0]
        for step in oracle.steps(self._steps(s.pool.shape[1])):
            self._measure_added(oracle, s, step)
        if not len(oracle):
            return  # before all was measured
        self._note_scores(oracle, s)
        best = s.gain.topk(min(2 * self._most(oracle), s.pool.shape[1]), dim=1).indices
        s.pool, s.to = s.pool.gather(1, best), s.to.gather(1, best)

    def _measure_added(self, oracle: Oracle, s: State, step: int) -> None:
        """Add to `gain` what the next values of the pool do, each in a copy of its own, on top of what is changed."""
        at = self._own(oracle, step, s.pool.shape[1])
        x_adv = s.x_adv.flatten(1).scatter(1, s.pool.gather(1, at), s.to.gather(1, at))
        s.gain = torch.cat([s.gain, self._of_all(self._gap(oracle, x_adv))], dim=1)[:, : s.pool.shape[1]]

    def _note_scores(self, oracle: Oracle, s: State) -> None:
        """What the values of the pool gained last."""
        scores = self._of_sample(oracle, s.scores)
        gained = (s.gain - s.best[:, None])[:: self.at_once]
        s.scores = self._dealt(scores.scatter(1, s.pool[:: self.at_once], gained))

    def _combine(self, oracle: Oracle, s: State) -> None:
        """The best together, or others of the best where a copy finds these better: `places`, `ends` and `best`."""
        most, pooled = self._most(oracle), s.pool.shape[1]
        for _ in oracle.steps(1):
            unit = oracle.random("combine").uniform((pooled,))
            rank = torch.arange(pooled, device=unit.device) / pooled
            first = (oracle.copy_numbers == 0)[:, None]
            chosen = torch.where(first, -rank, unit - rank).topk(most, dim=1).indices
            s.places, s.ends = s.pool.gather(1, chosen), s.to.gather(1, chosen)
            s.x_adv = with_ends(oracle, s.places, s.ends)
            s.best = self._gap(oracle, s.x_adv)
            s.swapped = s.left = torch.full_like(oracle.y, -1)[:, None]
            share_best(s, self.at_once, _CARRIED)

    def _swap(self, oracle: Oracle, s: State, done: int) -> None:
        """A round: measure, then try the swaps that promise most, `at_once` at a time."""
        self._choose_candidates(oracle, s, done)
        s.gain = s.loss = oracle.x.flatten(1)[:, :0]
        for step in oracle.steps(self._steps(s.pool.shape[1])):
            self._measure_added(oracle, s, step)
        if not len(oracle):
            return  # before all was measured
        self._note_scores(oracle, s)
        for step in oracle.steps(self._steps(s.places.shape[1])):
            self._measure_removed(oracle, s, step)
        s.promise = s.gain[:, :, None] + s.loss[:, None, :]
        s.gained = torch.zeros_like(s.best, dtype=torch.bool)
        for step in oracle.steps(self._steps(self.swaps)):
            self._try(oracle, s, last=step == self._steps(self.swaps) - 1)

    def _end_round(self, oracle: Oracle, s: State) -> None:
        """What a round alone needs goes: of samples that rest from here on it would not be as wide as of the others."""
        s.pool = s.to = s.gain = s.loss = s.promise = oracle.x.flatten(1)[:, :0]
        s.gained = torch.zeros_like(oracle.y, dtype=torch.bool)

    def _choose_candidates(self, oracle: Oracle, s: State, done: int) -> None:
        """`pool` and `to`: values that are not changed, those of the best scores and some at random."""
        free = oracle.x.shape[1:].numel() - s.places.shape[1]
        scores = self._of_sample(oracle, s.scores)
        order = self._of_sample(oracle, self._unit(oracle, "fresh", done))
        changed = s.places[:: self.at_once]
        best = scores.scatter(1, changed, _WORST).topk(min(self.kept, free), dim=1).indices
        order = order.scatter(1, best, 2.0).scatter(1, changed, -1.0)
        s.pool = self._each(order.topk(min(self.kept + self.fresh, free), dim=1).indices)
        s.to = self._drawn(oracle, s.pool, "to", done)

    def _measure_removed(self, oracle: Oracle, s: State, step: int) -> None:
        """Add to `loss` what is left without the next changes, each in a copy of its own."""
        places = s.places.gather(1, self._own(oracle, step, s.places.shape[1]))
        x_adv = s.x_adv.flatten(1).scatter(1, places, oracle.x.flatten(1).gather(1, places))
        s.loss = torch.cat([s.loss, self._of_all(self._gap(oracle, x_adv))], dim=1)[:, : s.places.shape[1]]

    def _try(self, oracle: Oracle, s: State, *, last: bool) -> None:
        """A swap for each copy; the best is taken if it gains, or at the end of a round in which none did."""
        promise, places = s.promise.flatten(1), s.places.shape[1]
        tried = promise.topk(min(self.at_once, promise.shape[1]), dim=1).indices
        own = tried.gather(1, self._own(oracle, 0, tried.shape[1]))
        come, leave = own // places, own % places
        new = s.places.scatter(1, leave, s.pool.gather(1, come))
        ends = s.ends.scatter(1, leave, s.to.gather(1, come))
        x_adv = with_ends(oracle, new, ends)
        value = self._gap(oracle, x_adv)
        taken = value > s.best
        s.gained = s.gained | self._of_all(taken).any(1)
        if last:
            taken = taken | ~s.gained
        s.swapped = torch.where(taken[:, None], own, -1)
        s.left = torch.where(taken[:, None], s.places.gather(1, leave), -1)
        s.best = torch.where(taken, value, s.best)
        replace(taken, (s.places, new), (s.ends, ends), (s.x_adv, x_adv))
        share_best(s, self.at_once, _CARRIED)
        self._forbid(oracle, s, tried)

    def _forbid(self, oracle: Oracle, s: State, tried: Tensor) -> None:
        """No swap twice in a round, none with either value of one that was taken; what left has no score any more."""
        places, took = s.places.shape[1], s.swapped >= 0
        promise = s.promise.flatten(1).scatter(1, tried, _WORST).view_as(s.promise)
        row = torch.arange(promise.shape[1], device=took.device) == s.swapped // places
        column = torch.arange(places, device=took.device) == s.swapped % places
        s.promise = promise.masked_fill((row[:, :, None] | column[:, None, :]) & took[:, :, None], _WORST)
        scores, left = self._of_sample(oracle, s.scores), s.left[:: self.at_once]
        gone = torch.arange(scores.shape[1], device=left.device) == left
        s.scores = self._dealt(scores.masked_fill(gone, _WORST))

    def _gap(self, oracle: Oracle, x_adv: Tensor) -> Tensor:
        return aimed_margin(oracle.logits(x_adv.view_as(oracle.x)), oracle.y, oracle.y[:, None])

    def _own(self, oracle: Oracle, step: int, count: int) -> Tensor:
        """Which of so many things each copy looks at in a step, (N, 1)."""
        return (oracle.copy_numbers + step * self.at_once).clamp(max=count - 1)[:, None]

    def _of_all(self, value: Tensor) -> Tensor:
        """What all copies of a sample have, for each of them: (N,) -> (N, copies)."""
        return value.view(-1, self.at_once).repeat_interleave(self.at_once, dim=0)

    def _each(self, value: Tensor) -> Tensor:
        """For every copy what its sample has: (samples, ...) -> (N, ...)."""
        return value.repeat_interleave(self.at_once, dim=0)

    def _drawn(self, oracle: Oracle, places: Tensor, *purpose: str | int) -> Tensor:
        """Ends for places, the same for all copies."""
        unit = oracle.random(*purpose).uniform((places.shape[1],))
        return drawn_ends(oracle, places, self._each(unit[:: self.at_once]), self._most(oracle))

    def _most(self, oracle: Oracle) -> int:
        return most_changes(oracle, self.spread)

    # A number for each value of a sample is dealt out to its copies, so that a row holds its part of them.

    def _unit(self, oracle: Oracle, *purpose: str | int) -> Tensor:
        """Random numbers in [0, 1), dealt out: (N, part)."""
        return oracle.random(*purpose).uniform((self._steps(oracle.x.shape[1:].numel()),))

    def _of_sample(self, oracle: Oracle, dealt: Tensor) -> Tensor:
        """(N, part) -> (samples, values)."""
        return dealt.reshape(-1, self.at_once * dealt.shape[1])[:, : oracle.x.shape[1:].numel()]

    def _dealt(self, value: Tensor) -> Tensor:
        """(samples, values) -> (N, part)."""
        part = self._steps(value.shape[1])
        value = torch.nn.functional.pad(value, (0, part * self.at_once - value.shape[1]), value=_WORST)
        return value.reshape(-1, part)
