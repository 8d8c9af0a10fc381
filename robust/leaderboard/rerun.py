"""A fresh attack on some of a record's samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import torch

from robust.errors import RobustError
from robust.leaderboard.claims import threat_of
from robust.leaderboard.drawn import Answers, Draws, survived, weigh
from robust.leaderboard.layout import plain, suite_text
from robust.leaderboard.outcome import Outcome
from robust.leaderboard.record import Record
from robust.leaderboard.schema import as_json
from robust.report import Report
from robust.sources import Samples
from robust.suites import resolve
from robust.target import Target
from robust.threat import Threat


def check_rerun(
    record: Record,
    verdicts: pd.DataFrame,
    samples: Samples | None,
    target: Target | None,
    count: int,
    draw: int,
) -> Iterator[Outcome]:
    """Attacks some samples again, drawn with the seed `draw`: each must meet the same end."""
    from robust.evaluation import evaluate

    if target is None or samples is None or samples.sha256 != record.data.sha256:
        yield Outcome.unverified("rerun", "needs the model and the samples")
        return
    threat = threat_of(record)
    stages = _suite(record, threat)
    if stages is None:
        reason = f"the record's suite, {suite_text(record.suite)}, is not the one that is installed"
        yield Outcome.unverified("rerun", reason)
        return
    if stranger := _to_load(stages, threat):
        reason = f"an attack of the record loads the model {plain(stranger)}, and a model that a record names is not loaded"
        yield Outcome.unverified("rerun", reason)
        return
    rows = np.sort(np.random.default_rng(draw).permutation(len(samples))[:count])
    chosen = samples.take(torch.from_numpy(rows))

    def attack() -> Report:
        return evaluate(
            target, chosen, threat=threat, suite=stages, seed=record.seed, cascade=record.suite.cascade
        )

    report = attack()
    then, now = verdicts["status"].to_numpy(dtype=object)[rows], _statuses(report)
    off = np.flatnonzero(then != now)
    if len(off):
        yield Draws.of(record, samples, target).excuse(
            "rerun",
            f"{len(off)} of {len(rows)} samples end otherwise (draw {draw}), first sample {chosen.ids[off[0]]}: "
            f"{then[off[0]]} in the record, {now[off[0]]} now",
            lambda: weigh("rerun", then, now, _statuses(attack()), survived, "are robust"),
        )
    else:
        done = f"{len(rows)} samples (draw {draw}) attacked again, each with the same end"
        yield Outcome("rerun", True, done)


def _statuses(report: Report) -> Answers:
    return report.verdicts["status"].to_numpy(dtype=object)


def _suite(record: Record, threat: Threat) -> Any:
    """What to hand to `evaluate`: the suite by its name if it is still the same, else its attacks; or None."""
    recorded = [[entry.name, entry.parameters] for entry in record.attacks]
    choices: list[Any] = [record.suite.name]
    if not any(_selective(entry.selection) for entry in record.attacks):
        choices.append([{"name": entry.name, **entry.parameters} for entry in record.attacks])
    for choice in choices:
        with suppress(RobustError):
            _, stages = resolve(choice, threat)
            if as_json([[stage.attack.name, stage.attack.parameters] for stage in stages]) == recorded:
                return choice
    return None


def _to_load(suite: Any, threat: Threat) -> str | None:
    """The SPEC of a model that an attack would load, which may run a file or fetch one; built-in ones do neither."""
    specs = (spec for stage in resolve(suite, threat)[1] for spec in stage.attack.loads)
    return next((spec for spec in specs if spec.partition(":")[0] != "builtin"), None)


def _selective(selection: dict[str, Any]) -> bool:
    """Whether a stage was shown only some samples."""
    return any(value not in (None, False) for key, value in selection.items() if key != "share")
