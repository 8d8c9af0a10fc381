"""What each version of a suite has stood for, so that records of older ones can still be held to it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib.resources import files
from typing import Final

from robust.leaderboard.artefacts import sha256
from robust.leaderboard.schema import AttackInfo, canonical


def fingerprint(attacks: Sequence[AttackInfo]) -> str:
    """Hash of a suite's attacks as a record lists them: names, labels, parameters and whom each is shown."""
    said = [[entry.name, entry.label, entry.parameters, entry.selection] for entry in attacks]
    return sha256(canonical(said).encode())[:32]


def _read() -> dict[tuple[str, int], dict[str, str]]:
    found: dict[tuple[str, int], dict[str, str]] = {}
    lines = (files(__package__) / "suite_history.csv").read_text(encoding="ascii").splitlines()
    for row in csv.DictReader(lines):
        found.setdefault((row["suite"], int(row["version"])), {})[row["norm"]] = row["fingerprint"]
    return found


HISTORY: Final = _read()
"""(suite, version) -> norm -> fingerprint. To the file lines are added; none is changed: records of them are about."""
