"""Passes of a few rows on a CPU: without oneDNN where that is quicker.

oneDNN rearranges a convolution's weights at every call. For a batch that is little; for the few rows that a search ends
with it can take longer than the convolution, and PyTorch's own (im2col and a matrix product) is up to three times quicker.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from robust.target import Target

_TRIED: Final = 2, 8  # rows
_WORTH: Final = (
    0.75,
    0.85,
)  # at most this share of oneDNN's time; well off what nets come to, so that runs choose alike
_LEAST: Final = 16  # samples: with fewer the choice costs what it saves


class FewRows(NamedTuple):
    """Up to how many rows a pass goes without oneDNN: with input gradients, and without."""

    gradient: int = 0
    answer: int = 0


def measured(target: Target, x: Tensor, rows: int) -> FewRows:
    """What a target's passes are quickest with.

    Args:
        target: entered, differentiable.
        x: some samples on its device, (N, ...).
        rows: samples that are to be searched.
    """
    if rows < _LEAST or target.device.type != "cpu" or not _plain_convolutions(target.model):
        return FewRows()
    for count, worth in zip(_TRIED, _WORTH, strict=True):
        if _share(target, x[torch.arange(count) % len(x)]) > worth:
            return FewRows(4, 2) if count > _TRIED[0] else FewRows()
    return FewRows(8, 4)


@contextmanager
def without_onednn() -> Iterator[None]:
    """Let what runs inside use PyTorch's own convolutions."""
    backend = torch.backends.mkldnn
    before = backend.enabled
    backend.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        backend.enabled = before


def _plain_convolutions(model: nn.Module) -> bool:
    """Whether it has convolutions, and none that PyTorch's own are slow at: several groups, gaps in the kernel."""
    convolutions = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    return bool(convolutions) and all(
        isinstance(m, nn.Conv2d) and m.groups == 1 and m.dilation == (1, 1) for m in convolutions
    )


def _share(target: Target, x: Tensor) -> float:
    """The time that a pass takes without oneDNN, as a share of what it takes with it: the best of four each."""
    with_it, without = [], []
    for _ in range(4):
        with_it.append(_seconds(target, x))
        with without_onednn():
            without.append(_seconds(target, x))
    return min(without) / min(with_it)


def _seconds(target: Target, x: Tensor) -> float:
    start = time.perf_counter()
    x = x.detach().requires_grad_()
    torch.autograd.grad(target.logits(x).sum(), x)
    return time.perf_counter() - start
