"""The l1 ascent of APGD: sparse steps, from outside the ball inwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from robust.attacks.geometry import choose, count_of, per_row, replace, signs_of_largest
from robust.oracle import Oracle, State
from robust.projections import norm_of, project
from robust.rng import Streams

Schedule = Sequence[tuple[float, float]]  # radius in units of eps, share of the steps

_PAPER: Final = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
_THINNER: Final = (
    0.95  # the best point lost more than a twentieth of its changed values: the step starts anew
)
_SHRINK: Final = 1.5  # else the step is divided by this,
_LEAST: Final = 10.0  # down to a tenth of the first
_WIDEST: Final = 100.0  # eps: the noise of the start, where the box has no ends


def ascend_l1(
    oracle: Oracle,
    s: State,
    loss: Callable[..., Tensor],
    columns: Callable[[], tuple[Tensor, ...]],
    streams: Streams,
    steps: int,
    outside: float | None,
) -> None:
    """Croce & Hein 2021 (arXiv 2103.01208): from a random point outside, raise the loss in the ball and box together.

    A step goes along the signs of the largest gradient values; how many is two thirds of the values that
    the best point so far changes. The search runs at 3, 2 and 1 times eps, each from the best of the last, or from farther
    outside inwards. It begins with noise as large as the box, projected: few values changed, and these by much.

    Args:
        s: state; the best point inside the threat is left in `s.x_adv`.
        columns: the loss's further columns, of the rows that are live at the time.
        streams: where the noise is drawn from.
        steps: gradient steps, all radii together.
        outside: the first radius in units of eps, then half of it and so on, each with as many steps; None: as in the paper.
    """
    low, high = oracle.threat.bounds
    size = min(high - low, _WIDEST * oracle.threat.radius)
    s.x_adv = oracle.x + size * streams.normal(oracle.x.shape[1:])
    widest = torch.finfo(oracle.x.dtype).max
    for factor, length in _stages(steps, _PAPER if outside is None else _halved(outside)):
        _ascend(oracle, s, loss, columns, min(factor * oracle.threat.radius, widest), length)


def _halved(outside: float) -> Schedule:
    radii = [outside]
    while radii[-1] > 1:
        radii.append(max(radii[-1] / 2, 1.0))
    return [(factor, 1 / len(radii)) for factor in radii]


def _stages(steps: int, schedule: Schedule) -> Iterator[tuple[float, int]]:
    """Radii with their steps; a budget too short for all of them stays inside."""
    counts = [int(share * steps) for _, share in schedule[:-1]]
    if min(counts, default=0) > 0:
        yield from zip([factor for factor, _ in schedule[:-1]], counts, strict=True)
        steps -= sum(counts)
    yield schedule[-1][0], steps


def _ascend(
    oracle: Oracle,
    s: State,
    loss: Callable[..., Tensor],
    columns: Callable[[], tuple[Tensor, ...]],
    radius: float,
    steps: int,
) -> None:
    bounds, values = oracle.threat.bounds, oracle.x.shape[1:].numel()
    s.x_adv = project(s.x_adv, oracle.x, "l1", radius, bounds)
    s.changed = norm_of((s.x_adv - oracle.x).flatten(1), "l0")
    s.density = s.changed / values / _SHRINK
    s.step = torch.full_like(s.changed, radius)
    s.best, s.best_x = torch.full_like(s.step, -torch.inf), s.x_adv.clone()
    s.best_gradient = torch.zeros_like(s.x_adv)
    period = max(1, int(0.04 * steps))
    for step in oracle.steps(steps + 1):
        gradient, value, _ = oracle.gradient(s.x_adv, loss, *columns())
        better = value > s.best
        s.best = torch.where(better, value, s.best)
        replace(better, (s.best_x, s.x_adv), (s.best_gradient, gradient))
        if step and step % period == 0:
            gradient = _adapt(s, oracle.x, gradient, radius)
        signs = _sparse_signs(gradient, s.density)  # equal parts, a step in all
        share = s.step / count_of(signs).clamp_min_(1.0)
        move = torch.addcmul(s.x_adv, signs.view_as(gradient), per_row(share, gradient))
        s.x_adv = project(move, oracle.x, "l1", radius, bounds)
    s.x_adv = s.best_x


def _adapt(s: State, x: Tensor, gradient: Tensor, radius: float) -> Tensor:
    """Set density and step by how sparse the best point has become."""
    changed = norm_of((s.best_x - x).flatten(1), "l0")
    thinner = changed < _THINNER * s.changed
    s.changed, s.density = changed, changed / x.shape[1:].numel() / _SHRINK
    s.step = torch.where(thinner, radius, (s.step / _SHRINK).clamp(radius / _LEAST, radius))
    s.x_adv = choose(thinner, s.best_x, s.x_adv)
    return choose(thinner, s.best_gradient, gradient)


def _sparse_signs(gradient: Tensor, density: Tensor) -> Tensor:
    """The signs of each row's largest values, a share `density` of them, and 0 for the others: (N, D)."""
    flat = gradient.flatten(1)
    count = (density * flat.shape[1]).long().clamp(0, flat.shape[1] - 1) + 1
    return signs_of_largest(flat, count)
