"""Copies of a run's live rows, for searches from several starts at once: how they begin, and what they found."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robust.ledger import Ledger
from robust.observer import Observer
from robust.rows import LiveRows, by_row


def repeated(values: Tensor, count: int) -> Tensor:
    """Each row `count` times, copies of a row side by side: (N, ...) -> (N * count, ...)."""
    return values.repeat_interleave(count, 0)


def copied_rows(live: LiveRows, count: int, before_change: Callable[[], None]) -> LiveRows:
    """Copies of the rows, with ids of their own; those of a row leave together."""
    ids = repeated(live.ids, count) * count
    ids += torch.arange(len(ids), device=ids.device) % count
    return LiveRows(repeated(live.x, count), repeated(live.y, count), ids, before_change, count)


def copied_observer(observer: Observer, live: LiveRows, copies: LiveRows, count: int) -> Observer:
    """An observer of the copies of the live rows, which knows of each what is known of its row."""
    gaps = observer.ledger.gaps
    ledger = Ledger.empty(copies.x, None if gaps is None else repeated(gaps[live.rows], count))
    return observer.of(copies, ledger, repeated(observer.denied[live.rows], count))


def absorb(observer: Observer, live: LiveRows, found: Observer, count: int) -> tuple[Tensor, Tensor]:
    """Note of each live row what its copies found.

    Returns:
        which rows are broken, and which failed, (N,) bool each.
    """
    theirs, ledger, rows = found.ledger, observer.ledger, live.rows
    if theirs.gaps is not None:
        observer.note_gaps(by_row(theirs.gaps, count).amax(1))
    observer.take_denials(rows, by_row(found.denied, count).amax(1), found)
    distance, nearest = by_row(theirs.distance, count).min(1)
    places = nearest.add(torch.arange(len(rows), device=rows.device), alpha=count)
    observer.note_points(rows, theirs.x_adv, places, distance)
    broken, failed = (by_row(flags, count).any(1) for flags in (theirs.broken, theirs.failed))
    ledger.broken[rows] |= broken
    ledger.failed[rows] |= failed
    ledger.strayed[rows] |= by_row(theirs.strayed, count).any(1)
    return broken, failed
