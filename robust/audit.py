"""Re-measures every claimed adversarial example outside the attack that made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from robust.losses import margin
from robust.target import Target
from robust.threat import Threat

_ROUNDING: Final = 1e-5  # of the logits' spread
_FARTHER: Final = (1.0, 1.001, 1.01)  # times the way from x, where a denied claim is asked about again


@dataclass(frozen=True)
class Audit:
    """What was found about N claims, each (N,)."""

    valid: Tensor  # finite, in the box, in the ball, misclassified
    distance: Tensor  # float64, in the threat's norm
    prediction: Tensor  # of the plain float32 model
    close: Tensor  # no more than rounding denies the claim


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
    sound = finite & inside & logits.isfinite().all(1)
    right = prediction == y
    low, high = logits.aminmax(dim=1)
    return Audit(
        valid=sound & ~right,
        distance=distance,
        prediction=prediction,
        close=sound & right & (margin(logits, y) >= _ROUNDING * (low - high)),
    )


def audit_twice(target: Target, x_adv: Tensor, x: Tensor, y: Tensor, threat: Threat) -> tuple[Audit, Tensor]:
    """`audit`; a claim that a tie or rounding denies is asked about once more alone, and then a little farther from x.

    Logits change by rounding with the batch that a point is passed in: one on the boundary itself, where minimum-norm searches
    end, may count as broken in one batch and not in another.

    Returns:
        the audit, and the points that it is of, (N, ...).
    """
    found, points = audit(target, x_adv, x, y, threat), x_adv.clone()
    for i in found.close.nonzero().squeeze(1).tolist():
        row = slice(i, i + 1)
        for factor in _FARTHER:
            point = (x[row] + factor * (x_adv[row] - x[row])).clamp(*threat.bounds)
            again = audit(target, point, x[row], y[row], threat)
            if bool(again.valid):
                points[row] = point
                for name, value in vars(again).items():
                    getattr(found, name)[row] = value
                break
    return found, points
