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
    close: Tensor  # no more denies the claim than rounding, or what the model's logits move by with the batch


@torch.no_grad()
def audit(
    target: Target, x_adv: Tensor, x: Tensor, y: Tensor, threat: Threat, *, drift: float = 0.0
) -> Audit:
    """Check claims: distances in float64, predictions by the plain model in float32.

    Args:
        target: the user's model, entered.
        x_adv, x: claimed and clean points, float32 (N, ...).
        y: labels, (N,).
        threat: what the points must respect, to 1e-6.
        drift: how far a logit is known to move with its batch, of the logits' spread; its lead over another by twice that.
    """
    finite = x_adv.flatten(1).isfinite().all(1)
    inside, distance = threat.measure(x_adv.double(), x.double())
    logits = target.logits(x_adv)
    prediction = logits.argmax(1)
    sound = finite & inside & logits.isfinite().all(1)
    right = prediction == y
    low, high = logits.aminmax(dim=1)
    doubt = max(_ROUNDING, 2 * drift) * (high - low)
    return Audit(
        valid=sound & ~right,
        distance=distance,
        prediction=prediction,
        close=sound & right & (margin(logits, y) >= -doubt),
    )


def audit_twice(
    target: Target, x_adv: Tensor, x: Tensor, y: Tensor, threat: Threat, *, drift: float = 0.0
) -> tuple[Audit, Tensor]:
    """`audit`; a claim that a tie or rounding denies is asked about once more alone, and then a little farther from x.

    Logits change by rounding with the batch that a point is passed in: one on the boundary itself, where minimum-norm searches
    end, may count as broken in one batch and not in another. Some models' logits change by more than rounding then, which a few
    samples tell (`Preflight.drift`).

    Returns:
        the audit, and the points that it is of, (N, ...).
    """
    found, points = audit(target, x_adv, x, y, threat, drift=drift), x_adv.clone()
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
