"""Threat models: a norm, a radius and the box that valid inputs live in."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from robust.crossing import crossing
from robust.errors import ThreatError
from robust.families import FAMILIES, Family
from robust.replayed import Replayed

NORMS: Final = ("linf", "l2", "l1", "l0")
KINDS: Final = (*NORMS, *FAMILIES)
_ROUNDS: Final = 40  # seen: 26 at most where float32 can tell, most often 4
_PATIENCE: Final = 12  # rounds, after which every other halves the bracket
MOST: Final = torch.finfo(torch.float32).max
TOLERANCE: Final = 1e-6  # float32 rounding of x + (x_adv - x); some 4e-8 was seen
UNIT: Final = (0.0, 1.0)  # bounds where nobody gives any
_ROUNDING: Final = 2**-22  # of the larger end of the box


@dataclass(frozen=True)
class Threat:
    """All x_adv with ||x_adv - x||_norm <= eps inside the box `bounds`, or those of a family of changes.

    Families: "spatial:30,0.1" (rotation, shift), "corruptions:3", "patch:5x5"; see `robust.families` for
    what their eps and distances mean.

    Args:
        norm: "linf", "l2", "l1" or "l0" (l0 counts changed values, not pixels), or a family's name.
        eps: radius in input units, as written ("8/255", "0.5"): ranks are never mixed over different
            spellings of nearly equal radii, so the spelling is kept.
        bounds: lowest and highest valid input value; the default gives way to those of an evaluation.

    Raises:
        ThreatError: unknown norm, eps that is not a positive finite number, in l0 at least 1 (or what the
            family reads), empty bounds.
    """

    norm: str
    eps: str
    bounds: tuple[float, float] = UNIT

    def __post_init__(self) -> None:
        if self.norm not in KINDS:
            raise ThreatError(f"threat norm: expected one of {', '.join(KINDS)}, got {self.norm!r}")
        object.__setattr__(self, "bounds", pair_of_bounds(self.bounds))
        if self.norm == "l0" and self.radius < 1:
            raise ThreatError(f"threat eps: expected at least 1 changed value in l0, got {self.eps!r}")
        _ = self.radius

    @staticmethod
    def parse(spec: str | Threat, bounds: tuple[float, float] | None = None) -> Threat:
        """Read "norm:eps", as in "linf:8/255"; a Threat passes through.

        Args:
            bounds: of the evaluation; those of a Threat must be the same, unless they are the default.
        """
        if isinstance(spec, Threat):
            return spec if bounds is None else spec._within(pair_of_bounds(bounds))
        norm, colon, eps = str(spec).partition(":")
        if not colon and norm.strip().lower() != "corruptions":
            raise ThreatError(f"threat: expected 'norm:eps' such as 'linf:8/255', got {spec!r}")
        return Threat(norm.strip().lower(), eps.strip(), UNIT if bounds is None else bounds)

    def _within(self, bounds: tuple[float, float]) -> Threat:
        if self.bounds not in (bounds, UNIT):
            raise ThreatError(
                f"threat {self}: its bounds are {self.bounds}, those given or of the model's Target {bounds}; give "
                "the same to both"
            )
        return replace(self, bounds=bounds)

    @functools.cached_property
    def radius(self) -> float:
        """eps as a number; for a family its largest size."""
        if self.family is not None:
            return self.family.radius
        try:
            value = float(Fraction(str(self.eps).replace(" ", "")))
        except (ValueError, ZeroDivisionError, OverflowError):
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise ThreatError(
                f"threat eps: expected a positive number or fraction such as 0.5 or 8/255, got {self.eps!r}"
            )
        return value

    @functools.cached_property
    def family(self) -> Family | None:
        """What the changes are where they are no norm ball."""
        return FAMILIES[self.norm].read(self.eps) if self.norm in FAMILIES else None

    def __str__(self) -> str:
        return f"{self.norm}:{self.eps}" if self.eps else self.norm

    def distance(self, x_adv: Tensor, x: Tensor, change: Tensor | None = None) -> Tensor:
        """||x_adv - x||_norm per sample, or the family's size of the change: (N, ...), (N, ...) -> (N,).

        Args:
            change: x_adv - x where that is known.
        """
        if self.family is not None:
            return self.family.distance(x_adv, x, self.bounds)
        return norm_of((x_adv - x if change is None else change).flatten(1), self.norm)

    def contains(self, x_adv: Tensor, x: Tensor, *, tolerance: float = TOLERANCE) -> Tensor:
        """Whether x_adv is finite, in the box and in the ball, up to `tolerance`: -> (N,) bool.

        The tolerance is in units of the box's larger end or, for l2 and l1, which add values up, of eps; never more
        than a thousandth of eps and what rounding takes.
        """
        return self.measure(x_adv, x, tolerance=tolerance)[0]

    def measure(self, x_adv: Tensor, x: Tensor, *, tolerance: float = TOLERANCE) -> tuple[Tensor, Tensor]:
        """`contains` and `distance` together: both (N,)."""
        distance = self.distance(x_adv, x)
        return self.in_box(x_adv, tolerance=tolerance) & self.within(distance, tolerance=tolerance), distance

    def within(self, distance: Tensor, *, tolerance: float = TOLERANCE) -> Tensor:
        """Whether points so far from x are in the ball, up to `tolerance` as of `contains`: (N,) -> (N,) bool."""
        return distance <= self.farthest(tolerance=tolerance)

    def farthest(self, radius: float | None = None, *, tolerance: float = TOLERANCE) -> float:
        """The largest distance that counts as in the ball, up to `tolerance` as of `contains`.

        Args:
            radius: of another ball of this kind in this box, 0 for x alone; None for the threat's own.
        """
        radius = self.radius if radius is None else radius
        ends = max(1.0, *map(abs, self.bounds))
        return radius + min(tolerance * max(ends, radius), 1e-3 * radius + _ROUNDING * ends)

    def in_box(self, x_adv: Tensor, *, tolerance: float = TOLERANCE) -> Tensor:
        """Whether all values are within the bounds, up to `tolerance` of the larger: -> (N,) bool, False for NaN."""
        low, high = self.bounds
        slack = tolerance * max(1.0, abs(low), abs(high))
        low, high = low - slack, high + slack
        if x_adv.device.type == "cpu" and x_adv.numel() and x_adv.amin() >= low and x_adv.amax() <= high:
            return x_adv.new_ones(len(x_adv), dtype=torch.bool)  # all of them: sooner seen than row by row
        flat = x_adv.flatten(1)
        return (flat.amin(1) >= low) & (flat.amax(1) <= high)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The nearest point (Euclidean) to x_adv in ball and box together: (N, ...) -> (N, ...).

        x itself must lie in the box. For l1 see Croce & Hein 2021 (arXiv 2103.01208).
        """
        if self.family is not None:
            return self.family.project(x_adv, x, self.bounds)
        return project(x_adv, x, self.norm, self.radius, self.bounds)


def pair_of_bounds(bounds: Any) -> tuple[float, float]:
    """Bounds as a tuple, whatever pair they came as.

    Raises:
        ThreatError: they are no (low, high) of finite numbers with low < high.
    """
    try:
        low, high = bounds
        empty = not (math.isfinite(low) and math.isfinite(high) and low < high)
    except (TypeError, ValueError):
        empty = True
    if empty:
        raise ThreatError(f"bounds: expected (low, high), finite numbers with low < high, got {bounds}")
    return low, high


def project(
    x_adv: Tensor, x: Tensor, norm: str, eps: float | Tensor, bounds: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """As `Threat.project`; eps is a number or, one per sample, (N,)."""
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
    for _ in range(3):
        whole = (moved - base).abs_().sum(1, keepdim=True, dtype=torch.float64)
        outside = whole > eps * (1 + 5e-7)
        if not bool(outside.any()):
            break
        size = size * torch.where(outside, eps / whole * (1 - 1e-6), 1.0).to(size.dtype)
        moved = torch.where(outside, torch.mul(sign, size).add_(base), moved)
    return moved


def norm_of(flat: Tensor, norm: str) -> Tensor:
    """Norm of each row: (N, D) -> (N,)."""
    if norm == "linf":
        return flat.abs().amax(1)
    if norm == "l2":
        return torch.linalg.vector_norm(flat, dim=1)
    if norm == "l1":
        return flat.abs().sum(1)
    count = (
        torch.linalg.vector_norm(flat.sign(), dim=1).square_().round_()
    )  # a mask takes three times as long
    return count.add_(flat.sum(1).mul_(0))  # the sign of NaN is 0, its distance is not


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


def Linf(eps: str | float, bounds: tuple[float, float] = (0.0, 1.0)) -> Threat:  # noqa: N802
    """Threat with the maximum norm, eps in input units: Linf("8/255")."""
    return Threat("linf", str(eps), bounds)


def L2(eps: str | float, bounds: tuple[float, float] = (0.0, 1.0)) -> Threat:  # noqa: N802
    """Threat with the Euclidean norm: L2(0.5)."""
    return Threat("l2", str(eps), bounds)


def L1(eps: str | float, bounds: tuple[float, float] = (0.0, 1.0)) -> Threat:  # noqa: N802
    """Threat with the sum norm: L1(12)."""
    return Threat("l1", str(eps), bounds)


def L0(eps: str | float, bounds: tuple[float, float] = (0.0, 1.0)) -> Threat:  # noqa: N802
    """Threat with at most eps changed values: L0(24)."""
    return Threat("l0", str(eps), bounds)


def Spatial(  # noqa: N802
    angle: float, shift: float = 0.0, bounds: tuple[float, float] = (0.0, 1.0)
) -> Threat:
    """Threat of rotations up to `angle` degrees and shifts up to `shift` of the side: Spatial(30, 0.1)."""
    return Threat("spatial", f"{angle:g},{shift:g}", bounds)


def Corruptions(  # noqa: N802
    severity: int | str = "", bounds: tuple[float, float] = (0.0, 1.0)
) -> Threat:
    """Threat of the 15 common corruptions, all or at one severity or some: Corruptions(3), Corruptions("1-3")."""
    return Threat("corruptions", str(severity), bounds)


def Patch(height: int, width: int, bounds: tuple[float, float] = (0.0, 1.0)) -> Threat:  # noqa: N802
    """Threat of anything within one rectangle of pixels: Patch(5, 5)."""
    return Threat("patch", f"{height}x{width}", bounds)
