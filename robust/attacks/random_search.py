"""Random search on the gap: what Square and Sparse-RS share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar, Final

import torch
from torch import Tensor

from robust.attacks.aims import aimed_margin
from robust.attacks.apgd import likeliest_wrong
from robust.attacks.base import Attack
from robust.attacks.geometry import replace
from robust.errors import InputError
from robust.oracle import Access, Oracle, State
from robust.rng import Streams

_AT_ONCE: Final = 25  # steps whose random numbers are drawn together: a draw costs little more than its call
_PACED: Final = 5  # steps after which a sample's pace is looked at


class RandomSearch(Attack):
    """Random changes of the best point so far, kept where the gap to the aim grows. Sees scores alone.

    Subclasses say where it begins, what a change is, and how large it is by the queries spent.
    """

    access: ClassVar[Access] = "score"
    carried: ClassVar[tuple[str, ...]] = ("x_adv",)  # the names in the state of what a change replaces

    queries: int
    restarts: int
    p_init: float
    stretched: bool
    targets: int
    proposals: int
    pace: float | None

    def __post_init__(self) -> None:
        self.check_numbers()
        if (
            min(self.restarts, self.proposals) < 1
            or self.queries < 2 * self.proposals
            or not 0 < self.p_init <= 1
            or self.targets < 0
        ):
            raise InputError(
                f"{self.name}: expected restarts and proposals >= 1, queries >= 2 for each proposal, p_init in (0, 1] and "
                f"targets >= 0, got {self.restarts}, {self.proposals}, {self.queries}, {self.p_init} and {self.targets}"
            )
        if self.pace is not None and self.pace <= 0:
            raise InputError(f"{self.name}: expected pace > 0, got {self.pace}")

    @abstractmethod
    def _begin(self, oracle: Oracle, s: State, streams: Streams) -> None:
        """Set what is `carried`: the first point, and what goes with it."""

    @abstractmethod
    def _numbers(self, oracle: Oracle) -> int:
        """How many random numbers a change takes."""

    @abstractmethod
    def _change(self, oracle: Oracle, s: State, size: float, unit: Tensor) -> tuple[Tensor, ...]:
        """What is `carried`, after a change of a size by random numbers in [0, 1), (N, numbers)."""

    @abstractmethod
    def _size(self, query: int) -> float:
        """Of a change, after so many of 10,000 queries."""

    def run(self, oracle: Oracle) -> Tensor:
        return self._run(oracle) if self.proposals == 1 else in_copies(oracle, self.proposals, self._run)

    def _run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        s.ranking = likeliest_wrong(oracle.logits(oracle.x), oracle.y) if self.targets else oracle.y[:, None]
        for rank in oracle.steps(min(max(self.targets, 1), s.ranking.shape[1])):
            s.aim = s.ranking[:, rank : rank + 1]
            for restart in oracle.steps(self.restarts):
                self._search(oracle, s, rank * self.restarts + restart)
        return s.x_adv

    def _search(self, oracle: Oracle, s: State, run: int) -> None:
        if self._paced:
            s.clean = oracle.clean_margin
        self.open(oracle, s, run)
        self.walk(oracle, s, run, 0, self._changes)

    @property
    def _paced(self) -> bool:
        """Whether samples are asked how far they have come."""
        return self.pace is not None

    @property
    def _changes(self) -> int:
        """How many changes a search tries one after the other: its queries but for the first point's."""
        return self.queries // self.proposals - 1

    def open(self, oracle: Oracle, s: State, run: int) -> None:
        """Begin a search at its first point."""
        self._begin(oracle, s, oracle.random(run))
        s.best = aimed_margin(oracle.logits(s.x_adv), oracle.y, s.aim)

    def walk(self, oracle: Oracle, s: State, run: int, first: int, count: int) -> None:
        """Try `count` changes, of which the search has tried so many before."""
        numbers = self._numbers(oracle)
        for step in oracle.steps(count):
            if step % _AT_ONCE == 0:
                s.unit = oracle.random(run, first + step).uniform((_AT_ONCE, numbers))
            self._share(s)
            if step % _PACED == 0:
                self._end(oracle, s, (first + step) / self._changes)
            query = (first + step) * self.proposals
            size = self._size(query * 10_000 // self.queries if self.stretched else query)
            changed = self._change(oracle, s, size, s.unit[:, step % _AT_ONCE])
            value = aimed_margin(oracle.logits(changed[0]), oracle.y, s.aim)
            better = value > s.best
            s.best = torch.where(better, value, s.best)
            replace(better, *zip((getattr(s, name) for name in self.carried), changed, strict=True))
        self._share(s)

    def _end(self, oracle: Oracle, s: State, spent: float) -> None:
        """End the search of samples that are behind the pace, or broken: changes are as large as eps, and seldom smaller later."""
        rest_where_done(oracle, self.proposals, self._behind(s, spent))

    def _behind(self, s: State, spent: float) -> Tensor | None:
        """Whose search has come too little way for the part of the queries that is spent, (N,) bool."""
        return behind_pace(s, self.pace, spent)

    def _share(self, s: State) -> None:
        if self.proposals > 1:
            share_best(s, self.proposals, self.carried)


# -- of searches that try several points of a sample at once, each in a copy of its row


def in_copies(oracle: Oracle, copies: int, search: Callable[[Oracle], Tensor]) -> Tensor:
    """What a search finds that has every live row so many times: (N, ...)."""
    with oracle.multiplied(copies) as many:
        x_adv = search(many)
    return x_adv[::copies] if len(x_adv) == copies * len(oracle) else oracle.x


def rest_where_done(oracle: Oracle, copies: int, behind: Tensor | None) -> None:
    """Let samples rest that are broken, or behind ((N,) bool)."""
    done = oracle.reached
    if done is not None:
        done = done.view(-1, copies).any(1).repeat_interleave(copies)
    if behind is not None:
        done = behind if done is None else done | behind
    if done is not None:
        oracle.rest(done)


def behind_pace(s: State, pace: float | None, spent: float) -> Tensor | None:
    """Where `best`, as a share of `clean`, times what is spent is over the pace; None without one."""
    return None if pace is None else spent * s.best < pace * s.clean


def share_best(s: State, copies: int, names: Iterable[str]) -> None:
    """Give all copies of a sample the `best` among them, and what else goes with it by these names."""
    best = s.best.view(-1, copies).argmax(1)
    best += torch.arange(0, len(s.best), copies, device=best.device)
    best = best.repeat_interleave(copies)
    for name in ("best", *names):
        setattr(s, name, getattr(s, name)[best])
