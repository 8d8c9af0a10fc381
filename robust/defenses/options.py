"""What training is told, what an objective is given, and what an epoch gives back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from robust.errors import InputError
from robust.registry import Registry


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Args:
        epochs, batch_size: at least 1; batches are of equal size up to one sample.
        learning_rate: the highest of the schedule, > 0.
        optimizer: "sgd" (momentum .9, Nesterov) or "adam".
        schedule: "one-cycle" (linear up over a quarter, linear down to zero) or "constant".
        weight_decay: >= 0, decoupled for adam.
        gradient_clip: largest gradient norm, > 0; None for no limit.
        augment: random crops (padding 4) and horizontal flips, for natural images (N, C, H, W).
        validation_steps: PGD steps of the validation after every epoch, >= 1.
        seed: of shuffles, augmentation, dropout and inner attacks.
        device: "auto", "cpu", "cuda", "cuda:N".
        precision: "32-true", "bf16-mixed" or "16-mixed" (CUDA only).

    Raises:
        InputError: a value out of its range.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 2e-3
    optimizer: Literal["sgd", "adam"] = "adam"
    schedule: Literal["one-cycle", "constant"] = "one-cycle"
    weight_decay: float = 0.0
    gradient_clip: float | None = None
    augment: bool = False
    validation_steps: int = 10
    seed: int = 0
    device: str = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validation_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"training: {name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(
                f"training: learning_rate: expected a finite number > 0, got {self.learning_rate}"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(
                f"training: weight_decay: expected a finite number >= 0, got {self.weight_decay}"
            )
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise InputError(
                f"training: gradient_clip: expected a number > 0, or None, got {self.gradient_clip}"
            )


RECIPES: Registry[TrainingOptions] = Registry("recipe", "robust.recipes")
RECIPES.register("mnist")(TrainingOptions())
RECIPES.register("cifar10")(
    TrainingOptions(epochs=30, learning_rate=0.1, optimizer="sgd", weight_decay=5e-4, augment=True)
)


@dataclass(frozen=True)
class Batch:
    """What an objective is given: a batch and where training stands."""

    x: Tensor  # (N, ...) float32 in the data's bounds
    y: Tensor  # (N,)
    ids: Tensor  # (N,) sample ids
    seed: int
    epoch: int  # from 1
    progress: float  # share of all batches that is done, in [0, 1)


Objective = Callable[[nn.Module, Batch], Tensor]
"""(model in train mode, batch) -> scalar loss."""


@dataclass(frozen=True)
class EpochResult:
    """Figures of an epoch; accuracies on the validation samples, robust under PGD."""

    epoch: int
    epochs: int
    loss: float
    clean_accuracy: float
    robust_accuracy: float | None
    learning_rate: float
    seconds: float

    @property
    def score(self) -> float:
        """What the best weights are chosen by: robust accuracy, or clean where there is no threat."""
        return self.clean_accuracy if self.robust_accuracy is None else self.robust_accuracy
