"""Did a model get worse? Its verdicts against those of a baseline, sample by sample."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from robust.errors import InputError, StoreError
from robust.files import replacing, why, why_unwritten
from robust.gate.ending import Ending, told_of_errors
from robust.report import STATUSES, Report
from robust.stats import check_fraction, mcnemar

SCHEMA_VERSION: Final = 1
_SHOWN: Final = 8  # sample ids in a message
_ROUNDING: Final = 1e-9


class Baseline(BaseModel):
    """What a baseline file holds. Sample ids are listed per status, so that a change reads as one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1]
    robust_accuracy: float
    clean_accuracy: float
    n: int
    threat: dict[str, Any]
    suite: str
    attacks: list[dict[str, Any]]
    seed: int
    data: dict[str, Any]
    model: dict[str, Any]
    versions: dict[str, str]
    verdicts: dict[str, list[int]]
    eot: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        """Each sample is there once: one that is missing, after a merge say, would be held against nothing."""
        ids = [i for listed in self.verdicts.values() for i in listed]
        if strange := set(self.verdicts) - set(STATUSES):
            raise ValueError(f"verdicts: expected {', '.join(STATUSES)}, got {min(strange)!r}")
        if not len(ids) == len(set(ids)) == self.n:
            raise ValueError(f"verdicts: {len(set(ids))} samples in {len(ids)} places, expected {self.n}")
        stand = len(self.verdicts.get("survived", []))
        if not (self.n and abs(self.robust_accuracy - stand / self.n) <= _ROUNDING):  # NaN is none either
            raise ValueError(f"robust_accuracy: {stand} of {self.n} survived, got {self.robust_accuracy}")
        return self

    @classmethod
    def of(cls, report: Report) -> Self:
        """The part of a report that later ones are held against.

        Raises:
            InputError: samples ended in an error, the verdict is unreliable, or a gate stopped the suite early.
        """
        if report.statuses["error"]:
            raise InputError(
                f"baseline: {report.statuses['error']} samples ended in an error; "
                "find out why before anything is compared with this"
            )
        if report.trust == "unreliable":
            raise InputError(
                f"baseline: the verdict is unreliable ({_named(report)}); nothing can be held against it"
            )
        if report.stopped:
            raise InputError("baseline: the gate stopped this suite early; use the report of evaluate()")
        table = report.verdicts
        return cls(
            schema_version=SCHEMA_VERSION,
            robust_accuracy=report.robust_accuracy,
            clean_accuracy=report.clean_accuracy,
            n=report.n,
            threat=report.to_dict()["threat"],
            suite=report.suite,
            attacks=_attacks(report),
            seed=report.seed,
            data=report.data,
            model=report.model,
            versions=report.versions,
            eot=report.eot,
            verdicts={
                status: sorted(int(i) for i in table["sample_id"][table["status"] == status])
                for status in STATUSES
                if status != "error"
            },
        )

    def save(self, path: Path) -> None:
        """Write it at once or not at all, a line per key and status.

        Raises:
            StoreError: the file cannot be written.
        """
        fields = self.model_dump()
        verdicts = fields.pop("verdicts")
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items()]
        listed = ",\n".join(f"    {json.dumps(key)}: {json.dumps(ids)}" for key, ids in verdicts.items())
        text = "{\n" + ",\n".join([*lines, f'  "verdicts": {{\n{listed}\n  }}']) + "\n}\n"
        try:
            with replacing(path) as partial:
                partial.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StoreError(f"baseline {path}: cannot be written ({why_unwritten(error)})") from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote.

        Raises:
            StoreError: missing, damaged, or of another schema.
        """
        renew = "write it anew with --robust-update-baseline"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StoreError(
                f"baseline {path}: no such file; write it with --robust-update-baseline and commit it"
            ) from None
        except (OSError, ValueError) as error:
            raise StoreError(f"baseline {path}: cannot be read ({why(error)}); {renew}") from error
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise StoreError(
                f"baseline {path}: schema version {version}, this program reads {SCHEMA_VERSION}; "
                f"upgrade robust-harness, or {renew}"
            )
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise StoreError(f"baseline {path}: damaged at {where} ({first['msg']}); {renew}") from error


@dataclass(frozen=True)
class Regression:
    """A paired comparison with a baseline.

    Attributes:
        outcome: "pass", "fail", "undecided", or "error" where samples ended in one.
        reason: why, in a sentence.
        lost, won: ids of samples that survived then and not now, and the reverse.
        drop: (lost - won) / n, a fraction of the samples compared.
        p: exact two-sided McNemar test of equal robust accuracy.
        n: samples compared.
        before, after: robust accuracies on these.
        same_model: the weights are those of the baseline.
    """

    outcome: Ending
    reason: str
    lost: list[int]
    won: list[int]
    drop: float
    p: float
    n: int
    before: float
    after: float
    same_model: bool

    def lines(self) -> list[str]:
        """The comparison for a message."""
        lines = [
            f"robust accuracy {self.before:.1%} -> {self.after:.1%} on the same {self.n} samples; "
            f"exact McNemar p = {self.p:.3g}",
            f"lost {_listed(self.lost)}",
            f"won {_listed(self.won)}",
        ]
        if self.same_model and (self.lost or self.won):
            lines.append(
                "the model's weights are those of the baseline: its code, device or libraries changed"
            )
        return lines


def compare(
    report: Report, baseline: Baseline, *, max_drop: float = 0.0, confidence: float = 0.95, name: str = ""
) -> Regression:
    """Hold a report against a baseline of the same data, threat and suite, sample by sample.

    Fails where the robust accuracy fell by more than `max_drop` and McNemar's exact test tells the two
    models apart; a larger drop that could be chance is undecided.

    Args:
        max_drop: the fall of robust accuracy that is accepted, a fraction in [0, 1).
        confidence: 1 - the p-value under which the models count as different.
        name: of the baseline, for messages.

    Raises:
        InputError: another data set, threat, suite or seed, or no sample in common: says which.
    """
    if isinstance(max_drop, bool) or not isinstance(max_drop, int | float) or not 0 <= max_drop < 1:
        raise InputError(f"max_drop: expected a fraction in [0, 1) such as 0.01, got {max_drop!r}")
    check_fraction("confidence", confidence, "0.95")
    _refuse_unlike(report, baseline, name)
    table = report.verdicts
    now = dict(zip(table["sample_id"].astype(int), table["status"], strict=True))
    then = {i: status for status, ids in baseline.verdicts.items() for i in ids}
    both = sorted(now.keys() & then.keys())
    if not both:
        raise InputError(f"baseline {name}: has none of the {len(now)} samples; use the same data and seed")
    lost = [i for i in both if then[i] == "survived" != now[i]]
    won = [i for i in both if now[i] == "survived" != then[i]]
    drop, p = (len(lost) - len(won)) / len(both), mcnemar(len(lost), len(won))
    outcome, reason = _judge(report, drop, p, max_drop, confidence)
    return Regression(
        outcome=outcome,
        reason=reason,
        lost=lost,
        won=won,
        drop=drop,
        p=p,
        n=len(both),
        before=sum(then[i] == "survived" for i in both) / len(both),
        after=sum(now[i] == "survived" for i in both) / len(both),
        same_model=report.model["sha256"] == baseline.model.get("sha256"),
    )


def _judge(report: Report, drop: float, p: float, max_drop: float, confidence: float) -> tuple[Ending, str]:
    points, accepted = f"{100 * drop:.3g} points", f"{100 * max_drop:.3g} accepted"
    if errors := told_of_errors(report):
        return "error", errors
    if drop <= max_drop + 1e-12 and report.trust == "unreliable":
        return "undecided", f"robust accuracy held, but the verdict is unreliable ({_named(report)})"
    if drop <= max_drop + 1e-12:
        return "pass", f"robust accuracy fell by {points}, {accepted}" if drop > 0 else "robust accuracy held"
    if p < 1 - confidence:
        return "fail", f"robust accuracy fell by {points}, {accepted}"
    return "undecided", f"robust accuracy fell by {points}, {accepted}, which could be chance"


def _named(report: Report) -> str:
    return ", ".join(finding["check"] for finding in report.findings)


def _refuse_unlike(report: Report, baseline: Baseline, name: str) -> None:
    threat = report.to_dict()["threat"]
    pairs = {
        "data": (_source(baseline.data), _source(report.data)),
        "threat": (_threat(baseline.threat), _threat(threat)),
        "suite": (baseline.suite, report.suite),
        "attacks of the suite": (baseline.attacks, _attacks(report)),
        "seed": (baseline.seed, report.seed),
        "draws": (_draws(baseline.eot), _draws(report.eot)),
    }
    unlike = [key for key, (then, now) in pairs.items() if then != now]
    if not unlike:
        return
    if unlike[0] == "suite":
        unlike = [key for key in unlike if key != "attacks of the suite"]
    said = [
        f"{key} ({pairs[key][0]} there, {pairs[key][1]} here)"
        if key != "attacks of the suite"
        else f"{key} (as of robust-harness {baseline.versions.get('robust')} there, {report.versions['robust']} here)"
        for key in unlike
    ]
    raise InputError(
        f"baseline {name}: made with other {', other '.join(said)}; compare like with like, "
        "or write a new one with --robust-update-baseline"
    )


def _attacks(report: Report) -> list[dict[str, Any]]:
    """What was run, as JSON gives it back."""
    told = [{"label": entry["label"], "parameters": entry["parameters"]} for entry in report.attacks]
    attacks: list[dict[str, Any]] = json.loads(json.dumps(told))
    return attacks


def _source(data: dict[str, Any]) -> str:
    """The hash of all the data that samples were drawn from, shortened."""
    return f"sha256 {str(data.get('population_sha256', data.get('sha256')))[:12]}"


def _draws(eot: dict[str, Any] | None) -> str:
    return "one each" if eot is None else f"{eot.get('samples')} each by {eot.get('vote')}"


def _threat(threat: dict[str, Any]) -> str:
    return f"{threat.get('norm')}:{threat.get('eps')} in {threat.get('bounds')}"


def _listed(ids: list[int]) -> str:
    shown = ", ".join(map(str, ids[:_SHOWN])) + (", ..." if len(ids) > _SHOWN else "")
    return f"{len(ids)} samples" + (f": {shown}" if ids else "")
