"""What a threat without a norm must know: how large a change is, and what lies nearest inside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, Self

import torch
from torch import Tensor

from robust.errors import InputError

Bounds = tuple[float, float]
SAME: Final = 1e-5  # float32 rounding of a transformation made again in another batch


class Family(ABC):
    """The set of allowed changes of an image, and their sizes. Sizes run up to `radius`; beyond is inf."""

    @classmethod
    @abstractmethod
    def read(cls, eps: str) -> Self:
        """From what follows the colon: "30,0.1" of "spatial:30,0.1".

        Raises:
            ThreatError: it cannot be read.
        """

    @property
    @abstractmethod
    def radius(self) -> float:
        """The largest size."""

    @abstractmethod
    def distance(self, x_adv: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        """Size of the change from x to x_adv, inf if it is none of the family's: (N, C, H, W) twice -> (N,)."""

    @abstractmethod
    def project(self, x_adv: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        """The allowed point nearest to x_adv (Euclidean)."""


class FiniteFamily(Family):
    """A family of finitely many transformations: what is inside is found by trying them all."""

    @property
    @abstractmethod
    def sizes(self) -> Sequence[float]:
        """The size of every transformation, growing."""

    @abstractmethod
    def member(self, x: Tensor, index: int, bounds: Bounds) -> Tensor:
        """The transformation at `index` of `sizes`, of every row by itself: (N, C, H, W) -> (N, C, H, W)."""

    @torch.no_grad()
    def distance(self, x_adv: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        """See Family: the size of the smallest transformation that gives x_adv."""
        kind, x_adv, x = x_adv.dtype, x_adv.float(), x.float()
        found = torch.full((len(x),), torch.inf, device=x.device)
        found[_gap(x_adv, x) <= SAME] = 0.0
        for index, size in enumerate(self.sizes):
            open_ = found.isinf().nonzero().squeeze(1)
            if not len(open_):
                break
            same = _gap(x_adv[open_], self.member(x[open_], index, bounds)) <= SAME
            found[open_[same]] = size
        return found.to(kind)

    @torch.no_grad()
    def project(self, x_adv: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        """See Family: the nearest outcome, or x."""
        nearest, least = x.clone(), (x_adv - x).flatten(1).norm(dim=1)
        for index in range(len(self.sizes)):
            point = self.member(x.float(), index, bounds)
            away = (x_adv - point).flatten(1).norm(dim=1)
            nearest[away < least] = point[away < least].to(x.dtype)
            least = torch.minimum(least, away)
        return nearest


def images(x: Tensor, what: str) -> Tensor:
    """x, if it is images.

    Raises:
        InputError: it is not (N, C, H, W).
    """
    if x.dim() != 4:
        raise InputError(f"threat {what}: needs images (N, C, H, W), got inputs of shape {tuple(x.shape)}")
    return x


def _gap(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).flatten(1).abs().amax(1)
