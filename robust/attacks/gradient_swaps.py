"""Local search by swaps that the gradient proposes: which few values to change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from robust.attacks.aims import aimed_margin
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import replace
from robust.attacks.random_search import behind_pace, rest_where_done, share_best
from robust.attacks.sparse_rs import most_changes, with_ends
from robust.errors import InputError
from robust.oracle import Access, Oracle, State
from robust.row_copies import repeated

_BEST: Final = ("found", "places", "ends", "worth")  # what goes with the best point of a sample
_CHANGED: Final = 0.1  # of the box, the least that a change moves a value by
_FALL: Final = 16  # how fast the number of swaps at once falls


@ATTACKS.register("gradient-swaps")
@dataclass(frozen=True)
class GradientSwaps(Attack):
    """Local search of the few values that change, by swaps that the gradient of the margin promises most of.

    In each round the gradient at the best point so far says to first order what every value would gain at an end of the box, as
    a saliency map does (Papernot et al. 2016, arXiv 1511.07528), and what each that is changed adds. Then swaps are drawn, the
    likelier the more they promise, and the best of those tried at once is kept where it gains, as in Sparse-RS (Croce et al. 2022,
    arXiv 2006.12834), which draws them blindly. Of use where gradients can be trusted.

    Args:
        rounds: gradients, >= 1.
        tries: times that swaps are tried after each, >= 1.
        proposals: swaps that are tried at once, of which the best is taken if it gains, >= 1.
        p_init: part of the changed values that a swap replaces at first, in (0, 1]; it falls to a single one.
        pace: a sample goes on while its best gap, as a share of the clean margin, times the part of the rounds that are spent is at
            most this, > 0. None: to the last round.
    """

    name: ClassVar[str] = "gradient-swaps"
    norms: ClassVar[tuple[str, ...]] = ("l0",)
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Papernot et al. 2016"

    rounds: int = 60
    tries: int = 2
    proposals: int = 8
    p_init: float = 0.3
    pace: float | None = None

    def __post_init__(self) -> None:
        self.check_numbers("pace")
        if min(self.rounds, self.tries, self.proposals) < 1 or not 0 < self.p_init <= 1:
            raise InputError(
                "gradient-swaps: expected rounds, tries and proposals >= 1 and p_init in (0, 1], got "
                f"{self.rounds}, {self.tries}, {self.proposals} and {self.p_init}"
            )

    def run(self, oracle: Oracle) -> Tensor:
        s, most = oracle.state(), most_changes(oracle, 1.0)
        s.clean = oracle.clean_margin
        s.found, s.best = oracle.x, torch.full_like(s.clean, -torch.inf)
        s.ends = s.worth = oracle.x.new_zeros((len(oracle), most))
        s.places = torch.zeros_like(s.ends, dtype=torch.int64)
        for turn in oracle.steps(self.rounds):
            for _ in oracle.steps(1):
                self._look(oracle, s, first=turn == 0)
            self._try(oracle, s, turn)
            rest_where_done(oracle, 1, behind_pace(s, self.pace, (turn + 1) / self.rounds))
        return s.found

    def _look(self, oracle: Oracle, s: State, *, first: bool) -> None:
        """Set what the gradient at the best point says of every value: its `gain` at the end `to` of the box, and the `order` by it.

        Of those that are changed, their `worth`: what leaving them as in x would lose.
        """
        gradient = oracle.gradient(s.found, aimed_margin, oracle.y[:, None]).gradient.flatten(1)
        (low, high), x = oracle.threat.bounds, oracle.x.flatten(1)
        near, none = _CHANGED * (high - low), torch.full_like(x, -torch.inf)
        down = torch.where(x - low > near, gradient * (low - x), none)
        up = torch.where(high - x > near, gradient * (high - x), none)
        s.gain, s.to = torch.maximum(down, up), torch.where(down > up, low, high).to(x.dtype)
        unchanged = s.gain
        if not first:
            s.worth = (gradient * (s.found.flatten(1) - x)).gather(1, s.places)
            unchanged = s.gain.scatter(1, s.places, -torch.inf)
        s.order = unchanged.argsort(dim=1, descending=True, stable=True)

    def _try(self, oracle: Oracle, s: State, turn: int) -> None:
        """Swap, and keep what is best."""
        with oracle.multiplied(self.proposals) as many:
            t = many.state()
            for name in ("best", *_BEST):
                setattr(t, name, repeated(getattr(s, name), self.proposals))
            for step in many.steps(self.tries):
                done = turn * self.tries + step
                changed = self._swapped(many, s, t, done) if done else self._begun(many, s, t)
                value = aimed_margin(many.logits(changed[0]), many.y, many.y[:, None])
                better = value > t.best
                t.best = torch.where(better, value, t.best)
                replace(better, *zip((getattr(t, name) for name in _BEST), changed, strict=True))
                share_best(t, self.proposals, _BEST)
            first = many.copy_numbers == 0
            of = many.originals[first]  # of the others one is broken
            for name in ("best", *_BEST):
                setattr(s, name, getattr(s, name).index_copy(0, of, getattr(t, name)[first]))

    def _begun(self, many: Oracle, s: State, t: State) -> tuple[Tensor, ...]:
        """The values that promise most together, and in the other copies others of the best: as `_BEST` lists it."""
        most, of = t.places.shape[1], many.originals[:, None]
        pooled = min(3 * most, s.order.shape[1])
        unit = many.random("begin").uniform((pooled,))
        rank = torch.arange(pooled, device=unit.device) / pooled
        first = (many.copy_numbers == 0)[:, None]
        places = s.order[of, torch.where(first, -rank, unit - rank).topk(most, dim=1).indices]
        ends = s.to[of, places]
        return with_ends(many, places, ends), places, ends, s.gain[of, places]

    def _swapped(self, many: Oracle, s: State, t: State, done: int) -> tuple[Tensor, ...]:
        """Some of the changed values left as they are in x and others changed, drawn by rank: as `_BEST` lists it."""
        most, of = t.places.shape[1], many.originals[:, None]
        free = s.order.shape[1] - most
        spent = done / (self.rounds * self.tries)
        count = min(max(1, round(self.p_init / (1 + _FALL * spent) * most)), free)
        unit = many.random("swap", done).uniform((count + most,))
        rank = (free + 1) ** unit[:, :count] - 1  # the r-th about as often as 1 / r
        coming = s.order[of, rank.long().clamp_(max=max(free - 1, 0))]
        least = t.worth.argsort(dim=1, stable=True).argsort(dim=1)
        leaving = (
            ((1 + least) * -unit[:, count:].clamp_min(1e-9).log()).topk(count, dim=1, largest=False).indices
        )
        new = ~_among(coming, t.places, earlier=False) & ~_among(coming, coming, earlier=True)
        places, ends, worth = (
            old.scatter(1, leaving, torch.where(new, value, old.gather(1, leaving)))
            for old, value in (
                (t.places, coming), (t.ends, s.to[of, coming]), (t.worth, s.gain[of, coming])
            )
        )  # fmt: skip
        return with_ends(many, places, ends), places, ends, worth


def _among(values: Tensor, others: Tensor, *, earlier: bool) -> Tensor:
    """Which values of a row are among the others, or `earlier` among them: (N, m) and (N, k) -> (N, m) bool."""
    same = values[:, :, None] == others[:, None, :]
    return (same.tril(-1) if earlier else same).any(2)
