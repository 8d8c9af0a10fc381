"""Basin hopping: from the best point of an ascent to a better one nearby, again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from robust.attacks.ascent import ascend, check_radii, classes_in_turn, diversify
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import per_row, random_start
from robust.errors import InputError
from robust.oracle import Access, Oracle, State

_MEMORY: Final = 3  # hops whose gains are looked at
_CLOSE: Final = 0.01  # of the clean margin
_FINISHED: Final = 0.03  # of the clean margin
_PATIENCE: Final = 6  # hops without hope that what is close is given


@ATTACKS.register("basin-hopping")
@dataclass(frozen=True)
class BasinHopping(Attack):
    """Monotonic basin hopping (Leary 2000; Wales & Doye 1997) on z_t - z_y.

    One ascent towards each of the likeliest classes, from outside the threat set inwards where `radii` says so.
    Then hops, from the best point that the ascents found inside: a random push, a diversified start (ODI, Tashiro
    et al. 2020, arXiv 2003.06878) and a short ascent towards that point's class; what is better becomes the point
    of the next hop. Where the surface has many local maxima, hops break what many times as many fresh starts do not.

    Args:
        steps: gradient steps of an ascent, >= 1.
        targets: most classes to ascend towards, >= 1.
        odi_steps: steps along random logit weights before an ascent, >= 0.
        radii: radii to search in turn, in units of eps, the last being 1.
        worth: classes after the first only where the margin came within this share of the clean one; None for all.
        hops: most hops of a sample, >= 0.
        hop_steps: gradient steps of a hop, >= 1.
        hop_odi_steps: steps along random logit weights before them, >= 0.
        push: length of a hop's random push, in units of eps, >= 0; one a chain, in turn, where several are given.
        chains: ascents and hops from so many starts at once, >= 1; a sample leaves when one of them breaks it.
        near: only samples hop whose best gap is within this share of the clean margin; None for all.
        gained: samples hop too that the ascents brought nearer than all attacks before, by more than this share of the clean
            margin, > 0: where gradients inside see little of the surface, hops see more. None: only near ones.
        hope: after two hops, a sample goes on while its best gap is within so many times what the last three gained, > 0;
            within a hundredth of its clean margin it goes on for six more; its chains do so together. None: to the last hop.
        momentum: weight of the new step against the previous move, in (0, 1].
        finish: steps of a last ascent, half as long, from the best point of a sample that came within three hundredths of its
            clean margin, >= 0: hops are too short to reach the very top of their hill.
        inward: ascents begin at the nearest adversarial point that earlier attacks saw beyond the threat, brought inside,
            and at x where they saw none, with steps half as long; without, at a random point.
    """

    name: ClassVar[str] = "basin-hopping"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Leary 2000"

    steps: int = 30
    targets: int = 3
    odi_steps: int = 2
    radii: tuple[float, ...] = (4.0, 2.5, 1.5, 1.0)
    worth: float | None = None
    hops: int = 16
    hop_steps: int = 12
    hop_odi_steps: int = 2
    push: float | tuple[float, ...] = 0.3
    chains: int = 1
    near: float | None = 0.3
    gained: float | None = None
    hope: float | None = 3.0
    momentum: float = 0.75
    inward: bool = False
    finish: int = 0

    def __post_init__(self) -> None:
        self.check_numbers()
        if (
            min(self.steps, self.targets, self.hop_steps) < 1
            or min(self.odi_steps, self.hops, self.hop_odi_steps, self.finish) < 0
        ):
            raise InputError(
                "basin-hopping: expected steps, targets and hop_steps >= 1 and odi_steps, hops, hop_odi_steps and finish >= 0, "
                f"got {self.steps}, {self.targets}, {self.hop_steps}, {self.odi_steps}, {self.hops}, {self.hop_odi_steps} "
                f"and {self.finish}"
            )
        if (
            min(self._pushes, default=-1) < 0
            or self.chains < 1
            or (self.hope is not None and self.hope <= 0)
            or (self.gained is not None and self.gained <= 0)
            or not 0 < self.momentum <= 1
        ):
            raise InputError(
                "basin-hopping: expected push >= 0, chains >= 1, hope > 0, gained > 0 and momentum in (0, 1], got "
                f"{self.push}, {self.chains}, {self.hope}, {self.gained} and {self.momentum}"
            )
        check_radii(self.name, self.radii, self.steps)

    @property
    def stays_inside(self) -> bool:
        """Whether every visited point lies in the threat set."""
        return max(self.radii) <= 1

    @property
    def begins_at_break(self) -> bool:
        return self.inward

    @property
    def _pushes(self) -> tuple[float, ...]:
        return self.push if isinstance(self.push, tuple) else (self.push,)

    def run(self, oracle: Oracle) -> Tensor:
        if self.chains == 1:
            return self._search(oracle).point
        with oracle.multiplied(self.chains) as many:
            s = self._search(many)
        if len(s.best) < self.chains * len(
            oracle
        ):  # some are broken: the rest of the points tell nothing of them
            return oracle.x
        best = s.best.view(-1, self.chains).argmax(1)
        return s.point.view(-1, self.chains, *s.point.shape[1:])[torch.arange(len(best)), best]

    def _search(self, oracle: Oracle) -> State:
        s = oracle.state()
        s.clean = oracle.clean_margin
        s.point, s.toward = oracle.x, oracle.y[:, None]
        s.best = torch.full_like(s.clean, -torch.inf)  # gap to the class in s.toward at s.point
        s.before = oracle.gaps.amax(1)  # of all attacks before
        for rank in classes_in_turn(oracle, s, self.targets):
            if self.worth is not None and rank:
                oracle.rest(oracle.gaps.amax(1) < oracle.left_at(self.worth) * s.clean)
            for _ in oracle.steps(1):
                self._start(oracle, s, rank)
        if self.near is not None:
            oracle.rest(self._all_chains(self._far(oracle, s)))
        s.marks = s.best[:, None].repeat(1, _MEMORY)
        s.waited = torch.zeros_like(oracle.y)
        lengths = torch.tensor(self._pushes, device=s.best.device)
        for hop in oracle.steps(self.hops):
            self._hop(oracle, s, hop, lengths)
            if self.hope is not None and hop:
                oracle.rest(self._all_chains(self._hopeless(s)))
            s.marks = torch.cat([s.marks[:, 1:], s.best[:, None]], 1)
        if self.finish:
            self._finish(oracle, s)
        return s

    def _start(self, oracle: Oracle, s: State, rank: int) -> None:
        streams = oracle.random("start", rank)
        s.x_adv = oracle.start if self.inward else random_start(oracle.x, oracle.threat, streams)
        diversify(oracle, s, self.odi_steps, streams, self.radii[0])
        ascend(oracle, s, self.steps, self.momentum, self.radii, size=1.0 if self.inward else 2.0)

    def _far(self, oracle: Oracle, s: State) -> Tensor:
        """Rows that are neither near nor nearer by much than all attacks before brought them."""
        assert self.near is not None
        far = s.best < oracle.left_at(self.near) * s.clean
        return far if self.gained is None else far & (s.best - s.before <= self.gained * -s.clean)

    def _hopeless(self, s: State) -> Tensor:
        """Rows that what they gained of late will not bring over their boundary."""
        assert self.hope is not None
        stuck = -s.best > self.hope * (s.best - s.marks[:, 0])
        s.waited = (s.waited + 1) * stuck
        close = -s.best <= _CLOSE * -s.clean
        return stuck & ~(close & (s.waited <= _PATIENCE))

    def _all_chains(self, rows: Tensor) -> Tensor:
        """Those of the rows ((N,) bool) whose sample has all its chains among them."""
        return rows.view(-1, self.chains).all(1).repeat_interleave(self.chains)

    def _hop(self, oracle: Oracle, s: State, hop: int, lengths: Tensor) -> None:
        streams = oracle.random("hop", hop)
        s.aim = s.toward
        push = random_start(oracle.x, oracle.threat, streams) - oracle.x
        length = lengths[oracle.copy_numbers % len(lengths)]
        s.x_adv = oracle.project(s.point + per_row(length, push) * push)
        diversify(oracle, s, self.hop_odi_steps, streams)
        ascend(oracle, s, self.hop_steps, self.momentum, size=1.0)

    def _finish(self, oracle: Oracle, s: State) -> None:
        oracle.rest(s.best < _FINISHED * s.clean)
        for _ in oracle.steps(1):
            s.x_adv, s.aim = s.point, s.toward
            ascend(oracle, s, self.finish, self.momentum, size=0.5)
