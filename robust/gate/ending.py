"""How a check of a gate, or a comparison with a baseline, ends."""

from __future__ import annotations

from typing import Literal

from robust.report import Report
from robust.stats import Outcome

Ending = Outcome | Literal["error"]
"""What the samples say, or that some of them ended in an error, and say nothing."""


def told_of_errors(report: Report) -> str | None:
    """How many samples ended in an error, and the first that went wrong; None where none did."""
    errors = report.statuses["error"]
    if not errors:
        return None
    first = report.failures[0].splitlines()[0] if report.failures else "see the report's findings"
    return f"{errors} samples ended in an error ({first})"
