"""Passes of a few rows on a CPU: without oneDNN, which is quicker for small images.

oneDNN rearranges a convolution's weights at every call. For a batch that is little; for the few rows that a search ends
with it can take longer than the convolution, and PyTorch's own (im2col and a matrix product) is the quicker.
How many rows is a rule and no measurement: so two runs come to the same digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import torch
from torch import nn


class FewRows(NamedTuple):
    """Up to how many rows a pass goes without oneDNN: with input gradients, and without."""

    gradient: int = 0
    answer: int = 0


# By values of a sample: up to these rows PyTorch's own took no longer, on nets of MNIST's and of CIFAR-10's size.
_RULE: Final = ((1024, FewRows(8, 4)), (4096, FewRows(4, 2)))


def few_rows(model: nn.Module, values: int) -> FewRows:
    """What a model's passes on a CPU are quickest with, by how many values a sample has."""
    if not _plain_convolutions(model):
        return FewRows()
    return next((few for most, few in _RULE if values <= most), FewRows())


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
