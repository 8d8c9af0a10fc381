"""Defensive distillation, which is known not to hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from robust.defenses.base import DEFENSES, Defense
from robust.defenses.options import Batch
from robust.defenses.training import Trainer
from robust.errors import InputError
from robust.sources import Samples
from robust.threat import Threat


@DEFENSES.register("distillation")
@dataclass(frozen=True)
class Distillation(Defense):
    """Defensive distillation (Papernot et al. 2016, arXiv 1511.04508).

    A teacher is trained with its logits divided by the temperature, a student of the same architecture
    on the teacher's soft labels at that temperature; the student is deployed at temperature 1. Its
    logits are then so large that cross-entropy loses its gradient: attacks that use it stall, attacks
    on the margin do not (Carlini & Wagner 2017). It is here to be measured, not recommended.

    Both trainings multiply the learning rate by sqrt(T): gradients shrink by T, and the logits must grow
    by T. On MNIST with T = 100 the plain rate costs four points of clean accuracy under Adam and does
    not train at all under SGD; a factor of T diverges.

    Args:
        temperature: T, > 0; the paper uses up to 100.
    """

    name: ClassVar[str] = "distillation"
    paper: ClassVar[str] = "Papernot et al. 2016"
    masks_gradients: ClassVar[bool] = True

    temperature: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError(
                f"distillation: temperature: expected a finite number > 0, got {self.temperature}"
            )

    def fit(self, model: nn.Module, data: Samples, *, threat: Threat | None, trainer: Trainer) -> nn.Module:
        t = self.temperature

        def hard(net: nn.Module, batch: Batch) -> Tensor:
            return batch.cross_entropy(net(batch.x) / t)

        teacher = trainer.fit(
            model,
            data,
            hard,
            threat=None,
            title=f"teacher {self.parameters}",
            stage="teacher",
            rate=math.sqrt(t),
        )

        def soft(net: nn.Module, batch: Batch) -> Tensor:
            with torch.no_grad():
                labels = (teacher(batch.x.clone()) / t).softmax(1)  # it may write into its input
            return functional.cross_entropy(net(batch.x) / t, labels)

        return trainer.fit(
            model,
            data,
            soft,
            threat=threat,
            title=f"student {self.parameters}",
            rate=math.sqrt(t),
            by_clean=True,
        )
