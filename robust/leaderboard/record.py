"""A leaderboard entry: typed, versioned, consistent with itself, and addressed by its content."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, model_validator
from pydantic_core import to_json

from robust.errors import InputError, StoreError
from robust.leaderboard.artefacts import sha256, verdicts_bytes
from robust.leaderboard.derive import derive
from robust.leaderboard.migrate import OLDEST, migrate
from robust.leaderboard.schema import (
    ACCESS,
    URL_PATTERN,
    Artefacts,
    AttackInfo,
    Checks,
    Cost,
    DataInfo,
    DefenseInfo,
    Fairness,
    FindingInfo,
    Group,
    ModelInfo,
    Name,
    Paper,
    Part,
    Rate,
    Statuses,
    SuiteInfo,
    Text,
    ThreatInfo,
    Time,
    canonical,
    unwrapped,
)
from robust.leaderboard.trust import follows
from robust.report import Report

SCHEMA_VERSION: Final = 2
_FILED_AS: Final = "schema"  # key of the validation context: the schema version that the file has


class Record(Part):
    """A model x defense pair under a threat, a suite and a seed, with what was found.

    `trust` is "unknown" where the number was not measured here. Fields that are not explained here are
    in the parts. A record that contradicts itself cannot be made: pydantic's ValidationError.
    `classes`, `groups` and `fairness` follow from the verdict table, as clean, robust and statuses do. Only a record
    of an older schema may do without what that one did not have.
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    model: ModelInfo
    defense: DefenseInfo
    data: DataInfo
    threat: ThreatInfo
    suite: SuiteInfo
    seed: int
    clean: Rate
    robust: Rate
    statuses: Statuses
    classes: list[Group] = Field(default_factory=list)
    groups: list[Group] = Field(default_factory=list)
    fairness: Fairness | None = None
    attacks: list[AttackInfo]
    cost: Cost
    trust: Literal["trusted", "suspect", "unreliable", "unknown"]
    findings: list[FindingInfo]
    artefacts: Artefacts
    paper: Paper | None = None
    environment: dict[Name, Name]
    created: Time
    command: Text | None = None

    _filed: dict[str, Any] | None = PrivateAttr(default=None)  # the content of its file, where that is older

    @property
    def standing(self) -> list[int]:
        """Samples that stand after each attack (alone, or in turn): those that it was not shown are among them."""
        fell = [attack.attacked - attack.survived for attack in self.attacks]
        if self.suite.cascade:
            return [self.robust.k + sum(fell[i + 1 :]) for i in range(len(fell))]
        return [self.clean.k - count for count in fell]

    @property
    def search(self) -> dict[str, Any]:
        """How adversarial points were searched for, in JSON: where this differs, accuracies say nothing of each other."""
        return {
            "suite": self.suite.name,
            "cascade": self.suite.cascade,
            "minimize": self.suite.minimize,
            "eot": self.suite.eot,
            "attacks": [[attack.name, attack.parameters, attack.conditions] for attack in self.attacks],
        }

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        s, n = self.statuses, self.data.n
        if s.misclassified + s.broken + s.survived + s.error != n or {self.clean.n, self.robust.n} != {n}:
            raise ValueError(f"statuses do not add up to the {n} samples")
        if self.robust.k != s.survived or not s.survived + s.broken <= self.clean.k <= n - s.misclassified:
            raise ValueError("clean and robust accuracy do not follow from the statuses")
        for attack in self.attacks:
            chosen = any(value for key, value in attack.selection.items() if key != "share")
            unseen = self.clean.k - attack.attacked if chosen else 0  # who may have survived without it
            if (
                unseen < 0
                or attack.attacked > self.clean.k
                or (attack.attacked and attack.survived < self.robust.k - unseen)
            ):
                raise ValueError(f"attack {attack.label}: its counts contradict the accuracies")
        for part in filter(None, (self.classes, self.groups)):
            sums = [
                sum(rate) for rate in zip(*((g.clean.n, g.clean.k, g.robust.k) for g in part), strict=True)
            ]
            if sums != [n, self.clean.k, self.robust.k]:
                raise ValueError("classes or groups do not add up to the whole")
        return self

    @model_validator(mode="after")
    def _says_all(self, info: ValidationInfo) -> Self:
        if (info.context or {}).get(_FILED_AS, SCHEMA_VERSION) != SCHEMA_VERSION:
            return self
        said = {
            "data.indices_sha256": self.data.indices_sha256,
            "artefacts.verdicts_sha256": self.artefacts.verdicts_sha256,
            "classes": self.classes,
            "fairness": self.fairness or len(self.classes) < 2,
            **{f"attacks.{i}.access": attack.access for i, attack in enumerate(self.attacks)},
            **{f"attacks.{i}.selection": attack.selection for i, attack in enumerate(self.attacks)},
        }
        if missing := [path for path, value in said.items() if not value]:
            raise ValueError(f"{', '.join(missing)}: missing, which no record of this schema leaves out")
        return self

    @property
    def migrated(self) -> bool:
        """Whether it was filed under an older schema, which asked less of it."""
        return self._filed is not None and self._filed["schema_version"] != SCHEMA_VERSION

    @cached_property
    def id(self) -> str:
        """Content address, 64 hex digits: the same for a run repeated with the same outcome.

        Leaves out dates, seconds, device, versions and the command. A record read from an older schema
        keeps the id that it is filed under.
        """
        return content_id(self._as_filed())

    @property
    def short_id(self) -> str:
        """The first 16 digits of `id`, to show."""
        return self.id[:16]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's; a copy with something changed has an id of its own."""
        copied = super().model_copy(update=update, deep=deep)
        if update:
            copied.__dict__.pop("id", None)
            copied._filed = None
        return copied

    def dumps(self) -> str:
        """The text of the record's file: content, id, and a checksum over all of the content."""
        return _sealed(self._as_filed())

    def _as_filed(self) -> dict[str, Any]:
        """What its file holds: of an older schema as it came: brought up to this one it would be another record."""
        return self._filed or self.model_dump(mode="json")

    @staticmethod
    def loads(text: str, where: str = "record") -> Record:
        """Read a record's file; every character must be as `dumps` wrote it (line ends may be CRLF).

        A record of an older schema is checked by its own text and brought up to this one.

        Args:
            text: content of the file.
            where: name of the file, for messages.

        Raises:
            StoreError: malformed, of a newer schema, inconsistent, or altered since it was written.
        """
        content, version = unwrapped(text, "record", where)
        try:
            if type(version) is not int or not OLDEST <= version <= SCHEMA_VERSION:
                raise StoreError(
                    f"{where}: schema version {version!r}, this program reads {OLDEST} to {SCHEMA_VERSION}; "
                    "upgrade robust-harness"
                )
            record = Record.model_validate(migrate(content), context={_FILED_AS: version})
            written = record.model_dump(mode="json")
            if json.dumps(written) != json.dumps(content):  # of an older schema, or not as it was written
                if content_id(content) != content_id(written):
                    record._filed = content
                elif version == SCHEMA_VERSION:
                    content = written
            honest = _is_sealed(text.replace("\r\n", "\n"), content)
        except ValidationError as error:
            raise StoreError(f"{where}: {_first_problem(error)}; it was altered or damaged") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(f"{where}: not a record: {type(error).__name__}: {error}") from error
        if not honest:
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
        model: Mapping[str, Any] | None = None,
        paper: Mapping[str, Any] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> Record:
        """The record of an evaluation.

        Args:
            report: what `robust.evaluate` returned. A column "group" in its verdict table gives accuracies
                per group.
            name: of the model, to show.
            defense: {"name", "parameters", "trained_threat", "trained_by"}.
            command: that made the report.
            examples: `examples_bytes` of the adversarial examples, to be stored with the record.
            model: {"source", "licence", "extra_data"}, as far as known.
            paper: {"title", "authors", "venue", "url"}.
            class_names: name of label 0, 1, ...; by default the report's.

        Raises:
            InputError: something that a record cannot hold, such as a parameter that is not finite; or a trust that
                the report's findings do not give.
        """
        if report.stopped:
            raise InputError(
                f"report: suite: expected all of its attacks, got {report.suite!r}, which a gate stopped early; "
                "use the report of evaluate()"
            )
        try:
            content = _content(report, name, dict(model or {}))
            _place(content, derive(report.verdicts, class_names or report.data.get("class_names")))
            content["artefacts"]["examples_sha256"] = None if examples is None else sha256(examples)
            record = Record.model_validate(
                {**content, "defense": dict(defense), "paper": paper, "command": command}
            )
        except ValidationError as error:
            raise InputError(f"record: cannot be made of this report: {_first_problem(error)}") from error
        if record.trust != (merited := follows(record.findings)):
            raise InputError(
                f"report: trust: expected {merited!r}, which its findings give, got {record.trust!r}; run it again"
            )
        return record


def content_id(content: dict[str, Any]) -> str:
    """`Record.id` of a record's JSON content, of this schema or an older one."""
    content = _without(content, "created", "command", "environment")
    cost = _without(content["cost"], "seconds", "device")
    if "checks" in cost:
        cost["checks"] = _without(cost["checks"], "seconds")
    content["cost"] = cost
    content["attacks"] = [_without(attack, "seconds") for attack in content["attacks"]]
    content["artefacts"] = _without(content["artefacts"], "verdicts_file_sha256")
    return sha256(canonical(content).encode())


def _sealed(content: dict[str, Any]) -> str:
    """The text of a record's file."""
    return json.dumps(_whole(content), indent=1, allow_nan=False) + "\n"


def _is_sealed(text: str, content: dict[str, Any]) -> bool:
    """Whether a text is `_sealed(content)`: pydantic writes the same sooner, unless a float has an exponent."""
    whole = _whole(content)
    return text == f"{to_json(whole, indent=1).decode()}\n" or text == _sealed(content)


def _whole(content: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": content_id(content),
        "checksum": sha256(canonical(content).encode()),
        "record": content,
    }


def _content(report: Report, name: str, model: dict[str, Any]) -> dict[str, Any]:
    """What is not counted from the verdict table."""
    threat, described, spec = report.threat, report.model, str(report.data["spec"])
    seen = [entry["access"] for entry in report.attacks if entry.get("access") in ACCESS] or ["gradient"]
    return {
        "model": {
            **model,
            "name": name,
            "weights_sha256": described["sha256"],
            "normalize": described.get("normalize"),
            "preprocess": described.get("preprocess"),
            **{key: described[key] for key in ("spec", "architecture", "parameters")},
        },
        "data": {"spec": spec, "sha256": report.data["sha256"], **name_and_split(spec)},
        "threat": {
            "norm": threat.norm,
            "eps": threat.eps,
            "radius": threat.radius,
            "bounds": threat.bounds,
            "knowledge": max(seen, key=ACCESS.index),
        },
        "suite": {
            "name": report.suite,
            "version": report.suite_version,
            "cascade": report.cascade,
            "eot": report.eot,
            "minimize": report.minimize,
        },
        "seed": report.seed,
        "attacks": [
            {key: entry[key] for key in AttackInfo.model_fields if key in entry} for entry in report.attacks
        ],
        "cost": {
            **{key: getattr(report, key) for key in Cost.model_fields},
            "checks": {key: report.checks[key] for key in Checks.model_fields if key in report.checks},
        },
        "trust": report.trust,
        "findings": report.findings,
        "artefacts": {"verdicts_file_sha256": sha256(verdicts_bytes(report.verdicts))},
        "environment": report.versions,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def name_and_split(spec: str) -> dict[str, str | None]:
    """Of a data set, from its SPEC: "builtin:mnist5k:test" -> mnist5k, test; "runs/data.npz" -> data, None."""
    scheme, _, rest = spec.partition(":")
    if scheme in ("builtin", "torchvision", "hf"):
        name, _, split = rest.partition(":")
        return {"name": name, "split": split or None}
    return {
        "name": spec.replace("\\", "/").rstrip("/").rpartition("/")[2].partition(".")[0] or spec,
        "split": None,
    }


def _place(content: dict[str, Any], parts: dict[str, Any]) -> None:
    """Put parts where they belong: "data.n" under "data"."""
    for path, value in parts.items():
        outer, _, inner = path.partition(".")
        if inner:
            content[outer][inner] = value
        else:
            content[outer] = value


def _without(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where, problem = ".".join(map(str, first["loc"])), str(first["msg"])
    if first.get("ctx", {}).get("pattern") == URL_PATTERN:
        problem = f"expected an address such as https://example.org/paper, got {reprlib.repr(first['input'])}"
    return f"{where}: {problem}" if where else problem
