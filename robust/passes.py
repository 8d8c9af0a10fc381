"""What a model is asked for a batch of rows: a gradient, a weighted sum's slope, the leading classes' slopes.

Nothing is counted or remembered here; `oracle` sees to that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from robust.errors import ModelError
from robust.target import Target


class Evaluation(NamedTuple):
    """What a gradient query gives: all for the point that was asked about."""

    gradient: Tensor  # (N, ...)
    value: Tensor  # (N,) loss
    logits: Tensor  # (N, C)


class Jacobian(NamedTuple):
    """How the leading classes' gaps (logit minus the label's) change around a point."""

    classes: Tensor  # (N, K): the classes other than the label with the highest logits, highest first
    gaps: Tensor  # (N, K)
    gradients: Tensor  # (N, K, ...)


def differentiate(target: Target, loss: Callable[..., Tensor], x: Tensor, *columns: Tensor) -> Evaluation:
    """Gradient in x, (N, ...), of loss(logits, *columns), with its value by row."""
    x = x.detach().requires_grad_()
    with target.passing():
        with torch.enable_grad():
            logits = target.logits(x)
            value = loss(logits, *columns)
        _require_graph(value)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return Evaluation(_usable(gradient), value.detach(), logits.detach())


def weigh(target: Target, x: Tensor, weights: Tensor) -> Evaluation:
    """Gradient in x, (N, ...), of the logits' sum with these weights, (N, C): as one recorded pass where there is one."""
    if target.replay is not None and (replayed := target.replay(x, weights)) is not None:
        gradient, value, logits = replayed
        return Evaluation(_usable(gradient), value, logits)
    x = x.detach().requires_grad_()
    with target.passing():
        with torch.enable_grad():
            logits = target.logits(x)
        _require_graph(logits)
        gradient, value = slope_of(logits, weights, x)
    return Evaluation(_usable(gradient), value, logits.detach())


def slope_of(logits: Tensor, weights: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient in x, which the logits, (N, C), come from, of their sum with these weights, and that sum by row."""
    with torch.enable_grad():
        value = (logits * weights).sum(1)
    # Weights as a second argument would have torch import SymPy.
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return gradient, value.detach()


def jacobian(target: Target, x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Jacobian]:
    """Logits at x, (N, C), and the gaps of the `count` leading classes there with their gradients."""
    x = x.detach().requires_grad_()
    with target.passing():
        with torch.enable_grad():
            logits = target.retraceable.logits(x)
        _require_graph(logits)
        seen, label = logits.detach(), y[:, None]
        gaps, classes = (seen - seen.gather(1, label)).scatter_(1, label, -torch.inf).topk(count)
        # A gap's slope in the logits, but for the class.
        minus = torch.zeros_like(seen).scatter_(1, label, -1.0)
        with torch.enable_grad():
            sums = [(logits * minus.scatter(1, column, 1.0)).sum() for column in classes.split(1, 1)]
        gradients = [torch.autograd.grad(gap, x, retain_graph=k + 1 < count)[0] for k, gap in enumerate(sums)]
    return seen, Jacobian(classes, gaps, _usable(torch.stack(gradients, 1)))


def _usable(gradient: Tensor) -> Tensor:
    """Without NaN and infinities, which derivatives may have where values are finite: no step goes there."""
    return gradient.nan_to_num(0.0, 0.0, 0.0)


def _require_graph(value: Tensor) -> None:
    if not value.requires_grad:
        raise ModelError(
            "model: no gradient reaches the input (forward detaches or runs under no_grad); use score or "
            "decision attacks, or give the non-differentiable part a substitute gradient (BPDA)"
        )
