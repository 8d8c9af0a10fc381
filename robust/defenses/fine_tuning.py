"""Adversarial fine-tuning of a trained model: a wrapper of any objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from robust.defenses.base import DEFENSES
from robust.defenses.objective import ObjectiveWrapper
from robust.defenses.training import Trainer
from robust.errors import InputError
from robust.sources import Samples
from robust.target import Target
from robust.threat import Threat

_LOOKED_AT = 500  # samples that tell whether a model is trained


@DEFENSES.register("fine-tune")
@dataclass(frozen=True)
class FineTuning(ObjectiveWrapper):
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

    rate: float = 0.1

    def __post_init__(self) -> None:
        self.require("rate", self.rate > 0, "a number > 0")
        super().__post_init__()

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
