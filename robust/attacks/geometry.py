"""Steps and starts by norm, shared by the gradient attacks."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

from robust.oracle import Oracle, State
from robust.projections import norm_of
from robust.rng import Streams
from robust.threat import Threat

_ANY: Final = 99  # two to that power times any room is more than a gradient; and no rounding in it
_LEAST: Final = 1e-38  # under which float32 has few digits


def steepest(gradient: Tensor, norm: str, *, sparsity: float = 0.01) -> Tensor:
    """The direction of unit norm along which the loss rises fastest: (N, ...) -> (N, ...).

    linf: the sign. l2: the gradient normalised (zero stays zero). l1: the signs of the largest
    `sparsity` share of the values, in equal parts, the relaxed steepest direction of Tramer & Boneh
    2019 (arXiv 1904.13000), since a single value a step soon meets the box.
    """
    along, length = _along(gradient, norm, sparsity)
    return along if length is None else along * per_row(length.reciprocal(), along)


def _along(gradient: Tensor, norm: str, sparsity: float = 0.01) -> tuple[Tensor, Tensor | None]:
    """`steepest` before it is brought to unit norm, and its norm, (N,): None where that is 1 already."""
    if norm == "linf":
        return gradient.sign(), None
    flat = gradient.flatten(1)
    if norm == "l2":
        return gradient, norm_of(flat, "l2").clamp_min_(1e-30)
    count = max(1, round(sparsity * flat.shape[1]))
    signs = signs_of_largest(flat, count)
    return signs.view_as(gradient), count_of(signs).clamp_min_(1.0)


def signs_of_largest(flat: Tensor, count: int | Tensor) -> Tensor:
    """The signs of each row's `count` largest values by size (more where the last are equal), 0 for the others.

    Args:
        flat: (N, D).
        count: in [1, D], for all rows or, (N,) int64, for each.
    """
    return (
        flat.div(_last_of_largest(flat.abs(), count).clamp_min_(_LEAST)).trunc_().clamp_(-1, 1)
    )  # and no masks


def _last_of_largest(size: Tensor, count: int | Tensor) -> Tensor:
    """The least of each row's `count` largest values, none below 0: (N, D) -> (N, 1)."""
    if isinstance(count, Tensor):
        return rising(size).gather(1, size.shape[1] - count[:, None])
    if size.device.type != "cpu" or size.dtype != torch.float32:
        return size.topk(count, dim=1).values[:, -1:]
    place = size.shape[1] - count
    bits = np.partition(size.view(torch.int32).numpy(), place, axis=1)  # as they are ordered, and sooner done
    return torch.from_numpy(bits[:, place : place + 1].copy()).view(torch.float32)


def count_of(signs: Tensor) -> Tensor:
    """How many values of each row, all of them -1, 0 or 1, are not 0: (N, D) -> (N,), a whole number but for rounding."""
    return norm_of(signs, "l2").square_()  # in a third of the time that adding up sizes takes


def uphill(gradient: Tensor, x_adv: Tensor, threat: Threat) -> Tensor:
    """`steepest` at a point of the box: nothing is spent on values that are at the box's end already (l1 and l2).

    In l1 as in the paper above. In l2 it is our own: on digits, black and white all over, most of a gradient leads out of
    the box.
    """
    if threat.norm != "linf":
        gradient = movable(gradient, x_adv, threat.bounds)
    return steepest(gradient, threat.norm)


def ahead(x_adv: Tensor, gradient: Tensor, threat: Threat, size: float) -> Tensor:
    """x_adv + size * uphill(gradient, x_adv, threat), in fewer passes over the values: (N, ...) -> (N, ...)."""
    if threat.norm != "linf":
        gradient = movable(gradient, x_adv, threat.bounds)
    return moved(x_adv, gradient, threat.norm, size)


def moved(x_adv: Tensor, gradient: Tensor, norm: str, size: float | Tensor) -> Tensor:
    """x_adv + size * steepest(gradient, norm), in fewer passes over the values: (N, ...) -> (N, ...).

    Args:
        size: one for all, or one each, (N,).
    """
    along, length = _along(gradient, norm)
    free = None if along is gradient else along  # memory to write to
    if length is not None:
        size = size / length
    if isinstance(size, Tensor):
        return torch.addcmul(x_adv, along, per_row(size, along), out=free)
    return torch.add(x_adv, along, alpha=size, out=free)


def movable(gradient: Tensor, x_adv: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The gradient, but 0 for values that have no room in its direction: (N, ...), (N, ...) -> (N, ...)."""
    scale = 2.0 ** (_ANY - math.frexp(max(map(abs, bounds)))[1])
    least, most = (torch.rsub(x_adv, end * scale, alpha=scale) for end in bounds)  # 0 where there is no room
    return torch.clamp(gradient, least, most, out=most)  # no masks: they take several times as long


def toward_set(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """A point on the way, to be projected in the end: l2 into the box, then the ball; others for good.

    Not the nearest point of both, but a sixth of the work, and no weaker. The ball alone would be: what lies
    beyond the box takes its share of the radius. In l2 it comes in the memory of x_adv.
    """
    if threat.norm != "l2":
        return threat.project(x_adv, x)
    return into_box_then_ball(x_adv, x, threat.radius, threat.bounds)


def into_box_then_ball(
    x_adv: Tensor, x: Tensor, radius: float | Tensor, bounds: tuple[float, float]
) -> Tensor:
    """Clipped to the box, then drawn towards x into the l2 ball, in the memory of x_adv; a radius for all or, (N,), each."""
    delta = x_adv.clamp_(*bounds).sub_(x)
    factor = (radius / norm_of(delta.flatten(1), "l2").clamp_min_(1e-30)).clamp_max_(1.0)
    return torch.addcmul(x, delta, per_row(factor, x), out=delta)


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


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Of the angle between directions, (N, ...) each, however short: (N,), nan where one is zero."""
    unit, along = (flat / flat.abs().amax(1, keepdim=True) for flat in (one.flatten(1), other.flatten(1)))
    return torch.cosine_similarity(unit, along)


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


def replace(rows: Tensor, *pairs: tuple[Tensor, Tensor]) -> None:
    """Put into each pair's first tensor what the second holds in the named rows ((N,) bool)."""
    if rows.device.type != "cpu":  # to name them would have the host wait
        for kept, new in pairs:
            torch.where(per_row(rows, kept), new, kept, out=kept)
        return
    named = rows.nonzero().squeeze(1)
    for kept, new in pairs if len(named) else ():
        if len(named) == len(rows):
            kept.copy_(new)
        else:
            kept.index_copy_(0, named, new.index_select(0, named))


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
