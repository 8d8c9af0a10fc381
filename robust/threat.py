"""Threat models: a norm, a radius and the box that valid inputs live in."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

import torch
from torch import Tensor

from robust.errors import ThreatError
from robust.families import FAMILIES, Family
from robust.projections import MOST, norm_of, project

NORMS: Final = ("linf", "l2", "l1", "l0")
KINDS: Final = (*NORMS, *FAMILIES)
TOLERANCE: Final = 1e-6  # float32 rounding of x + (x_adv - x); some 4e-8 was seen
UNIT: Final = (0.0, 1.0)  # bounds where nobody gives any
_MOST: Final = torch.finfo(torch.float32).max  # samples are compared with bounds in float32
_MOST_L2: Final = 1e18  # float32 still holds the square of several radii
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
        most = _MOST_L2 if self.norm == "l2" else MOST
        if not 0 < value <= most:
            squared = " squared" if value <= MOST else ""
            over = f", which float32 does not hold{squared}" if value > most else ""
            raise ThreatError(
                f"threat eps: expected a positive number or fraction such as 0.5 or 8/255, got {self.eps!r}{over}"
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
        ThreatError: they are no (low, high) of finite numbers with low < high, or of more than float32 holds.
    """
    try:
        low, high = bounds
        empty = not (-_MOST <= low < high <= _MOST)
    except (TypeError, ValueError):
        empty = True
    if empty:
        raise ThreatError(
            f"bounds: expected (low, high), finite numbers of float32 with low < high, got {bounds}"
        )
    return low, high


def Linf(eps: str | float, bounds: tuple[float, float] = (0.0, 1.0)) -> Threat:  # noqa: N802
    """Threat with the maximum norm: Linf("8/255").

    Args:
        eps: > 0, in input units; a fraction as text is kept as written.
        bounds: lowest and highest valid input value.

    Raises:
        ThreatError: as for `Threat`.
    """
    return Threat("linf", str(eps), bounds)


def L2(eps: str | float, bounds: tuple[float, float] = (0.0, 1.0)) -> Threat:  # noqa: N802
    """Threat with the Euclidean norm of a sample's change: L2(0.5). Arguments and errors as for `Linf`."""
    return Threat("l2", str(eps), bounds)


def L1(eps: str | float, bounds: tuple[float, float] = (0.0, 1.0)) -> Threat:  # noqa: N802
    """Threat with the sum norm of a sample's change: L1(12). Arguments and errors as for `Linf`."""
    return Threat("l1", str(eps), bounds)


def L0(eps: str | float, bounds: tuple[float, float] = (0.0, 1.0)) -> Threat:  # noqa: N802
    """Threat with at most eps changed values, >= 1, a sample: L0(24). Otherwise as for `Linf`."""
    return Threat("l0", str(eps), bounds)


def Spatial(  # noqa: N802
    angle: float, shift: float = 0.0, bounds: tuple[float, float] = (0.0, 1.0)
) -> Threat:
    """Threat of rotations up to `angle` degrees and shifts up to `shift` of the side: Spatial(30, 0.1). Bounds as for `Linf`."""
    return Threat("spatial", f"{_short(angle)},{_short(shift)}", bounds)


def _short(number: Any) -> str:
    """A number as in threats; anything else as it is, for the threat to name."""
    try:
        return f"{number:g}"
    except (TypeError, ValueError):
        return str(number)


def Corruptions(  # noqa: N802
    severity: int | str = "", bounds: tuple[float, float] = (0.0, 1.0)
) -> Threat:
    """Threat of the 15 common corruptions, all or at one severity or some: Corruptions(3), Corruptions("1-3"). Bounds as for `Linf`."""
    return Threat("corruptions", str(severity), bounds)


def Patch(height: int, width: int, bounds: tuple[float, float] = (0.0, 1.0)) -> Threat:  # noqa: N802
    """Threat of anything within one rectangle of pixels, `height` x `width`: Patch(5, 3). Bounds as for `Linf`."""
    return Threat("patch", f"{height}x{width}", bounds)
