"""The report's entry of an attack: what it was, whom it saw, what it did and cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from robust.suites import Stage

_COUNTS: Final = ("broke", "survived", "rejected", "silent", "unstarted", "errors", "forwards", "backwards")


def new_entry(stage: Stage, attacked: int) -> dict[str, Any]:
    """An entry to count in, for a stage that sees so many samples."""
    attack = stage.attack
    return {
        "name": attack.name,
        "label": attack.label,
        "parameters": attack.parameters,
        "access": attack.access,
        "source": attack.source,
        "batch_dependent": attack.batch_dependent,
        "notes": list(attack.notes),
        "minimum_norm": attack.minimum_norm,
        "selection": stage.selection,
        "attacked": attacked,
        **dict.fromkeys(_COUNTS, 0),
        "seconds": 0.0,
    }


def total(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One attack's entry over several sets of samples."""
    sums = {key: sum(entry[key] for entry in entries) for key in ("attacked", *_COUNTS, "seconds")}
    return {**entries[0], **sums}
