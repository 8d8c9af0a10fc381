"""Defenses that are one objective on the one training loop: the base of most of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robust.defenses.base import Defense, make_defense
from robust.defenses.options import Batch
from robust.defenses.training import Trainer
from robust.errors import InputError
from robust.sources import Samples
from robust.threat import Threat


@dataclass(frozen=True)
class Step:
    """The two halves of a training step, for a whole training."""

    points: Callable[[nn.Module, Batch], Tensor]  # what to train on: attacked, noisy, or as it is (N, ...)
    loss: Callable[[nn.Module, Batch, Tensor], Tensor]  # scalar loss of the net on these points

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch: an `Objective`."""
        return self.loss(model, batch, self.points(model, batch))


@dataclass(frozen=True)
class ObjectiveDefense(Defense):
    """A defense that is an objective. Subclasses say what to train on, and the loss there."""

    def points(self, model: nn.Module, batch: Batch, threat: Threat | None) -> Tensor:
        """Inputs to train on, without graph: (N, ...). As they are, unless overridden."""
        return batch.x

    @abstractmethod
    def loss(self, net: nn.Module, batch: Batch, points: Tensor, threat: Threat | None) -> Tensor:
        """Scalar loss of the net, which is in train mode, on these points."""

    def step(self, threat: Threat | None) -> Step:
        """Both halves for a training against this threat; called once a training.

        Raises:
            InputError: something is missing.
        """
        self.check(threat)
        return Step(
            lambda model, batch: self.points(model, batch, threat),
            lambda net, batch, points: self.loss(net, batch, points, threat),
        )

    def fit(self, model: nn.Module, data: Samples, *, threat: Threat | None, trainer: Trainer) -> nn.Module:
        title = f"{self.title} {self.parameters}"
        return trainer.fit(
            model, data, self.step(threat), threat=threat, title=title, by_clean=not self.against_threat
        )

    @property
    def against_threat(self) -> bool:
        """Whether the objective trains against the threat."""
        return self.needs_threat


@dataclass(frozen=True)
class AdversarialTraining(ObjectiveDefense):
    """An objective on attacked batches. Subclasses say how to attack, and the loss of what comes out.

    Args:
        warmup: share of the epochs over which eps grows to its full value. Without, small nets at
            large eps tend to settle on one constant prediction.
    """

    needs_threat = True

    warmup: float = 0.3

    def __post_init__(self) -> None:
        self.require("warmup", 0 <= self.warmup <= 1, "a share in [0, 1]")

    @abstractmethod
    def attack(self, model: nn.Module, batch: Batch, threat: Threat) -> Tensor:
        """Adversarial points of a batch under a threat, whose eps may still be growing: (N, ...)."""

    def points(self, model: nn.Module, batch: Batch, threat: Threat | None) -> Tensor:
        assert threat is not None
        return self.attack(model, batch, self.grown(threat, batch))

    def grown(self, threat: Threat, batch: Batch) -> Threat:
        """The threat with the share of eps that is used by now."""
        share = min(1.0, max(1e-3, batch.progress / self.warmup)) if self.warmup else 1.0
        if share >= 1:
            return threat
        return Threat(threat.norm, repr(threat.radius * share), threat.bounds)

    def require_steps(self, steps: int, step_size: float | None) -> None:
        """Check the two parameters that most inner attacks have."""
        self.require("steps", steps >= 1, "at least 1")
        self.require("step_size", step_size is None or step_size > 0, "a number > 0, or None")


def wrapped(outer: str, name: str, options: dict[str, Any]) -> ObjectiveDefense:
    """The objective that a wrapper of objectives is put around.

    Raises:
        InputError: a defense that is more than one objective, or a wrapper itself.
    """
    inner = make_defense(name, **options)
    if not isinstance(inner, ObjectiveDefense):
        raise InputError(
            f"{outer}: of: {name!r} is not a single objective; give one such as 'pgd-at' or 'trades'"
        )
    return inner
