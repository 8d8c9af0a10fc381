"""The parts that a leaderboard record is made of, each consistent with itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from robust.stats import interval
from robust.threat import Threat


def _as_json(value: object) -> object:
    """The value as JSON gives it back (tuples become lists), so that a record equals itself once read."""
    try:
        return json.loads(canonical(value))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"expected what JSON can hold: {error}") from error


def as_utc(text: str) -> str:
    """The time as it came; ValueError unless it is ISO 8601 in UTC."""
    if datetime.fromisoformat(text).utcoffset() != UTC.utcoffset(None):
        raise ValueError("expected an ISO 8601 time in UTC such as 2026-01-31T12:00:00+00:00")
    return text


Name = Annotated[str, Field(max_length=300)]
Text = Annotated[str, Field(max_length=5000)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Samples = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Time = Annotated[str, Field(max_length=40), AfterValidator(as_utc)]
Parameters = Annotated[dict[str, Any], BeforeValidator(_as_json)]


class Part(BaseModel):
    """Base of all parts: nothing unknown, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelInfo(Part):
    """Which model; `parameters` counts its weights."""

    name: Name
    spec: Text
    architecture: Name
    parameters: Count
    weights_sha256: Sha256


class DefenseInfo(Part):
    """How it was hardened, and against which threat ("linf:8/255") if any."""

    name: Name
    parameters: Parameters
    trained_threat: Name | None = None


class DataInfo(Part):
    """On which samples."""

    spec: Text
    sha256: Sha256
    n: Samples


class ThreatInfo(Part):
    """Under which threat; eps as written and as a number."""

    norm: Name
    eps: Name
    radius: Finite
    bounds: tuple[Finite, Finite]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if Threat(self.norm, self.eps, self.bounds).radius != self.radius:
            raise ValueError(f"eps {self.eps!r} is not the radius {self.radius!r}")
        return self


class AttackInfo(Part):
    """One attack of the suite and what it did.

    `attacked` samples it was run on; of these `broke` fell, `survived` stood, the others ended in an
    error.
    """

    name: Name
    label: Text
    parameters: Parameters
    attacked: Count
    broke: Count
    survived: Count
    forwards: Count
    backwards: Count
    seconds: Seconds

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.broke + self.survived > self.attacked:
            raise ValueError("broke and survived exceed attacked")
        return self


class SuiteInfo(Part):
    """The suite; with `cascade` each attack saw only what the ones before it left standing."""

    name: Text
    cascade: bool


class Rate(Part):
    """k of n with its 95 % Wilson interval."""

    k: Count
    n: Samples
    value: Finite
    low: Finite
    high: Finite

    @staticmethod
    def of(k: int, n: int) -> Rate:
        """The rate of k in n >= 1."""
        low, high = interval(k, n)
        return Rate(k=k, n=n, value=k / n, low=low, high=high)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        low, high = interval(self.k, self.n)
        # 1e-9: releases of scipy may round differently.
        if (
            abs(self.value - self.k / self.n) > 1e-12
            or max(abs(self.low - low), abs(self.high - high)) > 1e-9
        ):
            raise ValueError(f"{self.k} of {self.n} does not give {self.value} [{self.low}, {self.high}]")
        return self


class Statuses(Part):
    """Samples per verdict."""

    misclassified: Count
    broken: Count
    survived: Count
    error: Count


class Cost(Part):
    """What the evaluation cost: passes of one sample, all together."""

    forwards: Count
    backwards: Count
    seconds: Seconds
    device: Name


class FindingInfo(Part):
    """A check that fired."""

    check: Name
    severity: Literal["suspect", "unreliable"]
    message: Text


class Artefacts(Part):
    """Hashes of the files beside the record, which are also their names."""

    verdicts_sha256: Sha256
    examples_sha256: Sha256 | None = None


def canonical(content: object) -> str:
    """JSON of which there is one text per content; ValueError for NaN and infinity."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
