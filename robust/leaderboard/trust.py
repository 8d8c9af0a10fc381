"""The trust that a record may be shown with: the one that it states, unless the rest of it says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

from robust.diagnose import CHECKS, Finding, verdict
from robust.leaderboard.schema import FindingInfo
from robust.report import Trust

if TYPE_CHECKING:
    from robust.leaderboard.record import Record

Shown = Literal["trusted", "suspect", "unreliable", "unknown"]
STATED: Final = "trust-as-stated"  # these two stand where the names of checks do
ERRORS: Final = "samples-in-error"


def follows(findings: Sequence[FindingInfo]) -> Trust:
    """The trust that findings give, by the severities that they state."""
    return verdict([Finding(found.check, found.severity, found.message) for found in findings])


def misstated(findings: Sequence[FindingInfo]) -> list[FindingInfo]:
    """Findings of known checks with another severity than the check's."""
    known = (found for found in findings if found.check in CHECKS)
    return [found for found in known if found.severity != CHECKS[found.check].severity]


def objections(record: Record) -> dict[str, str]:
    """Why a record cannot be ranked by the trust that it states: names, each with a sentence."""
    if record.trust == "unreliable":
        return {}
    found = {}
    softened = any(CHECKS[each.check].severity == "unreliable" for each in misstated(record.findings))
    if softened or record.trust != follows(record.findings):
        found[STATED] = f'"{record.trust}" does not follow from the findings'
    if errors := record.statuses.error:
        found[ERRORS] = f"{errors} of {record.data.n} samples ended in an error, and may stand or fall"
    return found


def shown_trust(record: Record) -> Shown:
    """What boards show: the trust that the record states, "unreliable" where there are objections."""
    return "unreliable" if objections(record) else record.trust


def reasons(record: Record) -> list[str]:
    """Names of the checks that fired, and of the objections, sorted."""
    return sorted({finding.check for finding in record.findings} | set(objections(record)))
