"""Free adversarial training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robust.attacks.geometry import uphill
from robust.defenses.base import DEFENSES, Defense
from robust.defenses.inner import require_norm
from robust.defenses.options import Batch
from robust.defenses.training import Trainer
from robust.sources import Samples
from robust.threat import Threat


@DEFENSES.register("free")
@dataclass(frozen=True)
class FreeTraining(Defense):
    """Adversarial training at the price of none (Shafahi et al. 2019, arXiv 1904.12843).

    Every batch is trained on several times in a row, and each backward pass gives the gradients of the
    weights and of the perturbation, which goes on from batch to batch. It begins at zero in every epoch,
    so that an interrupted training can be gone on with. An epoch costs `replays` standard ones: train for
    fewer epochs in turn.

    Args:
        replays: times that a batch is trained on, >= 1; the paper uses 8.
        step_size: in units of eps, > 0; the paper's is 1.
    """

    name: ClassVar[str] = "free"
    paper: ClassVar[str] = "Shafahi et al. 2019"
    needs_threat: ClassVar[bool] = True

    replays: int = 8
    step_size: float = 1.0

    def __post_init__(self) -> None:
        self.require("replays", self.replays >= 1, "at least 1")
        self.require("step_size", self.step_size > 0, "a number > 0")

    def fit(self, model: nn.Module, data: Samples, *, threat: Threat | None, trainer: Trainer) -> nn.Module:
        self.check(threat)
        assert threat is not None
        require_norm(threat)
        return trainer.fit(
            model,
            data,
            _Replayed(threat, self.step_size),
            threat=threat,
            title=f"{self.title} {self.parameters}",
            replays=self.replays,
        )


class _Replayed:
    """The loss at the running perturbation, which moves on as soon as its gradient is there."""

    def __init__(self, threat: Threat, step_size: float) -> None:
        self._threat, self._step_size = threat, step_size
        self._epoch = 0
        self._running: Tensor | None = None

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        if batch.epoch != self._epoch or self._running is None:
            self._epoch, self._running = batch.epoch, torch.zeros_like(batch.x)
        running = self._running
        if len(running) < len(batch.x):  # batches differ in size by one
            running = torch.cat([running, torch.zeros_like(batch.x[: len(batch.x) - len(running)])])
        x_adv = self._threat.project(batch.x + running[: len(batch.x)], batch.x).requires_grad_()
        batch.undo.callback(self._move, x_adv, batch, running)
        return batch.cross_entropy(model(x_adv))

    def _move(self, x_adv: Tensor, batch: Batch, running: Tensor) -> None:
        if x_adv.grad is None:  # the step failed before its gradients were there
            return
        size = self._step_size * self._threat.radius * batch.damping
        point = x_adv.detach()
        moved = point + size * uphill(x_adv.grad.nan_to_num(), point, self._threat)
        moved = self._threat.project(moved, batch.x) - batch.x
        self._running = torch.cat([moved, running[len(moved) :]])
