"""Anything within one rectangle."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from robust.errors import InputError, ThreatError
from robust.families.base import Bounds, Family, images
from robust.rng import Streams


@dataclass(frozen=True)
class Patch(Family):
    """All pixels of one rectangle, anywhere in the image, at any value of the box (Brown et al. 2017, arXiv 1712.09665).

    The size of a change is the larger side of the rectangle about the changed pixels, in units of the
    patch's side: 1 for one that needs the whole patch.

    Args:
        height, width: of the patch, in pixels, >= 1.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ThreatError(f"threat patch: expected sides >= 1, got {self.height}x{self.width}")

    @classmethod
    def read(cls, eps: str) -> Self:
        """See Family."""
        match = re.fullmatch(r"(\d+)(?:x(\d+))?", eps.strip())
        if not match:
            raise ThreatError(
                f"threat patch: expected 'patch:HEIGHTxWIDTH' in pixels such as 'patch:5x5', got {eps!r}"
            )
        return cls(int(match[1]), int(match[2] or match[1]))

    @property
    def radius(self) -> float:
        """The largest size, 1."""
        return 1.0

    def distance(self, x_adv: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        """See Family."""
        changed = (images(x_adv, "patch") != x).any(1)  # (N, H, W)
        tall, wide = _extent(changed.any(2)), _extent(changed.any(1))
        return torch.maximum(tall / self.height, wide / self.width).to(x_adv.dtype)

    def project(self, x_adv: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        """See Family: the change within the rectangle that keeps most of it."""
        clipped = images(x_adv, "patch").clamp(*bounds)
        gain = (x_adv - x).square() - (x_adv - clipped).square()
        return torch.where(self.window(self.scores(gain.sum(1)).flatten(1).argmax(1), x), clipped, x)

    def scores(self, pixels: Tensor) -> Tensor:
        """Sums over every place of the patch: (N, H, W) -> (N, H - height + 1, W - width + 1)."""
        self._fits(pixels.shape[1], pixels.shape[2])
        return functional.avg_pool2d(pixels[:, None], (self.height, self.width), stride=1)[:, 0]

    def window(self, place: Tensor, x: Tensor) -> Tensor:
        """The patch's pixels at a place (index into `scores`, flattened, (N,)): (N, 1, H, W) bool."""
        height, width = x.shape[2:]
        across = width - self.width + 1
        rows = torch.arange(height, device=x.device) - (place // across)[:, None]
        columns = torch.arange(width, device=x.device) - (place % across)[:, None]
        tall, wide = (rows >= 0) & (rows < self.height), (columns >= 0) & (columns < self.width)
        return (tall[:, :, None] & wide[:, None])[:, None]

    def random_window(self, x: Tensor, streams: Streams) -> Tensor:
        """The patch at a random place of each row: (N, 1, H, W) bool."""
        height, width = images(x, "patch").shape[2:]
        self._fits(height, width)
        places = (height - self.height + 1) * (width - self.width + 1)
        return self.window(streams.integers((1,), 0, places).squeeze(1), x)

    def _fits(self, height: int, width: int) -> None:
        if self.height > height or self.width > width:
            raise InputError(
                f"threat patch: {self.height}x{self.width} is larger than the image, {height}x{width}"
            )


def _extent(changed: Tensor) -> Tensor:
    """From the first to the last changed line, 0 for none: (N, L) bool -> (N,)."""
    length = changed.shape[1]
    at = torch.arange(length, device=changed.device)
    first = torch.where(changed, at, length).amin(1)
    last = torch.where(changed, at, -1).amax(1)
    return (last - first + 1).clamp_min(0).to(torch.float64)
