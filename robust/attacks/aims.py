"""Which class a search heads for: any, or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import torch
from torch import Tensor

from robust.attacks.planes import plane_distance
from robust.losses import LOSSES, gap_to, likeliest_other
from robust.oracle import Jacobian, Oracle, State
from robust.projections import norm_of

CANDIDATES: Final = 10  # leading classes whose boundary is looked at, as DeepFool does
_DUAL: Final = {"linf": "l1", "l2": "l2", "l1": "linf", "l0": "linf"}

AimedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def runs(oracle: Oracle, s: State, targets: int) -> Iterator[int]:
    """The runs of an attack: one against whichever class leads, or one for each of the nearest classes.

    In each, `s.aim` (N, 1) names the class to be taken for, and the label stands for any other class.
    Classes come in the order of their linearised boundary's distance from x within the box, nearest first:
    in l1 and l0 few values have much to gain, and these are soon at their end.

    Args:
        targets: 0 for any class, which costs nothing; else how many classes, at most ten. To rank
            them costs a forward and up to ten backwards.
    """
    if targets == 0:
        s.aim = oracle.y[:, None]
        yield 0
        return
    classes, gaps, gradients = oracle.jacobian(oracle.x, CANDIDATES)
    n, k = gaps.shape
    x = oracle.x[:, None].expand_as(gradients).flatten(0, 1)
    far = plane_distance(
        x, gradients.flatten(0, 1), -gaps.flatten(), oracle.threat.norm, oracle.threat.bounds
    )
    s.ranking = classes.gather(1, far.view(n, k).argsort(1))
    for rank in oracle.steps(min(targets, s.ranking.shape[1])):
        s.aim = s.ranking[:, rank : rank + 1]
        yield rank


def boundary_distance(gaps: Tensor, gradients: Tensor, norm: str) -> Tensor:
    """How far the linearised boundaries are: (N, K) gaps, (N, K, ...) their gradients -> (N, K)."""
    n, k = gaps.shape
    slope = norm_of(gradients.reshape(n * k, -1), _DUAL[norm]).view(n, k)
    return gaps.abs() / slope.clamp_min(1e-12)


def nearest_boundary(near: Jacobian, norm: str) -> tuple[Tensor, Tensor]:
    """Gradient (N, ...) and gap (N,) of the class whose linearised boundary is nearest."""
    rows = torch.arange(len(near.gaps), device=near.gaps.device)
    nearest = boundary_distance(near.gaps, near.gradients, norm).argmin(1)
    return near.gradients[rows, nearest], near.gaps[rows, nearest]


def aimed_margin(logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
    """The aimed class's logit minus the label's; with the label for an aim, the margin: -> (N,)."""
    return gap_to(logits, y, torch.where(aim == y[:, None], likeliest_other(logits, y), aim))


def aimed_hinge(logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
    """The aimed margin up to 0, without a gradient beyond: -> (N,)."""
    return aimed_margin(logits, y, aim).clamp_max(0)


def reached(label: Tensor, y: Tensor, aim: Tensor) -> Tensor:
    """Whether a point is taken for the aimed class, or with the label for an aim, for any other: all (N,) -> (N,) bool."""
    return torch.where(aim == y, label != y, label == aim)


def aimed(loss: str) -> AimedLoss:
    """A loss by name that heads for the aimed class where there is one.

    For a class: minus the same loss with the class for a label, so that cross-entropy is brought down on
    it; "margin" is the gap to the label.
    """
    plain = LOSSES[loss]
    if loss == "margin":
        return aimed_margin

    def towards(logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
        aim = aim.squeeze(1)
        return torch.where(aim == y, 1.0, -1.0) * plain(logits, aim)

    return towards
