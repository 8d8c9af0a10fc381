"""Where the nearest adversarial points beyond the threat stand, for searches that begin there."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from robust.sources import Samples
from robust.sources.spool import Slots
from robust.suites import Stage


class Breaks:
    """The nearest adversarial points beyond the threat, of samples where they are near enough to begin a search at.

    Args:
        samples: whose they are.
        most: multiple of eps that they lie within.
    """

    def __init__(self, samples: Samples, most: float) -> None:
        self._most = most
        self._points = Slots("adversarial points beyond the threat", len(samples), samples.x.shape[1:])

    @staticmethod
    def wanted_by(stages: Sequence[Stage], samples: Samples) -> Breaks | None:
        """What those of the stages need that begin at such points; None where none does."""
        most = [stage.within or float("inf") for stage in stages if stage.attack.begins_at_break]
        return Breaks(samples, max(most)) if most else None

    def note(self, rows: Tensor, distance: Tensor, points: Tensor, places: Tensor) -> None:
        """Nearer ones of samples at these positions, (M,): how far in units of eps, and where in points (N, ...) they stand."""
        near = distance <= self._most
        self._points.put(rows[near], points[places[near].to(points.device)].cpu())

    def of(self, rows: Tensor, x: Tensor) -> Tensor:
        """Of samples at these positions, (N,): the points, or x (N, ...) where none is known."""
        points, known = x.clone(), self._points.filled[rows]
        points[known.to(x.device)] = self._points.take(rows[known]).to(x.device)
        return points
