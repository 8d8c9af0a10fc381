"""TRADES."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robust.defenses.base import DEFENSES
from robust.defenses.inner import Ascent, clean_logits, kl
from robust.defenses.objective import AdversarialTraining
from robust.defenses.options import Batch
from robust.threat import Threat


@DEFENSES.register("trades")
@dataclass(frozen=True)
class TRADES(AdversarialTraining):
    """Clean cross-entropy plus beta KL(p(x) || p(x_adv)) (Zhang et al. 2019, arXiv 1901.08573).

    The inner attack raises the KL divergence from a start of deviation .001 around x, in eval mode.

    Args:
        warmup: share of the epochs over which eps grows to its full value.
        beta: weight of the divergence, > 0; the paper uses 1 to 6.
        steps: of the inner attack, >= 1.
        step_size: in units of eps, > 0; None for 2.5 / steps, which is the paper's .007 / .031 at 10 steps.
    """

    name: ClassVar[str] = "trades"
    paper: ClassVar[str] = "Zhang et al. 2019"

    beta: float = 6.0
    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("beta", self.beta > 0, "a number > 0")
        self.require_steps(self.steps, self.step_size)

    def attack(self, model: nn.Module, batch: Batch, threat: Threat) -> Tensor:
        ascent = Ascent(self.steps, self.step_size, start="gaussian")
        return ascent(model, batch, threat, kl, clean_logits(model, batch))

    def loss(self, net: nn.Module, batch: Batch, points: Tensor, threat: Threat | None) -> Tensor:
        clean = net(batch.x)
        divergence = kl(net(points), batch.y, clean).mean()
        return batch.cross_entropy(clean) + self.beta * divergence
