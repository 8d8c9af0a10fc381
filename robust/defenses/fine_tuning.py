"""Adversarial fine-tuning of a trained model: a wrapper of any objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robust.defenses.base import DEFENSES
from robust.defenses.objective import ObjectiveDefense, Step, wrapped
from robust.defenses.options import Batch
from robust.defenses.training import Trainer
from robust.errors import InputError
from robust.sources import Samples
from robust.target import Target
from robust.threat import Threat

_LOOKED_AT = 500  # samples that tell whether a model is trained


@DEFENSES.register("fine-tune")
@dataclass(frozen=True)
class FineTuning(ObjectiveDefense):
    """An objective on a model that is trained already, at a lower rate (Jeddi et al. 2020, arXiv 2012.13628).

    Give the trained weights with the model, and few epochs: the paper uses ten. Written "trades+fine-tune"
    for short, with the options of both.

    Args:
        of: name of the objective.
        rate: factor on the learning rate, > 0.
        options: of the objective.
    """

    name: ClassVar[str] = "fine-tune"
    paper: ClassVar[str] = "Jeddi et al. 2020"

    of: str = "pgd-at"
    rate: float = 0.1
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.require("rate", self.rate > 0, "a number > 0")
        _ = self._inner

    @cached_property
    def _inner(self) -> ObjectiveDefense:
        return wrapped(self.name, self.of, dict(self.options))

    @property
    def title(self) -> str:
        return f"{self._inner.title}+{self.name}"

    @property
    def parameters(self) -> dict[str, Any]:
        return {**super().parameters, "options": self._inner.parameters}

    @property
    def against_threat(self) -> bool:
        return self._inner.against_threat

    def check(self, threat: Threat | None) -> None:
        self._inner.check(threat)

    def loss(self, net: nn.Module, batch: Batch, points: Tensor, threat: Threat | None) -> Tensor:
        return self._inner.loss(net, batch, points, threat)

    def step(self, threat: Threat | None) -> Step:
        return self._inner.step(threat)

    def fit(self, model: nn.Module, data: Samples, *, threat: Threat | None, trainer: Trainer) -> nn.Module:
        step = self.step(threat)
        trained = trainer.copy(model, data, threat)
        few = data.limit(min(_LOOKED_AT, len(data)))
        device = next(trained.parameters()).device
        with Target(trained, device=device) as target, torch.no_grad():
            logits = target.logits(few.rows(slice(None)).to(device))
        accuracy = float((logits.argmax(1).cpu() == few.y).float().mean())
        if accuracy < 2 / logits.shape[1] and accuracy < 0.9:
            raise InputError(
                f"fine-tune: model: right on {accuracy:.1%} of the training data, which is what an untrained "
                f"model gets; give trained weights, or train with {self.of!r} itself"
            )
        return trainer.fit(
            model,
            data,
            step,
            threat=threat,
            title=f"{self.title} {self.parameters}",
            rate=self.rate,
            by_clean=not self.against_threat,
        )
