"""RayS, search over rays by decisions alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import choose, per_row
from robust.errors import InputError
from robust.oracle import Access, Oracle, State


@ATTACKS.register("rays")
@dataclass(frozen=True)
class RayS(Attack):
    """Ray searching: the nearest boundary along sign vectors (Chen & Gu 2020, arXiv 2006.12792): minimum linf norm.

    Blocks of the sign vector are flipped, first its halves, then quarters and so on; a flip stays if the
    point at the least distance so far is then misclassified, and a binary search finds how near it is.
    Sees labels only. It begins with the corners of the box: a sample with none misclassified among
    `queries` goes unattacked, and the report says so.

    Args:
        queries: forward passes at most, >= 2.
        tolerance: of the binary search, in units of the box's width, in (0, 1).
    """

    name: ClassVar[str] = "rays"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    access: ClassVar[Access] = "decision"
    paper: ClassVar[str] = "Chen & Gu 2020"
    minimum_norm: ClassVar[bool] = True

    queries: int = 5000
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        self.check_numbers()
        if self.queries < 2 or not 0 < self.tolerance < 1:
            raise InputError(
                f"rays: expected queries >= 2 and 0 < tolerance < 1, got {self.queries} and {self.tolerance}"
            )

    def run(self, oracle: Oracle) -> None:
        low, high = oracle.threat.bounds
        width, halvings = high - low, self._halvings()
        s = oracle.state()
        s.sign, s.radius = torch.ones_like(oracle.x), torch.full_like(oracle.x.flatten(1)[:, 0], width)
        s.found = torch.zeros_like(oracle.y, dtype=torch.bool)
        s.asked = torch.zeros_like(oracle.y)
        blocks = _blocks(oracle.x.shape[1:].numel())
        for _ in oracle.steps(self.queries):
            start, stop = next(blocks)
            for phase in oracle.steps(1 + halvings):
                if phase == 0:
                    flipped = s.sign.clone()
                    flipped.flatten(1)[:, start:stop].neg_()
                    wrong = self._decide(oracle, s, s.radius, flipped)
                    s.found = s.found | wrong
                    s.sign = choose(wrong, flipped, s.sign)
                    s.near, s.far = torch.zeros_like(s.radius), s.radius
                    oracle.rest(~wrong | (s.asked >= self.queries))
                    continue
                middle = (s.near + s.far) / 2
                wrong = self._decide(oracle, s, middle, s.sign)
                s.near, s.far = torch.where(wrong, s.near, middle), torch.where(wrong, middle, s.far)
                oracle.rest((s.far - s.near <= self.tolerance * width) | (s.asked >= self.queries))
            s.radius = s.far
            oracle.rest(s.asked >= self.queries)
        oracle.give_up(~s.found)

    def _decide(self, oracle: Oracle, s: State, radius: Tensor, sign: Tensor) -> Tensor:
        """Whether the points so far, (N,), along the signs are misclassified, (N,) bool: a query each."""
        s.asked = s.asked + 1
        return oracle.decide(oracle.clip(oracle.x + per_row(radius, sign) * sign))

    def _halvings(self) -> int:
        """How many it takes to halve the box's width down to the tolerance."""
        count = 1
        while 0.5**count > self.tolerance:
            count += 1
        return count


def _blocks(values: int) -> Iterator[tuple[int, int]]:
    """Nothing, the whole, then its halves, quarters and so on down to single values, and all over again."""
    yield 0, 0  # the first direction itself
    while True:
        size = values
        while True:
            for start in range(0, values, size):
                yield start, min(start + size, values)
            if size == 1:
                break
            size = -(-size // 2)
