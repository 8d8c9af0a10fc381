"""Re-checks a record without believing it: hashes, every derived number, saved examples, a fresh attack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pandas as pd
from pydantic import BaseModel, ValidationError

from robust.errors import StoreError
from robust.leaderboard.artefacts import read_verdicts
from robust.leaderboard.claims import (
    check_findings,
    check_name,
    check_suite,
    check_threat,
    check_trust,
    threat_of,
)
from robust.leaderboard.derive import derive
from robust.leaderboard.outcome import Outcome
from robust.leaderboard.record import Record
from robust.leaderboard.recount import check_review
from robust.leaderboard.reforward import check_data, check_examples, check_groups, check_model, find_data
from robust.leaderboard.rerun import check_rerun
from robust.leaderboard.store import Store
from robust.target import Target

_DIGEST: Final = 64  # digits of a sha256
_ROUNDING: Final = 1e-6


def verify(
    store: Store,
    name: str,
    *,
    target: Target | None = None,
    data: str | None = None,
    rerun: int = 0,
    draw: int = 0,
) -> Iterator[Outcome]:
    """Check a record against its files, its numbers against the verdict table, and both against the model.

    Args:
        store, name: from `Store.locate`.
        target: the model; without one nothing is forwarded.
        data: SPEC of the samples; by default those that the record names, where they can be had.
        rerun: attack so many random samples again (needs `target`).
        draw: seed of their choice.

    Yields:
        A line per check. What would rest on a failed one is left out.
    """
    try:
        record = store.read(name)
    except StoreError as error:
        yield Outcome("record", False, str(error))
        return
    yield Outcome("record", True, f"{record.short_id}: text, checksum and file name agree")
    try:
        content = store.verdicts_file(record)
        verdicts = read_verdicts(content, record.data.n)
    except StoreError as error:
        yield Outcome("verdicts", False, str(error))
        return
    yield Outcome("verdicts", True, f"{len(content)} bytes of {len(verdicts)} rows, as hashed")
    problems = list(row_problems(record, verdicts))
    yield from (Outcome("rows", False, problem) for problem in problems)
    if problems:
        return
    yield Outcome("rows", True, "statuses, predictions, attacks and distances agree with each other")
    yield from _numbers(record, verdicts)
    yield check_trust(record)
    yield check_suite(record)
    yield check_threat(record)
    yield check_name(record)
    samples, reason = find_data(record, data)
    asked = data is not None or target is not None
    yield (same := check_data(record, verdicts, samples, reason, asked=asked))
    if samples is not None and same.ok:
        yield from check_groups(verdicts, samples)
    yield check_review(record, verdicts)
    yield from check_examples(store, record, verdicts, samples, target)
    yield from check_model(record, verdicts, samples, target)
    yield from check_findings(record, samples, target)
    if rerun:
        yield from check_rerun(record, verdicts, samples, target, rerun, draw)


def row_problems(record: Record, verdicts: pd.DataFrame) -> Iterator[str]:
    """What is wrong with single rows of a verdict table."""
    status, attack, distance = verdicts["status"], verdicts["attack"], verdicts["distance"].to_numpy(float)
    right, broken = verdicts["prediction"] == verdicts["label"], status == "broken"
    farthest = threat_of(record).farthest()
    rules = {
        "a sample id that occurs twice": verdicts["sample_id"].duplicated(),
        "misclassified though the prediction is the label": (status == "misclassified") & right,
        "broken or survived though the clean prediction is wrong": status.isin(["broken", "survived"])
        & ~right,
        "broken by no attack of the suite": broken & ~attack.isin([entry.label for entry in record.attacks]),
        "broken outside the ball": broken & ~((distance >= 0) & (distance <= farthest)),
        "not broken, yet with an attack or a distance": ~broken & ((attack != "") | ~np.isnan(distance)),
        "no class, yet no error": (verdicts["prediction"] < 0) & (status != "error"),
        "negative passes": (verdicts["forwards"] < 0) | (verdicts["backwards"] < 0),
    }
    if "prediction_adv" in verdicts:
        rules["broken though the prediction stayed the label"] = broken & (
            verdicts["prediction_adv"] == verdicts["label"]
        )
    elif not record.migrated:
        yield "no predictions under attack (column prediction_adv), which no table of this schema leaves out"
    if "nearest" in verdicts:
        nearest = verdicts["nearest"].to_numpy(float)
        rules["a nearest point at a negative distance"] = nearest < 0
        rules["broken, and the nearest point farther than that"] = broken & ~(nearest <= distance)
        rules["survived, and the nearest point within the ball"] = (status == "survived") & (
            nearest <= threat_of(record).radius * (1 - _ROUNDING)
        )
    elif record.suite.minimize:
        yield "no nearest points (column nearest), though the suite minimized"
    for rule, wrong in rules.items():
        if wrong.any():
            yield f"{rule}: {int(wrong.sum())} rows, first sample {verdicts['sample_id'][wrong].iloc[0]}"


def _numbers(record: Record, verdicts: pd.DataFrame) -> Iterator[Outcome]:
    """A line per part of the record that follows from the table."""
    names = {group.label: group.name for group in record.classes if group.label is not None}
    listed = [names.get(label, str(label)) for label in range(max(names, default=-1) + 1)]
    try:
        parts = derive(verdicts, listed)
    except (ValidationError, ValueError, TypeError) as error:
        yield Outcome("numbers", False, f"cannot be counted from this table: {error}")
        return
    for path, counted in parts.items():
        said: Any = record
        for key in path.split("."):
            said = getattr(said, key)
        yield _compare(path, said, counted, migrated=record.migrated)
    yield _attacks(record, verdicts)
    yield _passes(record, verdicts)


def _compare(path: str, said: Any, counted: Any, *, migrated: bool) -> Outcome:
    if migrated and said in (None, []) and counted not in (None, []):
        return Outcome(path, None, "the record does not say")
    said, counted = (_plain(value) for value in (said, counted))
    if _same(said, counted):
        shown = f"{len(counted)} entries" if isinstance(counted, list) else _short(counted)
        return Outcome(path, True, shown)
    return Outcome(path, False, f"the record says {_short(said)}, the verdict table gives {_short(counted)}")


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _same(a: Any, b: Any) -> bool:
    """Equal up to the rounding of another release of scipy."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) or isinstance(b, float):
        return abs(a - b) <= 1e-9
    return bool(a == b)


def _short(value: Any) -> str:
    if isinstance(value, dict) and {"k", "n", "low", "high"} <= value.keys():
        return f"{value['k']} of {value['n']} [{value['low']:.4f}, {value['high']:.4f}]"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    if isinstance(value, str) and len(value) == _DIGEST:
        return f"{value[:16]}..."
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text if len(text) <= 160 else f"{text[:157]}..."


def _attacks(record: Record, verdicts: pd.DataFrame) -> Outcome:
    """Each attack's counts against each other, and against the samples that the table says it broke first."""
    for problem in _miscounts(record, verdicts):
        return Outcome("attacks", False, problem)
    return Outcome("attacks", True, f"{len(record.attacks)} attacks, their counts fit the table")


def _miscounts(record: Record, verdicts: pd.DataFrame) -> Iterator[str]:
    first, cascade = verdicts["attack"].value_counts(), record.suite.cascade
    claimed: dict[str, int] = {}
    for attack in record.attacks:
        claimed[attack.label] = claimed.get(attack.label, 0) + attack.broke
    for label, broke in claimed.items():
        found = int(first.get(label, 0))
        if found > broke or (cascade and found != broke):
            yield f"{label}: the record says it broke {broke}, the table {found}"
    left = record.clean.k
    for attack in record.attacks:
        if attack.attacked > left:
            yield f"{attack.label}: tried {attack.attacked} samples of {left}"
        if attack.attacked != (ended := attack.broke + attack.survived + attack.errors):
            yield f"{attack.label}: tried {attack.attacked} samples, {ended} are broken, survived or in error"
        left -= attack.broke if cascade else 0
    lost, in_error = sum(attack.errors for attack in record.attacks), record.statuses.error
    if cascade and not record.suite.minimize and lost > in_error:  # else broken ones may be lost later
        yield f"the attacks say that {lost} samples ended in an error, the statuses {in_error}"


def _passes(record: Record, verdicts: pd.DataFrame) -> Outcome:
    """Passes per sample and of the checks against the totals; those of the attacks against the samples'."""
    cost, checks = record.cost, record.cost.checks
    forwards, backwards = int(verdicts["forwards"].sum()), int(verdicts["backwards"].sum())
    if record.migrated and cost.forwards >= forwards and cost.backwards >= backwards:
        return Outcome("passes", None, "a record of schema 1 does not say what its checks cost")
    total = (forwards + checks.forwards, backwards + checks.backwards)
    if total != (cost.forwards, cost.backwards):
        return Outcome(
            "passes",
            False,
            f"the record says {cost.forwards} + {cost.backwards}, the verdict table with the checks gives "
            f"{total[0]} + {total[1]}",
        )
    by_attacks = len(verdicts) + sum(attack.forwards for attack in record.attacks)
    if by_attacks > forwards or sum(attack.backwards for attack in record.attacks) > backwards:
        return Outcome("passes", False, "the attacks claim more passes than the samples have")
    return Outcome("passes", True, f"{cost.forwards} forward, {cost.backwards} backward")
