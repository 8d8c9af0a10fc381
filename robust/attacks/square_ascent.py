"""Random search by squares and ascents in turns: where to go by the one, up there by the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from robust.attacks.apgd import likeliest_wrong
from robust.attacks.ascent import ascend
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.random_search import behind_pace, rest_where_done
from robust.attacks.square import Square
from robust.errors import InputError
from robust.oracle import Access, Oracle, State
from robust.row_copies import repeated

_SCHEDULE: Final = 3000  # queries that the squares' shrinking is spread over, however few there are
_MOMENTUM: Final = 0.75
_SIZE: Final = 0.5  # of an ascent's first step, in radii


@ATTACKS.register("square-ascent")
@dataclass(frozen=True)
class SquareAscent(Attack):
    """Random search by squares (Andriushchenko et al. 2020, arXiv 1912.00049), and of what it finds an ascent by gradients.

    A memetic search (Moscato 1989). Squares soon find a high hill, also where gradients near x lead to none, but take
    thousands of queries to its top; an ascent takes some steps. After each round of queries one begins at the best point of
    the random search, which goes on from that point, not from where the ascent ended: tops are where squares find nothing.

    Args:
        rounds: of queries and an ascent, >= 1.
        queries: forward passes by squares in a round, >= 2 for each proposal.
        proposals: squares that are tried at once, >= 1; see `Square`.
        steps: of an ascent, >= 1, on the gap to the class that leads where it begins.
        pace: a sample goes on while the best gap of its ascents, as a share of the clean margin, times the part of the rounds
            that are spent is at most this, > 0. None: to the last round.
        scatter: a sample goes on while what is left of its margin is at most this multiple, > 0, of how far apart the first
            ascent, the best of all and the best point before the attack ended: where surfaces are smooth, all searches end on
            one top. None: however near to each other they ended.
    """

    name: ClassVar[str] = "square-ascent"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Andriushchenko et al. 2020"

    rounds: int = 6
    queries: int = 128
    proposals: int = 8
    steps: int = 20
    pace: float | None = None
    scatter: float | None = None

    def __post_init__(self) -> None:
        self.check_numbers()
        if min(self.rounds, self.proposals, self.steps) < 1 or self.queries < 2 * self.proposals:
            raise InputError(
                "square-ascent: expected rounds, proposals and steps >= 1 and queries >= 2 for each proposal, got "
                f"{self.rounds}, {self.proposals}, {self.steps} and {self.queries}"
            )
        for name in ("pace", "scatter"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise InputError(f"square-ascent: expected {name} > 0, got {value}")

    def run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        s.clean = oracle.clean_margin
        s.found, s.value = oracle.x, torch.full_like(s.clean, -torch.inf)  # where the squares are
        s.point, s.toward, s.best = s.found, oracle.y[:, None], s.value  # where the ascents were highest
        s.weights = torch.zeros_like(oracle.gaps)
        s.highest = s.lowest = oracle.gaps.amax(1)
        for turn in oracle.steps(self.rounds):
            self._search(oracle, s, turn)
            for _ in oracle.steps(1):
                s.x_adv, s.aim = s.found, likeliest_wrong(oracle.logits(s.found), oracle.y)[:, :1]
                ascend(oracle, s, self.steps, _MOMENTUM, size=_SIZE)
            if turn == 0:
                s.lowest = torch.minimum(s.highest, s.best)
            s.highest = torch.maximum(s.highest, s.best)
            rest_where_done(oracle, 1, self._hopeless(s, (turn + 1) / self.rounds))
        return s.point

    def _hopeless(self, s: State, spent: float) -> Tensor | None:
        """Which samples further rounds would hardly break, (N,) bool; None where all go on."""
        behind = behind_pace(s, self.pace, spent)
        if self.scatter is None:
            return behind
        settled = -s.highest > self.scatter * (s.highest - s.lowest)
        return settled if behind is None else behind | settled

    def _search(self, oracle: Oracle, s: State, turn: int) -> None:
        """A round of the random search, from s.found."""
        squares = Square(queries=_SCHEDULE, proposals=self.proposals)
        changes = self.queries // self.proposals
        with oracle.multiplied(self.proposals) as many:
            t = many.state()
            t.aim = many.y[:, None]
            t.x_adv, t.best = repeated(s.found, self.proposals), repeated(s.value, self.proposals)
            if turn == 0:
                squares.open(many, t, 0)
            squares.walk(many, t, 0, turn * changes, changes - (turn == 0))
            first = many.copy_numbers == 0
            of = many.originals[first]  # of the others one is broken
            s.found = s.found.index_copy(0, of, t.x_adv[first])
            s.value = s.value.index_copy(0, of, t.best[first])
