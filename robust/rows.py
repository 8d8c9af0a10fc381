"""The rows of a run that an attack still works on: some leave for good, some rest for a loop, the others close ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor


def by_row(values: Tensor, count: int) -> Tensor:
    """The copies of a row apart again: (N * count, ...) -> (N, count, ...)."""
    return values.view(len(values) // count, count, *values.shape[1:])


class State:
    """Per-row tensors that an attack keeps across steps; the oracle drops rows that are done.

    Attributes are free; every tensor among them has a row per live sample in its first dimension.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Tensor: ...

        def __setattr__(self, name: str, value: Tensor) -> None: ...


@dataclass
class Absent:
    """Rows set aside, with all that belongs to them."""

    rows: Tensor
    x: Tensor
    y: Tensor
    ids: Tensor
    states: list[dict[str, Tensor]]


class LiveRows:
    """Samples, labels, ids and states of the rows that are left; all shrink and grow together.

    Args:
        x, y, ids: of all rows at the beginning, (N, ...), (N,), (N,).
        before_change: called each time before rows go or come back.
        copies: rows that stand for the same sample, each after the other: where one leaves, all do.
    """

    def __init__(
        self, x: Tensor, y: Tensor, ids: Tensor, before_change: Callable[[], None], copies: int = 1
    ) -> None:
        self.x, self.y, self.ids = x, y, ids
        self.copies = copies
        self._gone = torch.zeros(len(x) // copies, dtype=torch.bool, device=x.device)
        self.rows = torch.arange(len(x), device=x.device)  # their numbers from the beginning, rising
        self.count = len(x)  # asked at every step, and a tensor's len takes microseconds
        self.resting = 0  # rows that sit out a loop, and come back
        self._before_change = before_change
        self._states: list[State] = []
        self._leaving: Tensor | None = None  # those that go when ranks are closed
        self._pausing: Tensor | None = None  # those that are set aside then

    def __len__(self) -> int:
        return self.count

    def state(self) -> State:
        """A new bag of tensors that rows take with them."""
        self._states.append(State())
        return self._states[-1]

    def leave(self, rows: Tensor) -> None:
        """Let these ((N,) bool) go when ranks are closed next, beside those that go then anyway."""
        self._leaving = rows if self._leaving is None else self._leaving | rows

    def rest(self, rows: Tensor) -> None:
        """Let these ((N,) bool) be set aside when ranks are closed next."""
        self._pausing = rows

    @property
    def changing(self) -> bool:
        """Whether rows may go when ranks are closed next."""
        return self._leaving is not None or self._pausing is not None

    def close_ranks(self, away: list[Absent]) -> None:
        """Go on without those that leave or rest; the latter are added to `away`."""
        leaving, pausing = self._leaving, self._pausing
        self._leaving = self._pausing = None
        if leaving is not None and self.copies > 1:
            self._gone[self.rows[leaving] // self.copies] = True
            leaving = self._gone[self.rows // self.copies]
        if pausing is not None:
            pausing = pausing if leaving is None else pausing & ~leaving
            if bool(pausing.any()):
                away.append(self._snapshot(pausing))
                self.resting += len(away[-1].rows)
                leaving = pausing if leaving is None else leaving | pausing
        if leaving is not None and bool(leaving.any()):
            self._restore([self._snapshot(~leaving)])

    def wake(self, away: list[Absent]) -> None:
        """Take those that rested back in, in the original order."""
        if away:
            self.resting -= sum(len(group.rows) for group in away)
            self._restore([self._snapshot(torch.ones_like(self.rows, dtype=torch.bool)), *away])
            gone = self._gone[self.rows // self.copies]  # by a copy that did not rest
            if bool(gone.any()):
                self._restore([self._snapshot(~gone)])

    def _snapshot(self, mask: Tensor) -> Absent:
        named = mask.nonzero().squeeze(1)  # found once: every look-up by the mask would search it again

        def of(value: Tensor) -> Tensor:
            return value.index_select(0, named)

        states = [{k: of(v) for k, v in vars(s).items() if isinstance(v, Tensor)} for s in self._states]
        return Absent(of(self.rows), of(self.x), of(self.y), of(self.ids), states)

    def _restore(self, groups: list[Absent]) -> None:
        """Make the live rows those of the groups together, in their original order."""
        self._before_change()
        rows = torch.cat([g.rows for g in groups])
        order = rows.argsort() if len(groups) > 1 else slice(None)

        def join(parts: list[Tensor]) -> Tensor:
            return parts[0] if len(parts) == 1 else torch.cat(parts)[order]

        self.rows = join([g.rows for g in groups])
        self.count = len(self.rows)
        self.x, self.y, self.ids = (join([getattr(g, k) for g in groups]) for k in ("x", "y", "ids"))
        for i, state in enumerate(self._states):
            for key in groups[0].states[i]:
                setattr(state, key, join([g.states[i][key] for g in groups]))
