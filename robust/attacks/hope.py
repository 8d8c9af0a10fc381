"""When a minimum-norm search is at its end: what it gained of late will not bring it within eps."""

from __future__ import annotations

from typing import Final

import torch

from robust.oracle import Oracle, State

_STRETCH: Final = 5  # steps


def begin_with_hope(oracle: Oracle, s: State) -> None:
    """Per live row the distance of the nearest adversarial point of this search, s.least, none so far."""
    s.least = s.mark = torch.full_like(oracle.y, torch.inf, dtype=oracle.x.dtype)


def end_the_hopeless(oracle: Oracle, s: State, hope: float | None, points: int, first: int = 10) -> None:
    """Let rows rest that are short of eps by over `hope` times what their last five points gained.

    Args:
        hope: None lets none rest.
        points: of how many s.least was taken.
        first: of so many at least before any rests.
    """
    if hope is None or points == 0 or points % _STRETCH:
        return
    if points >= first:
        oracle.rest(s.least - oracle.threat.radius > hope * (s.mark - s.least))
    s.mark = s.least
