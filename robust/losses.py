"""Losses that attacks maximise: (logits (N, C), labels (N,)) -> (N,).

Each is positive or grows as the sample is pushed over the decision boundary. All work for C >= 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from robust.registry import Registry

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: Registry[Loss] = Registry("loss")


@LOSSES.register("ce")
def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy."""
    return functional.cross_entropy(logits, y, reduction="none")


@LOSSES.register("margin")
def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Best other logit minus the label's: positive exactly when misclassified (Carlini & Wagner 2017)."""
    label = logits.gather(1, y[:, None]).squeeze(1)
    return best_other(logits, y) - label


@LOSSES.register("dlr")
def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, arXiv 2003.01690); the margin under 3 classes.

    Margin divided by (largest - third largest logit): blind to the scale of the logits.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)


@LOSSES.register("mifpe")
def mifpe(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy on logits divided by (top1 - top2), which keeps it from saturating.

    From "minimizing the impact of floating-point errors" (Yu & Xu 2023); the divisor is held constant
    in the gradient. Cures vanished gradients of models with a large logit scale.
    """
    top = logits.detach().topk(2, dim=1).values
    return ce(logits / (top[:, :1] - top[:, 1:]).clamp_min(1e-12), y)


@LOSSES.register("probability")
def probability(logits: Tensor, y: Tensor) -> Tensor:
    """Margin between softmax probabilities, p_max_other - p_y (PMA)."""
    return margin(logits.softmax(1), y)


def best_other(logits: Tensor, y: Tensor) -> Tensor:
    """Largest logit of a class other than the label: (N, C), (N,) -> (N,)."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted difference of logits ratio (Croce & Hein 2020); the plain gap under 4 classes.

    Args:
        target: class to be taken for, (N, 1).
    """
    gap = (logits.gather(1, target) - logits.gather(1, y[:, None])).squeeze(1)
    if logits.shape[1] < 4:
        return gap
    top = logits.topk(4, dim=1).values
    return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(1e-12)
