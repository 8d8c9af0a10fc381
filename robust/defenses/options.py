"""What training is told, what an objective is given, and what an epoch gives back."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BeforeValidator
from torch import Tensor, nn
from torch.nn import functional

from robust.errors import InputError


def _split_commas(value: object) -> object:
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Args:
        epochs: at least 1.
        batch_size: at least 2 for each process; batches are of equal size up to one sample, and none is of a single one.
        learning_rate: the highest of the schedule, > 0.
        optimizer: "sgd" (momentum .9, Nesterov) or "adam".
        schedule: of the learning rate over the whole training. "one-cycle": linear up over a quarter,
            linear down to zero; "cyclic": the same with its top at two fifths (Wong et al. 2020);
            "step": a tenth from each of `milestones` on; "cosine": from the top down to zero; "constant".
        milestones: shares of the training in (0, 1), rising; as text "0.5,0.75".
        weight_decay: >= 0, decoupled for adam.
        gradient_clip: largest gradient norm, > 0; None for no limit.
        label_smoothing: share of the label's weight that goes to all classes alike, in [0, 1). It enters
            the cross-entropy of the objectives.
        ema: decay per step of a moving average of the weights, in (0, 1), which is then what is validated
            and returned (Izmailov et al. 2018, arXiv 1803.05407); None for none.
        augment: random crops (padding 4) and horizontal flips, for natural images (N, C, H, W).
        extra_share: share of every batch that comes from the extra data, in (0, 1), where there is any.
        validation_steps: PGD steps of the validation after every epoch, >= 1.
        seed: of shuffles, augmentation, dropout and inner attacks.
        device: "auto", "cpu", "cuda", "cuda:N".
        precision: "32-true", "bf16-mixed" or "16-mixed" (CUDA only).
        channels_last: memory format of weights and images (N, C, H, W).
        compile: train through torch.compile.

    Raises:
        InputError: a value out of its range.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 2e-3
    optimizer: Literal["sgd", "adam"] = "adam"
    schedule: Literal["one-cycle", "cyclic", "step", "cosine", "constant"] = "one-cycle"
    milestones: Annotated[tuple[float, ...], BeforeValidator(_split_commas)] = (0.5, 0.75)
    weight_decay: float = 0.0
    gradient_clip: float | None = None
    label_smoothing: float = 0.0
    ema: float | None = None
    augment: bool = False
    extra_share: float = 0.7
    validation_steps: int = 10
    seed: int = 0
    device: str = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validation_steps"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("learning_rate", 0 < self.learning_rate < math.inf, "a finite number > 0")
        self._require("weight_decay", 0 <= self.weight_decay < math.inf, "a finite number >= 0")
        clip, ema = self.gradient_clip, self.ema
        self._require("gradient_clip", clip is None or clip > 0, "a number > 0, or None")
        self._require("ema", ema is None or 0 < ema < 1, "a decay in (0, 1) such as 0.995, or None")
        self._require("label_smoothing", 0 <= self.label_smoothing < 1, "a share in [0, 1)")
        self._require("extra_share", 0 < self.extra_share < 1, "a share in (0, 1)")
        inside = all(0 < m < 1 for m in self.milestones)
        rising = list(self.milestones) == sorted(set(self.milestones))
        self._require("milestones", inside and rising, "rising shares of the training in (0, 1)")

    def _require(self, name: str, good: bool, wanted: str) -> None:
        if not good:
            raise InputError(f"training: {name}: expected {wanted}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Batch:
    """What an objective is given: a batch and where training stands."""

    x: Tensor  # (N, ...) float32 in the data's bounds
    y: Tensor  # (N,)
    ids: Tensor  # (N,) sample ids
    seed: int
    epoch: int  # from 1
    progress: float  # share of all batches that is done, in [0, 1)
    label_smoothing: float = 0.0
    damping: float = 1.0  # factor on steps of single-step attacks, lowered after catastrophic overfitting
    replay: int = 0  # how often this batch was trained on before, where the objective asks for replays
    undo: ExitStack = field(default_factory=ExitStack)  # run by the loop once the gradients are there

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """Mean cross-entropy of logits (N, C) with the training's label smoothing: a scalar."""
        return functional.cross_entropy(logits, self.y, label_smoothing=self.label_smoothing)


Objective = Callable[[nn.Module, Batch], Tensor]
"""(model in train mode, batch) -> scalar loss."""


@dataclass(frozen=True)
class EpochResult:
    """Figures of an epoch; accuracies on the validation samples.

    Attributes:
        robust_accuracy: under PGD; it, fgsm_accuracy and alignment are None without a threat.
        fgsm_accuracy: under one step of FGSM. Far above `robust_accuracy`: catastrophic overfitting.
        alignment: mean cosine of the loss's gradients at a sample and at a random point of its threat set
            (Andriushchenko & Flammarion 2020); near 0 the loss is no longer locally linear.
        rolled_back: the epoch was undone, since catastrophic overfitting set in.
    """

    epoch: int
    epochs: int
    loss: float
    clean_accuracy: float
    robust_accuracy: float | None
    learning_rate: float
    seconds: float
    fgsm_accuracy: float | None = None
    alignment: float | None = None
    rolled_back: bool = False

    def score(self, *, by_clean: bool = False) -> float:
        """What the best weights are chosen by: robust accuracy, or clean where asked or without a threat."""
        return self.clean_accuracy if by_clean or self.robust_accuracy is None else self.robust_accuracy
