"""Robust distillation: a student learns from a robust teacher. ARD and RSLAD."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robust.attacks.base import json_value
from robust.defenses.base import DEFENSES
from robust.defenses.inner import Ascent, clean_logits, kl
from robust.defenses.objective import AdversarialTraining, Step
from robust.defenses.options import Batch
from robust.errors import InputError, RobustError, told
from robust.sources import load, model_sha256, untrained
from robust.target import Target
from robust.threat import Threat


@dataclass(frozen=True)
class RobustDistillation(AdversarialTraining):
    """The base of both: finds the teacher, which stays as it is.

    Args:
        teacher: a model SPEC, a module giving logits, or a Target; of the trained model's data and classes.
        teacher_weights: its weights' file, where it is a SPEC.
        steps: of the inner attack, >= 1.
        step_size: in units of eps, > 0; None for 2.5 / steps.
    """

    teacher: Any = None
    teacher_weights: str | None = None
    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_steps(self.steps, self.step_size)
        known = isinstance(self.teacher, str | Path | nn.Module | Target | None)
        self.require("teacher", known, "a model SPEC, a module or a Target")

    @property
    def parameters(self) -> dict[str, Any]:
        # Not asdict, which copies the teacher.
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if isinstance(self.teacher, nn.Module | Target):
            own["teacher"] = f"sha256:{model_sha256(_module(self.teacher))}"
        return {name: json_value(value) for name, value in own.items()}

    def check(self, threat: Threat | None) -> None:
        super().check(threat)
        if self.teacher is None:
            raise InputError(
                f"{self.name}: teacher: this objective learns from a robust model; give one, such as "
                "teacher=builtin:mnist-cnn teacher_weights=FILE"
            )
        if isinstance(self.teacher, str) and self.teacher_weights is None and untrained(self.teacher):
            raise InputError(
                f"{self.name}: teacher_weights: {self.teacher} has initial weights, which nothing has trained; give the file "
                "of a robust training's"
            )
        if isinstance(self.teacher, Target) and threat is not None and self.teacher.bounds != threat.bounds:
            raise InputError(
                f"{self.name}: teacher: its bounds are {self.teacher.bounds}, the threat's {threat.bounds}; give the same to both"
            )

    def step(self, threat: Threat | None) -> Step:
        self.check(threat)
        if not isinstance(self.teacher, nn.Module):
            given = self.teacher
            if not isinstance(given, Target):
                given = load(str(given), self.teacher_weights, device="cpu")
            return replace(self, teacher=_module(given)).step(threat)
        inner = super().step(threat)
        tried: list[bool] = []

        def points(model: nn.Module, batch: Batch) -> Tensor:
            if not tried:
                self._try(model, batch)
                tried.append(True)
            return inner.points(model, batch)

        return Step(points, inner.loss)

    def _try(self, model: nn.Module, batch: Batch) -> None:
        """Raise InputError, before anything is trained, where the teacher is not of the model's data or classes."""
        one = replace(batch, x=batch.x[:1], y=batch.y[:1], ids=batch.ids[:1])
        try:
            classes = self.logits(one.x).shape[1]
        except RobustError:
            raise
        except Exception as error:
            raise InputError(
                f"{self.name}: teacher: fails on samples of shape {tuple(one.x.shape[1:])} ({told(error)}); give a model of "
                "the same data"
            ) from error
        own = clean_logits(model, one).shape[1]
        if classes != own:
            raise InputError(
                f"{self.name}: teacher: has {classes} classes, the model to train {own}; give one of the same classes"
            )

    def logits(self, x: Tensor) -> Tensor:
        """The teacher's logits (N, C), without graph."""
        with Target(self.teacher, device=x.device) as target, torch.no_grad():
            return target.logits(x)

    @property
    def ascent(self) -> Ascent:
        """The inner attack."""
        return Ascent(self.steps, self.step_size)


def _module(teacher: nn.Module | Target) -> nn.Module:
    return teacher.as_module() if isinstance(teacher, Target) else teacher


@DEFENSES.register("ard")
@dataclass(frozen=True)
class ARD(RobustDistillation):
    """Adversarially robust distillation (Goldblum et al. 2020, arXiv 1905.09747).

    Pulls the student's prediction at PGD examples to the teacher's clean one, at a temperature:
    alpha T^2 KL(teacher(x) || student(x_adv)) + (1 - alpha) cross-entropy(student(x)).

    Args:
        warmup: share of the epochs over which eps grows to its full value.
        teacher: a model SPEC, a module giving logits, or a Target; of the trained model's data and classes.
        teacher_weights: its weights' file, where it is a SPEC.
        steps: of the inner attack, >= 1.
        step_size: in units of eps, > 0; None for 2.5 / steps.
        temperature: T, > 0.
        alpha: weight of the divergence, in [0, 1].
    """

    name: ClassVar[str] = "ard"
    paper: ClassVar[str] = "Goldblum et al. 2020"

    temperature: float = 30.0
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("temperature", self.temperature > 0, "a number > 0")
        self.require("alpha", 0 <= self.alpha <= 1, "a share in [0, 1]")

    def attack(self, model: nn.Module, batch: Batch, threat: Threat) -> Tensor:
        return self.ascent(model, batch, threat)

    def loss(self, net: nn.Module, batch: Batch, points: Tensor, threat: Threat | None) -> Tensor:
        t = self.temperature
        divergence = kl(net(points) / t, batch.y, self.logits(batch.x) / t).mean() * t**2
        if self.alpha == 1:
            return divergence
        return self.alpha * divergence + (1 - self.alpha) * batch.cross_entropy(net(batch.x))


@DEFENSES.register("rslad")
@dataclass(frozen=True)
class RSLAD(RobustDistillation):
    """Robust soft label adversarial distillation (Zi et al. 2021, arXiv 2108.07969).

    No hard label anywhere: the inner attack raises KL(teacher(x) || student(x_adv)), and the loss is
    alpha times that divergence plus (1 - alpha) KL(teacher(x) || student(x)).

    Args:
        warmup: share of the epochs over which eps grows to its full value.
        teacher: a model SPEC, a module giving logits, or a Target; of the trained model's data and classes.
        teacher_weights: its weights' file, where it is a SPEC.
        steps: of the inner attack, >= 1.
        step_size: in units of eps, > 0; None for 2.5 / steps.
        alpha: weight of the adversarial divergence, in [0, 1]; the paper uses 5/6.
    """

    name: ClassVar[str] = "rslad"
    paper: ClassVar[str] = "Zi et al. 2021"

    alpha: float = 5 / 6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("alpha", 0 <= self.alpha <= 1, "a share in [0, 1]")

    def attack(self, model: nn.Module, batch: Batch, threat: Threat) -> Tensor:
        return self.ascent(model, batch, threat, kl, self.logits(batch.x))

    def loss(self, net: nn.Module, batch: Batch, points: Tensor, threat: Threat | None) -> Tensor:
        soft = self.logits(batch.x)
        adversarial = kl(net(points), batch.y, soft).mean()
        return self.alpha * adversarial + (1 - self.alpha) * kl(net(batch.x), batch.y, soft).mean()
