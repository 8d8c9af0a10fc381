"""Single-step adversarial training: FGSM-RS and N-FGSM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robust.defenses.base import DEFENSES
from robust.defenses.inner import Ascent
from robust.defenses.objective import AdversarialTraining
from robust.defenses.options import Batch
from robust.threat import Threat


@DEFENSES.register("fgsm-rs")
@dataclass(frozen=True)
class FGSMRS(AdversarialTraining):
    """One step from a random start, as cheap as two standard trainings (Wong et al. 2020, arXiv 2001.03994).

    Given to catastrophic overfitting, against which the training loop guards.

    Args:
        warmup: share of the epochs over which eps grows to its full value.
        step_size: in units of eps, > 0; the paper uses 1.25 (its 10/255 at eps 8/255).
    """

    name: ClassVar[str] = "fgsm-rs"
    paper: ClassVar[str] = "Wong et al. 2020"

    step_size: float = 1.25

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_steps(1, self.step_size)

    def attack(self, model: nn.Module, batch: Batch, threat: Threat) -> Tensor:
        return Ascent(1, self.step_size * batch.damping)(model, batch, threat)

    def loss(self, net: nn.Module, batch: Batch, points: Tensor, threat: Threat | None) -> Tensor:
        return batch.cross_entropy(net(points))


@DEFENSES.register("n-fgsm")
@dataclass(frozen=True)
class NFGSM(AdversarialTraining):
    """One step from strong noise, not projected: the fast default (de Jorge et al. 2022, arXiv 2202.01181).

    The noise reaches beyond eps and the sum of noise and step is only clipped to the box.

    Args:
        warmup: share of the epochs over which eps grows to its full value.
        noise: reach of the uniform noise in units of eps, > 0.
        step_size: in units of eps, > 0.
    """

    name: ClassVar[str] = "n-fgsm"
    paper: ClassVar[str] = "de Jorge et al. 2022"

    noise: float = 2.0
    step_size: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("noise", self.noise > 0, "a number > 0")
        self.require_steps(1, self.step_size)

    def attack(self, model: nn.Module, batch: Batch, threat: Threat) -> Tensor:
        ascent = Ascent(1, self.step_size * batch.damping, reach=self.noise, project=False)
        return ascent(model, batch, threat)

    def loss(self, net: nn.Module, batch: Batch, points: Tensor, threat: Threat | None) -> Tensor:
        return batch.cross_entropy(net(points))
