"""PMA, the probability margin attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robust.attacks.base import ATTACKS
from robust.attacks.md import MD


@ATTACKS.register("pma")
@dataclass(frozen=True)
class PMA(MD):
    """MD's two stages on softmax probabilities: p_max - p_y (Xie et al. 2024, arXiv 2411.15210).

    Args:
        steps: gradient steps a run, >= 2.
        runs: with independent random starts, the two terms in turn, >= 1.
        targets: 0 against any class; else so many runs for each of so many nearest classes.
    """

    name: ClassVar[str] = "pma"
    paper: ClassVar[str] = "Xie et al. 2024"

    steps: int = 100

    def _scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)
