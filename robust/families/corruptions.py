"""The fifteen common corruptions as a threat."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from robust.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from robust.errors import ThreatError
from robust.families.base import Bounds, FiniteFamily, images


@dataclass(frozen=True)
class Corruptions(FiniteFamily):
    """The 15 corruptions of Hendrycks & Dietterich 2019 (arXiv 1903.12261) at severities `least` to `most`.

    "corruptions" is all five severities, "corruptions:3" the third, "corruptions:1-3" the first three. The
    size of a corruption is its severity. Noise is a function of the image alone, as in the published
    corrupted sets, so that it can be made again.

    Args:
        least, most: severities, 1 to 5.
    """

    least: int = 1
    most: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most <= len(SEVERITIES):
            raise ThreatError(
                f"threat corruptions: expected severities in 1 to 5, growing, got {self.least}-{self.most}"
            )

    @classmethod
    def read(cls, eps: str) -> Self:
        """See Family."""
        match = re.fullmatch(r"(\d)(?:-(\d))?", eps.strip() or "1-5")
        if not match:
            raise ThreatError(
                "threat corruptions: expected 'corruptions', 'corruptions:3' or 'corruptions:1-3' "
                f"(severities 1 to 5), got {eps!r}"
            )
        return cls(int(match[1]), int(match[2] or match[1]))

    @property
    def radius(self) -> float:
        """The highest severity."""
        return float(self.most)

    @property
    def sizes(self) -> Sequence[float]:
        """See FiniteFamily."""
        return [float(severity) for severity in range(self.least, self.most + 1) for _ in CORRUPTIONS]

    def member(self, x: Tensor, index: int, bounds: Bounds) -> Tensor:
        """See FiniteFamily."""
        severity, kind = divmod(index, len(CORRUPTIONS))
        names = list(CORRUPTIONS)
        return corrupt(images(x, "corruptions"), names[kind], self.least + severity, bounds=bounds)
