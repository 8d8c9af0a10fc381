"""Single-step training with a regulariser against catastrophic overfitting: GradAlign and ELLE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from robust.attacks.geometry import per_row, random_start
from robust.defenses.base import DEFENSES
from robust.defenses.inner import Ascent, unwrapped
from robust.defenses.objective import AdversarialTraining
from robust.defenses.options import Batch
from robust.errors import ModelError, told
from robust.rng import Streams
from robust.threat import Threat

_NO_SECOND: Final = ("differentiate twice", "derivative for", "double backward")  # what torch says then


@dataclass(frozen=True)
class Regularised(AdversarialTraining):
    """The base of both: FGSM examples from x itself, and the weight of the regulariser."""

    weight: float = 1.0
    step_size: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("weight", self.weight > 0, "a number > 0")
        self.require_steps(1, self.step_size)

    def attack(self, model: nn.Module, batch: Batch, threat: Threat) -> Tensor:
        return Ascent(1, self.step_size * batch.damping, start="clean")(model, batch, threat)


@DEFENSES.register("grad-align")
@dataclass(frozen=True)
class GradAlign(Regularised):
    """FGSM training plus weight (1 - cosine) of the gradients at x and at a random point around it.

    After Andriushchenko & Flammarion 2020 (arXiv 2007.02617). Differentiates gradients: some three times
    the cost of N-FGSM.

    Args:
        warmup: share of the epochs over which eps grows to its full value.
        weight: of the regulariser, > 0; the paper uses .2 at 8/255 on CIFAR-10.
        step_size: in units of eps, > 0.
    """

    name: ClassVar[str] = "grad-align"
    paper: ClassVar[str] = "Andriushchenko & Flammarion 2020"

    weight: float = 0.2

    def loss(self, net: nn.Module, batch: Batch, points: Tensor, threat: Threat | None) -> Tensor:
        assert threat is not None
        around = random_start(batch.x, self.grown(threat, batch), _streams(batch))
        gradients = []
        for place in (batch.x, around):
            x = place.detach().requires_grad_()
            value = functional.cross_entropy(unwrapped(net)(x), batch.y, reduction="sum")
            gradients.append(torch.autograd.grad(value, x, create_graph=True)[0].flatten(1))
        cosine = functional.cosine_similarity(gradients[0], gradients[1], dim=1, eps=1e-12)
        total = batch.cross_entropy(net(points)) + self.weight * (1 - cosine).mean()
        batch.undo.push(self._name_failure)  # the pass back through the gradients is the loop's
        return total

    def _name_failure(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Raise ModelError where the model's gradients cannot be differentiated."""
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_SECOND):
            raise ModelError(
                f"{self.name}: model: its gradients cannot be differentiated once more ({told(error)}); give one without "
                "that function, or a defense that needs no second derivative, such as 'elle' or 'n-fgsm'"
            ) from error


@DEFENSES.register("elle")
@dataclass(frozen=True)
class ELLE(Regularised):
    """FGSM training plus weight times the squared error of the loss's local linearity.

    After Abad Rocamora et al. 2024 (arXiv 2401.11618): at two random points and one between them, the
    loss between should be the interpolated one. No double backward pass is needed.

    Args:
        warmup: share of the epochs over which eps grows to its full value.
        weight: of the regulariser, > 0.
        step_size: in units of eps, > 0.
    """

    name: ClassVar[str] = "elle"
    paper: ClassVar[str] = "Abad Rocamora et al. 2024"

    weight: float = 1000.0

    def loss(self, net: nn.Module, batch: Batch, points: Tensor, threat: Threat | None) -> Tensor:
        assert threat is not None
        threat, streams = self.grown(threat, batch), _streams(batch)
        a, b = (random_start(batch.x, threat, streams.child(end)) for end in ("a", "b"))
        share = streams.child("share").uniform((1,)).squeeze(1)
        between = per_row(share, a) * a + per_row(1 - share, b) * b
        losses = functional.cross_entropy(
            net(torch.cat([a, b, between])), batch.y.repeat(3), reduction="none"
        ).chunk(3)
        error = losses[2] - share * losses[0] - (1 - share) * losses[1]
        return batch.cross_entropy(net(points)) + self.weight * error.square().mean()


def _streams(batch: Batch) -> Streams:
    return Streams(batch.seed, batch.ids, ("regulariser", batch.epoch))
