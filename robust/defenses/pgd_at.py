"""PGD adversarial training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from robust.attacks import PGD
from robust.defenses.base import DEFENSES, Defense
from robust.defenses.inner import perturb
from robust.defenses.options import Batch
from robust.defenses.training import Trainer
from robust.errors import InputError
from robust.sources import Samples
from robust.threat import Threat


@DEFENSES.register("pgd-at")
@dataclass(frozen=True)
class PGDTraining(Defense):
    """Cross-entropy on PGD examples made anew for every batch (Madry et al. 2018, arXiv 1706.06083).

    Args:
        steps: of the inner attack, >= 1.
        step_size: in units of eps, > 0; None for 2.5 / steps.
        warmup: share of the epochs over which eps grows to its full value. Without, small nets at
            large eps tend to settle on one constant prediction.
    """

    name: ClassVar[str] = "pgd-at"
    paper: ClassVar[str] = "Madry et al. 2018"
    needs_threat: ClassVar[bool] = True

    steps: int = 7
    step_size: float | None = None
    warmup: float = 0.3

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"pgd-at: steps: expected at least 1, got {self.steps}")
        if self.step_size is not None and not self.step_size > 0:
            raise InputError(f"pgd-at: step_size: expected a number > 0, or None, got {self.step_size}")
        if not 0 <= self.warmup <= 1:
            raise InputError(f"pgd-at: warmup: expected a share in [0, 1], got {self.warmup}")

    def fit(self, model: nn.Module, data: Samples, *, threat: Threat | None, trainer: Trainer) -> nn.Module:
        self.check(threat)
        assert threat is not None
        attack = PGD(steps=self.steps, step_size=self.step_size)

        def loss(net: nn.Module, batch: Batch) -> Tensor:
            share = min(1.0, batch.progress / self.warmup) if self.warmup else 1.0
            x_adv = perturb(net, batch, attack, threat, share=max(share, 1e-3))
            return functional.cross_entropy(net(x_adv), batch.y)

        return trainer.fit(model, data, loss, threat=threat, title=f"pgd-at {self.parameters}")
