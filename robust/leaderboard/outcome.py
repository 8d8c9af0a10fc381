"""The lines of a verification."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Final

_WIDTH: Final = 80
_INDENT: Final = 20


@dataclass(frozen=True)
class Outcome:
    """What a check found, and on what grounds.

    `ok` is None where the check could not be made, and the message says what it needs. If it was `asked` for, the
    verification is incomplete.
    """

    check: str
    ok: bool | None
    message: str
    asked: bool = False

    @staticmethod
    def unverified(check: str, message: str) -> Outcome:
        """A check that was asked for and could not be made."""
        return Outcome(check, None, f"not verified: {message}", asked=True)

    def __str__(self) -> str:
        """For a terminal of 80 columns; a name longer than its column has a line of its own."""
        word = {True: "ok", False: "FAIL", None: "?" if self.asked else "-"}[self.ok]
        head = f"{word:4}  {self.check:<12}  "
        above, beside = (f"{head.rstrip()}\n", " " * _INDENT) if len(head) > _INDENT else ("", head)
        return above + textwrap.fill(
            self.message,
            _WIDTH,
            initial_indent=beside,
            subsequent_indent=" " * _INDENT,
            break_on_hyphens=False,
        )
