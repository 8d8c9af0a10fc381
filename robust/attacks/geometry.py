"""Steps and starts by norm, shared by the gradient attacks."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from robust.oracle import Oracle, State
from robust.rng import Streams
from robust.threat import Threat

_ANY: Final = 1e30  # that much of any room is more than a gradient


def steepest(gradient: Tensor, norm: str, *, sparsity: float = 0.01) -> Tensor:
    """The direction of unit norm along which the loss rises fastest: (N, ...) -> (N, ...).

    linf: the sign. l2: the gradient normalised (zero stays zero). l1: the signs of the largest
    `sparsity` share of the values, in equal parts, the relaxed steepest direction of Tramer & Boneh
    2019 (arXiv 1904.13000), since a single value a step soon meets the box.
    """
    if norm == "linf":
        return gradient.sign()
    flat = gradient.flatten(1)
    if norm == "l2":
        return (flat / flat.norm(dim=1, keepdim=True).clamp_min_(1e-30)).view_as(gradient)
    count = max(1, round(sparsity * flat.shape[1]))
    signs = signs_of_largest(flat, torch.full_like(flat[:, 0], count, dtype=torch.int64))
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1.0)).view_as(gradient)


def signs_of_largest(flat: Tensor, count: Tensor) -> Tensor:
    """The signs of each row's `count` largest values by size (more where the last are equal), 0 for the others.

    Args:
        flat: (N, D).
        count: (N,) int64 in [1, D].
    """
    size = flat.abs()
    least = rising(size).gather(1, flat.shape[1] - count[:, None])
    return size.sub_(least).sign_().add_(1).clamp_max_(1).mul_(flat.sign())


def uphill(gradient: Tensor, x_adv: Tensor, threat: Threat) -> Tensor:
    """`steepest` at a point of the box: nothing is spent on values that are at the box's end already (l1 and l2).

    In l1 as in the paper above. In l2 it is our own: on digits, black and white all over, most of a gradient leads out of
    the box.
    """
    if threat.norm != "linf":
        gradient = movable(gradient, x_adv, threat.bounds)
    return steepest(gradient, threat.norm)


def movable(gradient: Tensor, x_adv: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The gradient, but 0 for values that have no room in its direction: (N, ...), (N, ...) -> (N, ...)."""
    low, high = bounds  # no masks: they take several times as long
    most, least = (high - x_adv).mul_(_ANY), (low - x_adv).mul_(_ANY)  # 0 where there is no room
    return torch.clamp(gradient, least, most, out=most)


def toward_set(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """A point on the way, to be projected in the end: l2 into the box, then the ball; others for good.

    Not the nearest point of both, but a sixth of the work, and no weaker. The ball alone would be: what lies
    beyond the box takes its share of the radius.
    """
    if threat.norm != "l2":
        return threat.project(x_adv, x)
    delta = x_adv.clamp(*threat.bounds).sub_(x)
    size = delta.flatten(1).norm(dim=1)
    return torch.addcmul(x, delta, per_row((threat.radius / size.clamp_min(1e-30)).clamp_max(1.0), x))


def brought_in(oracle: Oracle, point: Tensor) -> Tensor:
    """As `toward_set`, by the oracle's threat: (N, ...) -> (N, ...), in l2 not the nearest point of the set."""
    if oracle.threat.norm != "l2":
        return oracle.project(point)
    return oracle.vouch(toward_set(point, oracle.x, oracle.threat))


def random_start(x: Tensor, threat: Threat, streams: Streams) -> Tensor:
    """A random point of the threat set around each row.

    linf: uniform in the cube. l2: uniform in the ball. l1: uniform in the ball (exponential spacings).
    Then the box.
    """
    shape, eps, n_values = x.shape[1:], threat.radius, x.shape[1:].numel()
    if threat.norm == "linf":
        return (x + streams.uniform(shape, -eps, eps)).clamp_(*threat.bounds)
    radius = streams.child("radius").uniform((1,)).pow(1 / n_values) * eps
    if threat.norm == "l2":
        direction = streams.normal(shape).flatten(1)
        direction = direction / direction.norm(dim=1, keepdim=True).clamp_min(1e-30)
    else:
        spacing = -(1 - streams.uniform(shape)).log().flatten(1)
        sign = streams.child("sign").integers(shape, 0, 2).flatten(1) * 2 - 1
        direction = spacing * sign / spacing.sum(1, keepdim=True).clamp_min(1e-30)
    return threat.project(x + (direction * radius).view_as(x), x)


def random_boundary_start(x: Tensor, threat: Threat, streams: Streams) -> Tensor:
    """A random point of the threat set as far out as it goes, before the box: AutoAttack's start."""
    if threat.norm == "linf":
        noise = streams.uniform(x.shape[1:], -1, 1)
        size = noise.flatten(1).abs().amax(1)
    else:
        noise = streams.normal(x.shape[1:])
        size = noise.flatten(1).norm(dim=1)
    return threat.project(x + threat.radius * noise / per_row(size.clamp_min(1e-30), x), x)


def rising(flat: Tensor) -> Tensor:
    """Each row's values in rising order, (N, D): on the CPU by NumPy, in a twentieth of the time."""
    if flat.device.type == "cpu":
        return torch.from_numpy(np.sort(flat.numpy(), axis=1))
    return flat.sort(1).values


def falling_order(flat: Tensor) -> Tensor:
    """Where each row's values stand, the largest first, (N, D) int64: on the CPU by NumPy, in a fifth of the time."""
    if flat.device.type == "cpu":
        return torch.from_numpy(np.argsort(-flat.numpy(), axis=1))
    return flat.argsort(1, descending=True)


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """Shape (N,) so that it multiplies (N, ...)."""
    return value.view(-1, *([1] * (like.dim() - 1)))


def choose(rows: Tensor, there: Tensor, elsewhere: Tensor) -> Tensor:
    """`there` in the named rows ((N,) bool), `elsewhere` in the others: (N, ...), perhaps one of the two itself.

    As torch.where does, which on the CPU takes several times as long for a flag a row.
    """
    if rows.device.type != "cpu":
        return torch.where(per_row(rows, there), there, elsewhere)
    named = rows.nonzero().squeeze(1)
    if len(named) in (0, len(rows)):
        return there if len(named) else elsewhere
    return elsewhere.index_copy(0, named, there.index_select(0, named))


class Adam:
    """Adam's steps (Kingma & Ba 2015), its moments kept in an attack's state so that rows can leave.

    Args:
        state: gets `first` and `second`, zeros like `like`.
    """

    def __init__(self, state: State, like: Tensor) -> None:
        self._state = state
        state.first, state.second = torch.zeros_like(like), torch.zeros_like(like)

    def descended(self, point: Tensor, slope: Tensor, step: int, rate: float) -> Tensor:
        """The point moved by -rate times the bias-corrected mean over its spread, at step 0, 1, ...: (N, ...) -> (N, ...)."""
        s = self._state
        s.first.lerp_(slope, 0.1)
        s.second.lerp_(slope.square(), 0.001)
        spread = s.second.div(1 - 0.999 ** (step + 1)).sqrt_().add_(1e-8)
        return torch.addcdiv(point, s.first, spread, value=-rate / (1 - 0.9 ** (step + 1)))
