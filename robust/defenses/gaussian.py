"""Gaussian augmentation: how a base classifier for randomised smoothing is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robust.defenses.base import DEFENSES
from robust.defenses.objective import ObjectiveDefense
from robust.defenses.options import Batch
from robust.rng import Streams
from robust.threat import Threat


@DEFENSES.register("gaussian")
@dataclass(frozen=True)
class GaussianTraining(ObjectiveDefense):
    """Cross-entropy under Gaussian noise (Cohen et al. 2019, arXiv 1902.02918); certify with the same sigma.

    Args:
        sigma: deviation of the noise in input units, > 0; the paper uses .12, .25, .5 and 1.
    """

    name: ClassVar[str] = "gaussian"
    paper: ClassVar[str] = "Cohen et al. 2019"

    sigma: float = 0.25

    def __post_init__(self) -> None:
        self.require("sigma", 0 < self.sigma < math.inf, "a finite number > 0")

    def points(self, model: nn.Module, batch: Batch, threat: Threat | None) -> Tensor:
        streams = Streams(batch.seed, batch.ids, ("gaussian", batch.epoch))
        return batch.x + self.sigma * streams.normal(batch.x.shape[1:])

    def loss(self, net: nn.Module, batch: Batch, points: Tensor, threat: Threat | None) -> Tensor:
        return batch.cross_entropy(net(points))
