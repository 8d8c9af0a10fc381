"""The nearest point of a norm ball within a box, and norms: maths on (N, ...) tensors, which know no threat."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from robust.crossing import crossing
from robust.replayed import Replayed

MOST: Final = torch.finfo(torch.float32).max
_MANY, _PIECE = 1 << 14, 1 << 10  # values
_ROUNDS: Final = 40  # seen: 26 at most where float32 can tell, most often 4
_PATIENCE: Final = 12  # rounds, after which every other halves the bracket


def norm_of(flat: Tensor, norm: str) -> Tensor:
    """Norm of each row: (N, D) -> (N,)."""
    if norm == "linf":
        return flat.abs().amax(1)
    if norm == "l2":
        return _length(flat)
    if norm == "l1":
        return flat.abs().sum(1)
    count = (
        torch.linalg.vector_norm(flat.sign(), dim=1).square_().round_()
    )  # a mask takes three times as long
    return count.add_(flat.sum(1).mul_(0))  # the sign of NaN is 0, its distance is not


def _length(flat: Tensor) -> Tensor:
    """l2 norm of each row: (N, D) -> (N,). Of many values by pieces.

    On a CPU torch adds up all squares of a row in a few sums: of an image of 224 x 224 pixels in three colours these end a
    millionth short, as much as a point may lie outside its ball.
    """
    values = flat.shape[1]
    if flat.device.type != "cpu" or values <= _MANY:
        return torch.linalg.vector_norm(flat, dim=1)
    whole = values - values % _PIECE
    pieces = torch.linalg.vector_norm(flat[:, :whole].unflatten(1, (-1, _PIECE)), dim=2)
    rest = torch.linalg.vector_norm(flat[:, whole:], dim=1, keepdim=True)
    return torch.linalg.vector_norm(torch.cat([pieces, rest], 1), dim=1)


def project(
    x_adv: Tensor, x: Tensor, norm: str, eps: float | Tensor, bounds: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """The nearest point (Euclidean) to x_adv in ball and box together: (N, ...) -> (N, ...). x must lie in the box.

    Args:
        eps: a number or, one per sample, (N,).
    """
    if norm == "l2":
        return _project_l2(x_adv, x, eps, bounds=bounds)
    low, high = bounds
    if norm == "linf":
        if isinstance(eps, Tensor):
            eps = eps.view(-1, *([1] * (x.dim() - 1)))
        return torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp_(low, high)
    delta, base = (x_adv - x).flatten(1), x.flatten(1)
    radius = eps[:, None] if isinstance(eps, Tensor) else eps
    if norm == "l0":
        inside = (base + delta).clamp_(low, high).sub_(base)
        gain = (2 * delta).sub_(inside).mul_(inside)  # what keeping saves: delta^2 - (delta - inside)^2
        return keep_largest(inside, gain, radius).add_(base).clamp_(low, high).view_as(x)
    sign = delta.sign()  # and no masks: one costs more than ten of these
    room = base.add(sign, alpha=min(high - low, MOST)).clamp_(low, high).sub_(base).abs_()
    size = _shrink_l1(delta.abs_(), room, radius)
    return _moved_l1(base, sign, size, radius).clamp_(low, high).view_as(x)


def _moved_l1(base: Tensor, sign: Tensor, size: Tensor, eps: float | Tensor) -> Tensor:
    """base + sign * size: (N, D), its sum of changes no more than eps, a float's rounding of every value included.

    Many small changes of like binades may all be rounded upwards.
    """
    moved = torch.mul(sign, size).add_(base)
    for left in range(3, -1, -1):
        whole = (moved - base).abs_().sum(1, keepdim=True, dtype=torch.float64)
        outside = whole > eps * (1 + 5e-7)
        if not bool(outside.any()):
            return moved
        if left:
            size = size * torch.where(outside, eps / whole * (1 - 1e-6), 1.0).to(size.dtype)
            moved = torch.where(outside, torch.mul(sign, size).add_(base), moved)
    # Changes so small that their rounding decides: those that it made larger end a float before.
    larger = outside & ((moved - base).abs_() > size)
    return torch.where(larger, torch.nextafter(moved, base), moved)


@Replayed
def _project_l2(x_adv: Tensor, x: Tensor, eps: float | Tensor, *, bounds: tuple[float, float]) -> Tensor:
    (low, high), base = bounds, x.flatten(1)
    radius = eps[:, None] if isinstance(eps, Tensor) else eps
    scaled = _scale_l2((x_adv - x).flatten(1), low - base, high - base, radius)
    return (x + scaled.view_as(x)).clamp_(low, high)


def _scale_l2(delta: Tensor, least: Tensor, most: Tensor, eps: float | Tensor) -> Tensor:
    """argmin ||d - delta|| over least <= d <= most, ||d||_2 <= eps, where least <= 0 <= most.

    The optimum is d = clamp(t * delta, least, most) with one factor t <= 1 a row: start from the factor that
    fits the ball without the box, then let the free values take up what the capped ones leave.
    Capped sets only grow, so the loop ends; few rounds suffice. Where all are capped the factor matters no more.
    """
    if delta.device.type == "cuda":
        return _scale_l2_sorted(delta, least, most, eps)
    factor = (eps / norm_of(delta, "l2")[:, None].clamp_min(1e-30)).clamp_max(1.0)
    for _ in range(20):
        scaled = factor * delta
        inside = scaled.clamp(least, most)
        whole = norm_of(inside, "l2")[:, None]
        done = torch.maximum(whole / eps, factor) >= 1 - 1e-5
        if bool(done.all()):
            return inside
        free = norm_of(inside.eq_(scaled).mul_(scaled), "l2")[:, None]  # masks cost ten times as much
        left = (eps**2 - whole.square() + free.square()).clamp_min_(0).sqrt_()
        growth = left.div_(free.clamp_min_(1e-30)).clamp_min_(1.0)
        growth = growth.mul_(factor).clamp_max_(1.0)  # over 1 nothing is scaled down
        factor = torch.where(done, factor, growth)  # rows that are done wait: none depends on the others
    return (factor * delta).clamp(least, most)


def _scale_l2_sorted(delta: Tensor, least: Tensor, most: Tensor, eps: float | Tensor) -> Tensor:
    """As `_scale_l2`, without a word to the host: the squares of the values grow with that of the factor."""
    rate, full = delta.square(), torch.where(delta > 0, most, least).square()
    goal = eps.square() if isinstance(eps, Tensor) else delta.new_full((1, 1), eps**2)
    factor = crossing(full / rate.clamp_min(1e-30), rate, full, goal).sqrt().clamp_max(1.0)
    inside = (factor * delta).clamp(least, most)
    return inside * (eps / norm_of(inside, "l2")[:, None].clamp_min(1e-30)).clamp_max(1.0)  # of rounding


def _shrink_l1(size: Tensor, room: Tensor, eps: float | Tensor) -> Tensor:
    """argmin ||s - size|| over 0 <= s <= room, ||s||_1 <= eps: s = clamp(size - t, 0, room) with one t a row.

    The sum falls piecewise linearly in t. Newton's steps from either side, halving what brackets t where one leaves it,
    are on the right piece after a few rounds, where sorting the ends of the pieces takes several times as long.
    The sum may end 1e-5 of eps short of it, and then so may a value.
    """
    kept = torch.minimum(size, room)
    whole = kept.sum(1, keepdim=True)
    if bool((inside := whole <= eps).all()):
        return kept
    aim = torch.where(inside, whole, eps * (1 - 2e-7))  # what rounding adds to the sum stays under eps
    enough = 1e-5 * aim
    rest, t = size.clone(), torch.zeros_like(aim)
    low, high = t, size.amax(1, keepdim=True)
    for turn in range(_ROUNDS):
        over = whole - aim
        done = over.abs() <= enough  # rows that are done wait: none depends on the others
        if bool(done.all()):
            break
        low, high = torch.where(over > 0, t, low), torch.where(over > 0, high, t)
        between = kept.eq_(rest)
        if turn == 0:  # later, with t above 0, a value is 0 before it is clamped by chance alone
            between.mul_(rest.sign_())
        falling = between.sum(1, keepdim=True)
        further = t + over / falling.clamp_min_(1e-9)
        astray = (further <= low) | (further >= high)
        if turn > _PATIENCE and turn % 2:
            astray = torch.ones_like(astray)
        t = torch.where(done, t, torch.where(astray, (low + high) / 2, further))
        torch.sub(size, t, out=rest)
        torch.minimum(rest, room, out=kept).clamp_min_(0)
        whole = kept.sum(1, keepdim=True)
    else:  # float32 has no finer t: from a little outside rather than from inside
        kept = torch.minimum((size - torch.where(done, t, low)).clamp_min_(0), room)
        whole = kept.sum(1, keepdim=True)
    return kept.mul_(torch.where(whole <= eps, 1.0, aim / whole.clamp_min(1e-30)))


def keep_largest(change: Tensor, gain: Tensor, eps: float | Tensor) -> Tensor:
    """The floor(eps) changes of each row with the largest gain, 0 for the others: (N, D), (N, D) -> (N, D), a new tensor.

    Args:
        gain: at least 0, and 0 where the change is.
        eps: a number or, one per sample, (N, 1).
    """
    if gain.device.type == "cpu" and gain.shape[1]:
        kept, places = _above_threshold(change, gain, eps)
        if bool(
            (norm_of(kept, "l0") <= places).all()
        ):  # else some gains are equal, and there is a choice to make
            return kept
    most = int(eps.amax() if isinstance(eps, Tensor) else eps)
    top = gain.topk(min(most, gain.shape[1]), dim=1).indices
    kept = change.gather(1, top)
    if isinstance(eps, Tensor):
        kept *= torch.arange(1, top.shape[1] + 1, device=gain.device) <= eps
    return torch.zeros_like(change).scatter_(1, top, kept)


def _above_threshold(change: Tensor, gain: Tensor, eps: float | Tensor) -> tuple[Tensor, Tensor]:
    """The changes whose gain is no less than the floor(eps)-th largest, more where gains are equal; and floor(eps), (N,).

    Sorted by NumPy: to find the hundred largest of a row takes torch ten times as long.
    """
    n, values = gain.shape
    places = torch.as_tensor(eps).floor().clamp(0, values).long().expand(n, 1)
    rising = torch.from_numpy(np.sort(gain.numpy(), axis=1))
    least = rising.gather(1, (values - places).clamp_max_(values - 1))
    return (gain - least).sign_().add_(1).clamp_max_(1).mul_(change), places[:, 0]
