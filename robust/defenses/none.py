"""Standard training, what every defense is compared to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robust.defenses.base import DEFENSES
from robust.defenses.objective import ObjectiveDefense
from robust.defenses.options import Batch
from robust.threat import Threat


@DEFENSES.register("none")
@dataclass(frozen=True)
class Standard(ObjectiveDefense):
    """Cross-entropy on clean samples: no defense, trained like the defended ones."""

    name: ClassVar[str] = "none"
    paper: ClassVar[str] = "-"

    def loss(self, net: nn.Module, batch: Batch, points: Tensor, threat: Threat | None) -> Tensor:
        return batch.cross_entropy(net(points))
