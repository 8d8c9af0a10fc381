"""Rotations and shifts on a grid."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor
from torch.nn import functional

from robust.errors import ThreatError
from robust.families.base import Bounds, FiniteFamily, images

ANGLES: Final = 31
SHIFTS: Final = 5  # along each axis


@dataclass(frozen=True)
class Spatial(FiniteFamily):
    """Rotations up to `angle` degrees with shifts up to `shift` of the side (Engstrom et al. 2019, arXiv 1712.02779).

    The set is the paper's grid: 31 angles x 5 x 5 shifts, evenly spaced from one end to the other, so that
    membership can be decided exactly. Bilinear; what comes in from outside is the box's lowest value.
    The size of a transformation is its larger share of what is allowed, 0 to 1.

    Args:
        angle: degrees, 0 to 180.
        shift: share of the side, 0 to 0.5.
    """

    angle: float
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.angle <= 180 and 0 <= self.shift <= 0.5) or self.angle == self.shift == 0:
            raise ThreatError(
                "threat spatial: expected degrees in [0, 180] and a share in [0, 0.5], not both 0, such as "
                f"'spatial:30,0.1', got {self.angle},{self.shift}"
            )

    @classmethod
    def read(cls, eps: str) -> Self:
        """See Family."""
        try:
            values = [float(part) for part in eps.split(",")]
            angle, shift = values if len(values) == 2 else (values[0], 0.0)
        except (ValueError, IndexError):
            raise ThreatError(
                f"threat spatial: expected 'spatial:DEGREES,SHARE' such as 'spatial:30,0.1', got {eps!r}"
            ) from None
        if len(values) > 2:
            raise ThreatError(f"threat spatial: expected two numbers, got {eps!r}")
        return cls(angle, shift)

    @property
    def radius(self) -> float:
        """The largest size, 1."""
        return 1.0

    @functools.cached_property
    def grid(self) -> list[tuple[float, float, float, float]]:
        """Size, angle, shift down and shift right of every transformation, by growing size."""
        angles = torch.linspace(-self.angle, self.angle, ANGLES).tolist() if self.angle else [0.0]
        shifts = torch.linspace(-self.shift, self.shift, SHIFTS).tolist() if self.shift else [0.0]
        cells = [
            (max(abs(a) / (self.angle or 1), abs(down) / (self.shift or 1), abs(right) / (self.shift or 1)), a, down, right)
            for a in angles for down in shifts for right in shifts
        ]  # fmt: skip
        return sorted(cells, key=lambda cell: (round(cell[0], 6), cell[1:]))

    @property
    def sizes(self) -> Sequence[float]:
        """See FiniteFamily."""
        return [min(cell[0], 1.0) for cell in self.grid]

    def member(self, x: Tensor, index: int, bounds: Bounds) -> Tensor:
        """See FiniteFamily."""
        _, angle, down, right = self.grid[index]
        return warp(images(x, "spatial"), angle, down, right, bounds)


def warp(x: Tensor, angle: float, down: float, right: float, bounds: Bounds) -> Tensor:
    """Rotate by degrees (counter-clockwise) about the centre, then shift by shares of the side."""
    n, _, height, width = x.shape
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # From output to input, in units where each side runs from -1 to 1.
    back = x.new_tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
    back[:, 2] = back[:, :2] @ x.new_tensor([-2 * right, -2 * down])
    where = functional.affine_grid(back.expand(n, 2, 3), list(x.shape), align_corners=False)
    low, high = bounds
    moved = functional.grid_sample(x - low, where, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (moved + low).clamp(low, high)
