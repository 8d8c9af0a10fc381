"""Lighter or darker paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robust.attacks import Attack
from robust.oracle import Access, Oracle


@dataclass(frozen=True)
class Brightness(Attack):
    """Moves all pixels by the same amount, up and down, in even steps to the threat's radius.

    Args:
        steps: amounts tried on each side.
    """

    name: ClassVar[str] = "brightness"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    access: ClassVar[Access] = "decision"
    paper: ClassVar[str] = "-"

    steps: int = 4

    def run(self, oracle: Oracle) -> None:
        for step in oracle.steps(2 * self.steps):
            amount = oracle.threat.radius * (step // 2 + 1) / self.steps
            oracle.decide(oracle.clip(oracle.x + (amount if step % 2 else -amount)))
