"""Standard training, what every defense is compared to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from robust.defenses.base import DEFENSES, Defense
from robust.defenses.options import Batch
from robust.defenses.training import Trainer
from robust.sources import Samples
from robust.threat import Threat


@DEFENSES.register("none")
@dataclass(frozen=True)
class Standard(Defense):
    """Cross-entropy on clean samples: no defense, trained like the defended ones."""

    name: ClassVar[str] = "none"
    paper: ClassVar[str] = "-"

    def fit(self, model: nn.Module, data: Samples, *, threat: Threat | None, trainer: Trainer) -> nn.Module:
        return trainer.fit(model, data, _loss, threat=threat, title="none")


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch.x), batch.y)
