"""MART, misclassification-aware adversarial training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robust.defenses.base import DEFENSES
from robust.defenses.inner import Ascent, kl
from robust.defenses.objective import AdversarialTraining
from robust.defenses.options import Batch
from robust.threat import Threat


@DEFENSES.register("mart")
@dataclass(frozen=True)
class MART(AdversarialTraining):
    """Adversarial training that weighs samples by how wrong they are (Wang et al. 2020, ICLR).

    On PGD examples: cross-entropy plus -log(1.0001 - the best other probability), plus beta times
    KL(p(x) || p(x_adv)), each sample's weighted by 1 - p_y(x).

    Args:
        warmup: share of the epochs over which eps grows to its full value.
        beta: weight of the divergence, > 0.
        steps: of the inner attack, >= 1.
        step_size: in units of eps, > 0; None for 2.5 / steps.
    """

    name: ClassVar[str] = "mart"
    paper: ClassVar[str] = "Wang et al. 2020"

    beta: float = 5.0
    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("beta", self.beta > 0, "a number > 0")
        self.require_steps(self.steps, self.step_size)

    def attack(self, model: nn.Module, batch: Batch, threat: Threat) -> Tensor:
        return Ascent(self.steps, self.step_size, start="gaussian")(model, batch, threat)

    def loss(self, net: nn.Module, batch: Batch, points: Tensor, threat: Threat | None) -> Tensor:
        label = batch.y[:, None]
        clean, adversarial = net(batch.x), net(points)
        others = adversarial.softmax(1).scatter(1, label, 0.0).amax(1)
        boosted = batch.cross_entropy(adversarial) - torch.log(1.0001 - others).mean()
        wrongness = 1 - clean.softmax(1).gather(1, label).squeeze(1)
        return boosted + self.beta * (kl(adversarial, batch.y, clean) * wrongness).mean()
