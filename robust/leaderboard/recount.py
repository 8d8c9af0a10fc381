"""Findings that follow from what a record holds, its verdict table and its attacks, noted again."""

from __future__ import annotations

import pandas as pd

from robust import __version__
from robust.diagnose import NON_FINITE, Finding, review, review_access, review_passes
from robust.diagnose.checks import DETACHED
from robust.families import FAMILIES
from robust.leaderboard.claims import accesses
from robust.leaderboard.layout import plain
from robust.leaderboard.outcome import Outcome
from robust.leaderboard.record import Record
from robust.suites import version_of


def check_review(record: Record, verdicts: pd.DataFrame) -> Outcome:
    """Whether the record names every finding that its attacks and its table, whose rows agree with it, give."""
    named = {finding.check for finding in record.findings}
    try:
        missing = [each for each in recount(record, verdicts) if each.check not in named]
    except (TypeError, ValueError) as error:  # conditions that no suite sets
        return Outcome("review", False, f"no findings follow from whom the attacks were shown: {error}")
    if not missing:
        return Outcome("review", True, "every finding that follows from the attacks and the table is named")
    problem = (
        f"{'; '.join(f'{each.check}: {each.message}' for each in missing)}; the record says nothing of it"
    )
    made_by, stated = record.environment.get("robust"), record.suite.version
    if record.migrated or made_by != __version__ or stated != version_of(record.suite.name):
        version = "no stated version" if stated is None else f"version {stated}"
        reason = f"{problem}, and is of version {plain(made_by)}, with {version} of its suite"
        return Outcome.unverified("review", reason)
    return Outcome("review", False, problem)


def recount(record: Record, verdicts: pd.DataFrame) -> list[Finding]:
    """The findings that an evaluation with this outcome notes, as far as the record holds what they rest on."""
    entries = [
        {**attack.model_dump(), "access": access, "silent": 0}  # of silent ones it says nothing
        for attack, access in zip(record.attacks, accesses(record), strict=True)
    ]
    found = review(entries, record.clean.k, cascade=record.suite.cascade)
    if (lost := int((verdicts["prediction"] < 0).sum())) > 0:
        found.append(NON_FINITE.finding(f"NaN or infinity on {lost} clean samples"))
    if _passes_were_reviewed(record):
        draws = (record.suite.eot or {}).get("samples")
        if "prediction_adv" not in verdicts:  # an older table may show fewer classes, which errs to its side
            verdicts = verdicts.assign(prediction_adv=verdicts["prediction"])
        found += review_passes(verdicts, draws if isinstance(draws, int) and draws > 0 else 1)
        if record.trust != "unreliable":
            found += review_access(verdicts, entries)
    return found


def _passes_were_reviewed(record: Record) -> bool:
    """Whether a whole suite was run in a norm ball, with gradients."""
    detached = any(finding.check == DETACHED.name for finding in record.findings)
    return record.threat.norm not in FAMILIES and not detached
