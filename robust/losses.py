"""Losses that attacks maximise: (logits (N, C), labels (N,)) -> (N,).

Each is positive or grows as the sample is pushed over the decision boundary. All work for C >= 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from robust.registry import Registry

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: Registry[Loss] = Registry("loss")
# Of a difference that is divided by. What a gradient is over that can yet be squared in float32.
_TINY: Final = 1e-18


@LOSSES.register("ce")
def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy."""
    return functional.cross_entropy(logits, y, reduction="none")


@LOSSES.register("margin")
def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Best other logit minus the label's: positive exactly when misclassified (Carlini & Wagner 2017)."""
    return gap_to(logits, y, likeliest_other(logits, y))


@LOSSES.register("dlr")
def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, arXiv 2003.01690); the margin under 3 classes.

    Margin divided by (largest - third largest logit): blind to the scale of the logits, however small.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    top, classes = logits.topk(3, dim=1)
    first, second, third = top.unbind(1)
    other = torch.where(classes[:, 0] == y, second, first)
    return (other - logits.gather(1, y[:, None]).squeeze(1)) / (first - third).clamp_min(_TINY)


@LOSSES.register("mifpe")
def mifpe(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy on logits divided by (top1 - top2), which keeps it from saturating.

    From "minimizing the impact of floating-point errors" (Yu & Xu 2023); the divisor is held constant
    in the gradient. Cures vanished gradients of models with a large logit scale.
    """
    top = logits.detach().topk(2, dim=1).values
    return ce(logits / (top[:, :1] - top[:, 1:]).clamp_min(1e-12), y)


@LOSSES.register("logit")
def logit(logits: Tensor, y: Tensor) -> Tensor:
    """The label's logit, negated: it does not say which class comes near, so none of them can mislead it."""
    return -logits.gather(1, y[:, None]).squeeze(1)


@LOSSES.register("probability")
def probability(logits: Tensor, y: Tensor) -> Tensor:
    """Margin between softmax probabilities, p_max_other - p_y (PMA)."""
    return margin(logits.softmax(1), y)


def best_other(logits: Tensor, y: Tensor) -> Tensor:
    """Largest logit of a class other than the label: (N, C), (N,) -> (N,)."""
    return logits.gather(1, likeliest_other(logits, y)).squeeze(1)


def likeliest_other(logits: Tensor, y: Tensor) -> Tensor:
    """The class other than the label with the largest logit: (N, C), (N,) -> (N, 1) int64."""
    return logits.detach().scatter(1, y[:, None], -torch.inf).argmax(1, keepdim=True)


def gap_to(logits: Tensor, y: Tensor, other: Tensor) -> Tensor:
    """A class's logit minus the label's: (N, C), (N,), (N, 1) -> (N,); with few operations, which all go backward too."""
    high, low = logits.gather(1, torch.cat((other, y[:, None]), 1)).unbind(1)
    return high - low


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted difference of logits ratio (Croce & Hein 2020); the plain gap under 4 classes.

    Args:
        target: class to be taken for, (N, 1).
    """
    gap = gap_to(logits, y, target)
    if logits.shape[1] < 4:
        return gap
    top = logits.topk(4, dim=1).values
    return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(_TINY)


def spread(logits: Tensor) -> Tensor:
    """How far the logits that matter lie apart, of a batch of them, (N, C): -> (N,), over 0.

    From the highest to the lowest, but at most ten times as far as to the third in any of the batch: a class that is
    ruled out by a logit of -1e9 would make all that the others do look small.
    """
    top = logits.topk(min(3, logits.shape[1]), dim=1).values
    most = 10 * (top[:, 0] - top[:, -1]).amax()
    whole = top[:, 0] - logits.amin(1)
    return torch.where(most > 0, whole.clamp_max(most), whole).clamp_min(1e-12)
