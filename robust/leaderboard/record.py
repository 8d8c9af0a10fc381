"""A leaderboard entry: typed, versioned, consistent with itself, and addressed by its content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, Self

from pydantic import ValidationError, model_validator

from robust.errors import InputError, StoreError
from robust.leaderboard.artefacts import sha256, verdicts_bytes
from robust.leaderboard.schema import (
    Artefacts,
    AttackInfo,
    Cost,
    DataInfo,
    DefenseInfo,
    FindingInfo,
    ModelInfo,
    Name,
    Part,
    Rate,
    Statuses,
    SuiteInfo,
    Text,
    ThreatInfo,
    Time,
    canonical,
)
from robust.report import Report

SCHEMA_VERSION: Final = 1


class Record(Part):
    """A model x defense pair under a threat, a suite and a seed, with what was found.

    `trust` is "unknown" where the number was not measured here. Fields that are not explained here are
    in the parts. A record that contradicts itself cannot be made: pydantic's ValidationError.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model: ModelInfo
    defense: DefenseInfo
    data: DataInfo
    threat: ThreatInfo
    suite: SuiteInfo
    seed: int
    clean: Rate
    robust: Rate
    statuses: Statuses
    attacks: list[AttackInfo]
    cost: Cost
    trust: Literal["trusted", "suspect", "unreliable", "unknown"]
    findings: list[FindingInfo]
    artefacts: Artefacts
    environment: dict[Name, Name]
    created: Time
    command: Text | None = None

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        s, n = self.statuses, self.data.n
        if s.misclassified + s.broken + s.survived + s.error != n or {self.clean.n, self.robust.n} != {n}:
            raise ValueError(f"statuses do not add up to the {n} samples")
        if self.robust.k != s.survived or not s.survived + s.broken <= self.clean.k <= n - s.misclassified:
            raise ValueError("clean and robust accuracy do not follow from the statuses")
        for attack in self.attacks:
            if attack.attacked > self.clean.k or (attack.attacked and attack.survived < self.robust.k):
                raise ValueError(f"attack {attack.label}: its counts contradict the accuracies")
        return self

    @property
    def id(self) -> str:
        """Content address, 64 hex digits: the same for a run repeated with the same outcome.

        Leaves out dates, seconds, device, versions and the command.
        """
        content = _without(self.model_dump(mode="json"), "created", "command", "environment")
        content["cost"] = _without(content["cost"], "seconds", "device")
        content["attacks"] = [_without(attack, "seconds") for attack in content["attacks"]]
        return sha256(canonical(content).encode())

    @property
    def short_id(self) -> str:
        """The first 16 digits of `id`, to show."""
        return self.id[:16]

    def dumps(self) -> str:
        """The text of the record's file: content, id, and a checksum over all of the content."""
        content = self.model_dump(mode="json")
        whole = {"id": self.id, "checksum": sha256(canonical(content).encode()), "record": content}
        return json.dumps(whole, indent=1, allow_nan=False) + "\n"

    @staticmethod
    def loads(text: str, where: str = "record") -> Record:
        """Read a record's file; every character must be as `dumps` wrote it (line ends may be CRLF).

        Args:
            text: content of the file.
            where: name of the file, for messages.

        Raises:
            StoreError: malformed, of a newer schema, inconsistent, or altered since it was written.
        """
        try:
            content = json.loads(text)["record"]
            version = content["schema_version"]
            if version != SCHEMA_VERSION:
                raise StoreError(
                    f"{where}: schema version {version!r}, this program reads {SCHEMA_VERSION}; "
                    "upgrade robust-harness"
                )
            record = Record.model_validate(content)
            honest = record.dumps()
        except ValidationError as error:
            raise StoreError(f"{where}: {_first_problem(error)}; it was altered or damaged") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(f"{where}: not a record: {type(error).__name__}: {error}") from error
        if text.replace("\r\n", "\n") != honest:
            raise StoreError(
                f"{where}: the content does not match its id and checksum; it was altered or damaged, "
                "restore it or run the evaluation again"
            )
        return record

    @staticmethod
    def from_report(
        report: Report,
        *,
        name: str,
        defense: Mapping[str, Any],
        command: str | None = None,
        examples: bytes | None = None,
    ) -> Record:
        """The record of an evaluation.

        Args:
            report: what `robust.evaluate` returned.
            name: of the model, to show.
            defense: {"name", "parameters", "trained_threat"}.
            command: that made the report.
            examples: `examples_bytes` of the adversarial examples, to be stored with the record.

        Raises:
            InputError: something that a record cannot hold, such as a parameter that is not finite.
        """
        try:
            return Record.model_validate(_content(report, name, defense, command, examples))
        except ValidationError as error:
            raise InputError(f"record: cannot be made of this report: {_first_problem(error)}") from error


def _content(
    report: Report, name: str, defense: Mapping[str, Any], command: str | None, examples: bytes | None
) -> dict[str, Any]:
    threat, statuses, model = report.threat, report.statuses, report.model
    return {
        "model": {
            "name": name,
            "weights_sha256": model["sha256"],
            **{key: model[key] for key in ("spec", "architecture", "parameters")},
        },
        "defense": dict(defense),
        "data": {**report.data, "n": report.n},
        "threat": {"norm": threat.norm, "eps": threat.eps, "radius": threat.radius, "bounds": threat.bounds},
        "suite": {"name": report.suite, "cascade": report.cascade},
        "seed": report.seed,
        "clean": Rate.of(report.clean_correct, report.n),
        "robust": Rate.of(statuses["survived"], report.n),
        "statuses": statuses,
        "attacks": [{key: entry[key] for key in AttackInfo.model_fields} for entry in report.attacks],
        "cost": {key: getattr(report, key) for key in Cost.model_fields},
        "trust": report.trust,
        "findings": report.findings,
        "artefacts": {
            "verdicts_sha256": sha256(verdicts_bytes(report.verdicts)),
            "examples_sha256": None if examples is None else sha256(examples),
        },
        "environment": report.versions,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }


def _without(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else str(first["msg"])
