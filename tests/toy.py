"""A classifier whose robust accuracy is known: tests choose it by choosing the samples. And a suite for tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robust.attacks import FGSM, PGD, Attack

EPS = "linf:0.1"
ENOUGH: list[Attack] = [
    FGSM(),
    PGD(steps=25, loss="margin"),
]  # the least that counts as a search (`short-search`)


class Threshold(nn.Module):
    """Two classes by the first value: above `at` or not. A sample d away from it withstands eps < d."""

    def __init__(self, at: float = 0.5) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at))

    def forward(self, x: Tensor) -> Tensor:
        score = 10 * (x.flatten(1)[:, 0] - self.at)
        return torch.stack([-score, score], 1)


class Corner(nn.Module):
    """Another class where either of two values is over .6."""

    def forward(self, x: Tensor) -> Tensor:
        gap = x.flatten(1).amax(1) - 0.6
        return torch.stack([torch.zeros_like(gap), gap], 1)


def samples(n: int, robust: float, wrong: float = 0.0) -> tuple[Tensor, Tensor]:
    """n images (n, 1, 2, 2): a share `robust` withstands linf:0.1, a share `wrong` has the wrong label.

    The shares are spread evenly over the positions.
    """
    index = torch.arange(n)
    y = index % 2
    rank = (index * 7919) % n  # a fixed disorder; 7919 is prime, so every rank comes once
    far = rank < round(robust * n)
    distance = torch.where(far, 0.3, 0.05)
    x = torch.full((n, 1, 2, 2), 0.5)
    x[:, 0, 0, 0] += torch.where(y == 1, distance, -distance)
    return x, torch.where(rank >= n - round(wrong * n), 1 - y, y)


def output_and_slope(model: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and the input gradient of a sum that weighs every output differently."""
    x = x.clone().requires_grad_()
    out = model(x)
    (gradient,) = torch.autograd.grad((out * torch.arange(out.numel()).view_as(out).cos()).sum(), x)
    return out.detach(), gradient
