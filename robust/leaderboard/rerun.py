"""A fresh attack on some of a record's samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import numpy as np
import pandas as pd
import torch

from robust.errors import RobustError
from robust.leaderboard.claims import attacks_of, stages_of, suite_of, threat_of
from robust.leaderboard.drawn import Answers, Draws, survived, weigh
from robust.leaderboard.layout import plain, suite_text
from robust.leaderboard.outcome import Outcome
from robust.leaderboard.record import Record
from robust.leaderboard.schema import as_json
from robust.report import Report
from robust.sources import Samples
from robust.target import Target

_FARTHER: Final = 1.1  # times as far as a fresh search finds
_FEW: Final = 0.1  # of the samples
_LONGER: Final = 1.5  # times the passes that a fresh search takes


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
    suite = _suite(record)
    if suite is None:
        reason = f"the record's suite, {suite_text(record.suite)}, is not the one that is installed"
        yield Outcome.unverified("rerun", reason)
        return
    if stranger := _to_load(record, suite):
        reason = f"an attack of the record loads the model {plain(stranger)}, and a model that a record names is not loaded"
        yield Outcome.unverified("rerun", reason)
        return
    rows = np.sort(np.random.default_rng(draw).permutation(len(samples))[:count])
    chosen = samples.take(torch.from_numpy(rows))

    def attack(*, cascade: bool) -> Report:
        return evaluate(
            target, chosen, threat=threat, suite=suite, seed=record.seed, cascade=cascade, minimize=record.suite.minimize
        )  # fmt: skip

    then = verdicts["status"].to_numpy(dtype=object)[rows]
    for cascade in _cascades(record):
        try:
            again = attack(cascade=cascade)
        except RobustError as error:
            yield Outcome("rerun", False, f"cannot be attacked again: {error}")
            return
        now = _statuses(again)
        off = np.flatnonzero(then != now)
        if not len(off):
            then_, now_ = verdicts.iloc[rows], again.verdicts
            if problem := _farther(record, then_, now_) or _longer(record, then_, now_):
                yield Draws.of(record, samples, target).excuse("rerun", problem, lambda: _unsure(problem))
                return
            done = f"{len(rows)} samples (draw {draw}) attacked again, each with the same end"
            yield Outcome("rerun", True, done)
            return
    yield Draws.of(record, samples, target).excuse(
        "rerun",
        f"{len(off)} of {len(rows)} samples end otherwise (draw {draw}), first sample {chosen.ids[off[0]]}: "
        f"{then[off[0]]} in the record, {now[off[0]]} now",
        lambda: weigh("rerun", then, now, _statuses(attack(cascade=cascade)), survived, "are robust"),
    )


def _farther(record: Record, then: pd.DataFrame, now: pd.DataFrame) -> str:
    """What is wrong with the nearest points that a record claims, of which its curve is drawn; nothing where none were searched.

    Other hardware ends a little elsewhere, and a few searches far from there: more than a tenth of the samples do not.
    """
    if not record.suite.minimize or "nearest" not in then:
        return ""
    said, found = then["nearest"].to_numpy(float), now["nearest"].to_numpy(float)
    farther = np.flatnonzero(np.isfinite(found) & ~(said <= _FARTHER * found))
    if len(farther) <= len(then) * _FEW:
        return ""
    first = farther[0]
    return (
        f"{len(farther)} of {len(then)} samples have nearer adversarial points than the record says, first sample "
        f"{then['sample_id'].iloc[first]}: {said[first]:.4g} in the record, {found[first]:.4g} now"
    )


def _longer(record: Record, then: pd.DataFrame, now: pd.DataFrame) -> str:
    """What is wrong with the passes that a record claims for samples that stand, on which `short-search` rests.

    The same search takes as many again, up to what rounding leads elsewhere. Attacks of other libraries share theirs out
    over a batch.
    """
    if any(":" in entry.name for entry in record.attacks):
        return ""
    stands = (then["status"] == "survived").to_numpy()
    said, found = ((table["forwards"] + table["backwards"]).to_numpy()[stands] for table in (then, now))
    longer = np.flatnonzero(said > _LONGER * found)
    if len(longer) < max(2, len(said) * _FEW):
        return ""
    first = longer[0]
    return (
        f"{len(longer)} of {len(said)} samples that stand took fewer passes than the record says, first sample "
        f"{then['sample_id'].to_numpy()[stands][first]}: {said[first]} in the record, {found[first]} now"
    )


def _unsure(problem: str) -> Outcome:
    return Outcome.unverified("rerun", f"the model draws at random, and in this draw {problem}")


def _cascades(record: Record) -> list[bool]:
    """How the attacks may have been run: where they minimized, all saw every sample, and the record does not say."""
    return [True, False] if record.suite.minimize else [record.suite.cascade]


def _statuses(report: Report) -> Answers:
    return report.verdicts["status"].to_numpy(dtype=object)


def _suite(record: Record) -> Any:
    """What to hand to `evaluate`: the suite by its name if it is still the same, else its attacks; or None."""
    recorded = [[entry.name, entry.parameters] for entry in record.attacks]
    choices: list[Any] = [suite_of(record)]
    if not any(_selective(entry.selection) for entry in record.attacks):
        choices.append(attacks_of(record))
    for choice in choices:
        with suppress(RobustError):
            _, stages = stages_of(record, choice)
            if as_json([[stage.attack.name, stage.attack.parameters] for stage in stages]) == recorded:
                return choice
    return None


def _to_load(record: Record, suite: Any) -> str | None:
    """The SPEC of a model that an attack would load, which may run a file or fetch one; built-in ones do neither."""
    specs = (spec for stage in stages_of(record, suite)[1] for spec in stage.attack.loads)
    return next((spec for spec in specs if spec.partition(":")[0] != "builtin"), None)


def _selective(selection: dict[str, Any]) -> bool:
    """Whether a stage was shown only some samples."""
    return any(value not in (None, False) for key, value in selection.items() if key != "share")
