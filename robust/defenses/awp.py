"""AWP, adversarial weight perturbation: a wrapper of any objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robust.defenses.base import DEFENSES
from robust.defenses.inner import unwrapped
from robust.defenses.objective import ObjectiveWrapper, Step
from robust.defenses.options import Batch
from robust.threat import Threat

_FLOOR = 1e-12  # of norms that are divided by


@DEFENSES.register("awp")
@dataclass(frozen=True)
class AWP(ObjectiveWrapper):
    """Any objective at weights moved against it (Wu et al. 2020, arXiv 2004.05884).

    Every step first moves the weights of each layer up the loss, by gamma times the layer's norm, takes
    the gradient there, and steps from where they were. Written "trades+awp" for short, with the options
    of both.

    Args:
        of: name of the objective.
        gamma: size of the move relative to each layer's norm, > 0; the paper uses .01, for TRADES .005.
        start: share of the training before weights are moved, in [0, 1].
        options: of the objective.
    """

    name: ClassVar[str] = "awp"
    paper: ClassVar[str] = "Wu et al. 2020"

    gamma: float = 0.01
    start: float = 0.0

    def __post_init__(self) -> None:
        self.require("gamma", self.gamma > 0, "a number > 0")
        self.require("start", 0 <= self.start <= 1, "a share in [0, 1]")
        super().__post_init__()

    def step(self, threat: Threat | None) -> Step:
        inner = self.inner.step(threat)

        def points(model: nn.Module, batch: Batch) -> Tensor:
            found = inner.points(model, batch)
            if batch.progress >= self.start:
                self._climb(unwrapped(model), batch, lambda net: inner.loss(net, batch, found))
            return found

        return Step(points, inner.loss)

    def _climb(self, model: nn.Module, batch: Batch, loss: Any) -> None:
        """Move the weights until the batch's gradients are there."""
        weights = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
        with _still_statistics(model):
            gradients = torch.autograd.grad(loss(model), weights, allow_unused=True)
        moves = [
            (weight, self.gamma * weight.norm() / gradient.norm().clamp_min(_FLOOR) * gradient)
            for weight, gradient in zip(weights, gradients, strict=True)
            if gradient is not None
        ]
        before = [weight.detach().clone() for weight, _ in moves]
        with torch.no_grad():
            for weight, move in moves:
                weight.add_(move)
        torch.clear_autocast_cache()  # half-precision copies of the weights as they were

        def back() -> None:
            with torch.no_grad():
                for (weight, _), old in zip(moves, before, strict=True):
                    weight.copy_(old)

        batch.undo.callback(back)


class _still_statistics:  # noqa: N801 - a context manager
    """Batch norms keep their running statistics inside."""

    def __init__(self, model: nn.Module) -> None:
        norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        self._norms = [(m, m.track_running_stats) for m in norms]

    def __enter__(self) -> None:
        for norm, _ in self._norms:
            norm.track_running_stats = False

    def __exit__(self, *_: object) -> None:
        for norm, tracked in self._norms:
            norm.track_running_stats = tracked
