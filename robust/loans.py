"""What is changed while a model is under test, and put back: several may be, one within another or in threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

_LOCK: Final = threading.RLock()
_BEGUN: Final[list[Loan]] = []  # those that have not ended, in the order in which they began


class Loan:
    """Things that are changed for a while.

    Who ends while somebody who began later has some of them on loan too, in another thread, leaves it to them to put them back:
    else these would go on with a model in training mode, say.
    """

    def __init__(self, things: Iterable[object]) -> None:
        self._things = {*map(id, things)}
        self._undo: list[Callable[[], object]] = []

    def afterwards(self, step: Callable[[], object]) -> None:
        """Do this when the loan ends, before what was noted earlier."""
        self._undo.append(step)

    def end(self) -> None:
        """Put back, or leave it to another."""
        later = _BEGUN[_BEGUN.index(self) + 1 :]
        _BEGUN.remove(self)
        heir = next((loan for loan in later if not self._things.isdisjoint(loan._things)), None)
        if heir is not None:
            heir._undo[:0], heir._things = self._undo, heir._things | self._things
            return
        while self._undo:
            self._undo.pop()()


@contextmanager
def lent(things: Iterable[object], change: Callable[[Loan], None]) -> Iterator[None]:
    """For as long as it is open, things are as `change` makes them, which notes in the loan how to put each back."""
    loan = Loan(things)
    with _LOCK:
        _BEGUN.append(loan)
    try:
        with _LOCK:
            change(loan)
        yield
    finally:
        with _LOCK:
            loan.end()
