"""Re-measures every claimed adversarial example outside the attack that made it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust.target import Target
from robust.threat import Threat


@dataclass(frozen=True)
class Audit:
    """What was found about N claims, each (N,)."""

    valid: Tensor  # finite, in the box, in the ball, misclassified
    distance: Tensor  # float64, in the threat's norm
    prediction: Tensor  # of the plain float32 model
    confidence: Tensor  # softmax probability of that prediction


@torch.no_grad()
def audit(target: Target, x_adv: Tensor, x: Tensor, y: Tensor, threat: Threat) -> Audit:
    """Check claims: distances in float64, predictions by the plain model in float32.

    Args:
        target: the user's model, entered.
        x_adv, x: claimed and clean points, float32 (N, ...).
        y: labels, (N,).
        threat: what the points must respect, to 1e-6.
    """
    finite = x_adv.flatten(1).isfinite().all(1)
    inside, distance = threat.measure(x_adv.double(), x.double())
    logits = target.logits(x_adv)
    prediction = logits.argmax(1)
    wrong = (prediction != y) & logits.isfinite().all(1)
    return Audit(
        valid=finite & inside & wrong,
        distance=distance,
        prediction=prediction,
        confidence=logits.softmax(1).amax(1),
    )
