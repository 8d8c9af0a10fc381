"""Training on one-hot labels by squares: an objective of the benchmarks' own, whose nets have level logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from robust.defenses import DEFENSES, ObjectiveDefense
from robust.defenses.options import Batch
from robust.threat import Threat


@DEFENSES.register("squares")
@dataclass(frozen=True)
class Squares(ObjectiveDefense):
    """Squared error of the logits to one-hot labels, on samples with Gaussian noise.

    Args:
        noise: its standard deviation, in the data's units.
    """

    name, paper = "squares", "Hui & Belkin 2021"

    noise: float = 0.15

    def points(self, model: nn.Module, batch: Batch, threat: Threat | None) -> Tensor:
        drawn = torch.Generator(batch.x.device).manual_seed(
            hash((batch.seed, batch.epoch, int(batch.ids[0]))) % 2**63
        )
        return (
            batch.x + self.noise * torch.randn(batch.x.shape, generator=drawn, device=batch.x.device)
        ).clamp(0, 1)

    def loss(self, net: nn.Module, batch: Batch, points: Tensor, threat: Threat | None) -> Tensor:
        logits = net(points)
        return functional.mse_loss(
            logits, functional.one_hot(batch.y, logits.shape[1]).float(), reduction="sum"
        ) / len(logits)
