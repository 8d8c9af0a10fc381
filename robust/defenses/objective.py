"""Defenses that are one objective on the one training loop: the base of most of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from robust.defenses.base import Defense, make_defense
from robust.defenses.inner import grown
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
        return grown(threat, batch, self.warmup)

    def require_steps(self, steps: int, step_size: float | None) -> None:
        """Check the two parameters that most inner attacks have."""
        self.require("steps", steps >= 1, "at least 1")
        self.require("step_size", step_size is None or step_size > 0, "a number > 0, or None")


@dataclass(frozen=True)
class ObjectiveWrapper(ObjectiveDefense):
    """A defense around any objective: "trades+awp" is the wrapper "awp" of "trades", with the options of both.

    Args:
        of: name of the objective.
        options: of the objective.
    """

    of: str = "pgd-at"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ = self.inner

    @cached_property
    def inner(self) -> ObjectiveDefense:
        """The objective.

        Raises:
            InputError: a defense that is more than one objective.
        """
        inner = make_defense(self.of, **dict(self.options))
        if not isinstance(inner, ObjectiveDefense):
            raise InputError(
                f"{self.name}: of: {self.of!r} is not a single objective; give one such as 'pgd-at' or 'trades'"
            )
        return inner

    @property
    def title(self) -> str:
        return f"{self.inner.title}+{self.name}"

    @property
    def parameters(self) -> dict[str, Any]:
        return {**super().parameters, "options": self.inner.parameters}

    @property
    def against_threat(self) -> bool:
        return self.inner.against_threat

    def check(self, threat: Threat | None) -> None:
        self.inner.check(threat)

    def step(self, threat: Threat | None) -> Step:
        return self.inner.step(threat)

    def loss(self, net: nn.Module, batch: Batch, points: Tensor, threat: Threat | None) -> Tensor:
        return self.inner.loss(net, batch, points, threat)
