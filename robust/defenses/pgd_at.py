"""PGD adversarial training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robust.attacks import PGD
from robust.defenses.base import DEFENSES
from robust.defenses.inner import perturb
from robust.defenses.objective import AdversarialTraining
from robust.defenses.options import Batch
from robust.threat import Threat


@DEFENSES.register("pgd-at")
@dataclass(frozen=True)
class PGDTraining(AdversarialTraining):
    """Cross-entropy on PGD examples made anew for every batch (Madry et al. 2018, arXiv 1706.06083).

    Args:
        warmup: share of the epochs over which eps grows to its full value.
        steps: of the inner attack, >= 1.
        step_size: in units of eps, > 0; None for 2.5 / steps.
    """

    name: ClassVar[str] = "pgd-at"
    paper: ClassVar[str] = "Madry et al. 2018"

    steps: int = 7
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_steps(self.steps, self.step_size)

    def attack(self, model: nn.Module, batch: Batch, threat: Threat) -> Tensor:
        return perturb(model, batch, PGD(steps=self.steps, step_size=self.step_size), threat)

    def loss(self, net: nn.Module, batch: Batch, points: Tensor, threat: Threat | None) -> Tensor:
        return batch.cross_entropy(net(points))
