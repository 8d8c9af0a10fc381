"""The parts that a leaderboard record is made of, each consistent with itself."""

from __future__ import annotations

import json
import reprlib
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from robust.errors import StoreError
from robust.stats import interval
from robust.threat import Threat

ACCESS: Final = ("decision", "score", "gradient")  # what an attack may see, the least first
MOST_CLASSES: Final = 100_000
_interval = lru_cache(maxsize=1 << 16)(interval)  # a store repeats the same few thousand rates


def as_json(value: object) -> object:
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


LONGEST_NAME: Final = 300  # characters
Name = Annotated[str, Field(max_length=LONGEST_NAME)]
Text = Annotated[str, Field(max_length=5000)]
URL_PATTERN: Final = r"^https?://[^\s<>\"']+$"
Url = Annotated[str, Field(max_length=2000, pattern=URL_PATTERN)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Label = Annotated[int, Field(ge=0, lt=MOST_CLASSES)]
Samples = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Time = Annotated[str, Field(max_length=40), AfterValidator(as_utc)]
Parameters = Annotated[dict[str, Any], BeforeValidator(as_json)]


class Part(BaseModel):
    """Base of all parts: nothing unknown, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PreprocessInfo(Part):
    """How images become the model's input: scaled by `resize` and cropped to `size` (height, width)."""

    size: tuple[Samples, Samples]
    resize: Samples | tuple[Samples, Samples] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = "bilinear"


class ModelInfo(Part):
    """Which model; `parameters` counts its weights, `normalize` is the (mean, std) in front of it.

    `preprocess` is what it takes before that, None for images of any size as they are. `source` is where the weights
    can be had, `extra_data` whether more than the benchmark's own training set was used; None where nobody said.
    """

    name: Name
    spec: Text
    architecture: Name
    parameters: Count
    weights_sha256: Sha256
    normalize: tuple[list[Finite], list[Finite]] | None = None
    preprocess: PreprocessInfo | None = None
    source: Url | None = None
    licence: Name | None = None
    extra_data: bool | None = None


TRAINING: Final = "training options"  # with a blank, as no parameter of a defense can be called


class DefenseInfo(Part):
    """How it was hardened, against which threat ("linf:8/255") if any, and by whom.

    Among the parameters, under TRAINING, are the options of the training that were given, where any were.
    """

    name: Name
    parameters: Parameters
    trained_threat: Name | None = None
    trained_by: Name | None = None


class DataInfo(Part):
    """On which samples: hashes of the samples and of their ids, in the order of the verdict table."""

    spec: Text
    name: Text
    split: Name | None = None
    sha256: Sha256
    indices_sha256: Sha256 | None = None
    n: Samples


class ThreatInfo(Part):
    """Under which threat; eps as written and as a number, and the most that an attack was let see."""

    norm: Name
    eps: Name
    radius: Finite
    bounds: tuple[Finite, Finite]
    targeted: bool = False
    knowledge: Literal["gradient", "score", "decision"] = "gradient"

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if Threat(self.norm, self.eps, self.bounds).radius != self.radius:
            raise ValueError(f"eps {self.eps!r} is not the radius {self.radius!r}")
        return self


class AttackInfo(Part):
    """One attack of the suite and what it did.

    `attacked` samples it was run on; of these `broke` fell, `survived` stood, the others ended in an
    error. `rejected` claims did not stand up to the audit. `selection` says which samples it was shown, `access`
    the most that it saw; a record of schema 1 may leave these two out.
    """

    name: Name
    label: Text
    parameters: Parameters
    access: Literal["gradient", "score", "decision"] | None = None
    selection: Parameters = Field(default_factory=dict)
    attacked: Count
    broke: Count
    survived: Count
    rejected: Count = 0
    errors: Count = 0
    forwards: Count
    backwards: Count
    seconds: Seconds

    @property
    def conditions(self) -> dict[str, Any]:
        """What of the selection is set: a version lists as unset what an older one did not list."""
        return {
            key: value
            for key, value in self.selection.items()
            if not (value is None or value is False or (key == "share" and value == 0))
        }

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.broke + self.survived > self.attacked:
            raise ValueError("broke and survived exceed attacked")
        return self


class SuiteInfo(Part):
    """The suite; with `cascade` each attack saw only what the ones before it left standing.

    `version` is None where the suite has no versions, such as a list of attacks, and in records from before they were
    recorded.
    `eot` says how a randomised model was judged: {"samples", "vote"}. With `minimize` every search went on for
    the nearest adversarial point, which the verdict table gives under "nearest".
    """

    name: Text
    version: Annotated[int, Field(ge=1)] | None = None
    cascade: bool
    eot: Parameters | None = None
    minimize: bool = False


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
        low, high = _interval(k, n)
        return Rate(k=k, n=n, value=k / n, low=low, high=high)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.k > self.n:
            raise ValueError(f"{self.k} of {self.n}")
        low, high = _interval(self.k, self.n)
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


class Group(Part):
    """Clean and robust accuracy on the samples of a class (then `label` is given) or of a user's group."""

    name: Name
    label: Label | None = None
    clean: Rate
    robust: Rate

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.clean.n != self.robust.n or self.robust.k > self.clean.k:
            raise ValueError(f"group {self.name!r}: its clean and robust accuracy contradict each other")
        return self


class Fairness(Part):
    """How unevenly robustness falls on the classes.

    `low` and `high` are the worst class's interval at 95 % for all classes together (Bonferroni), since
    the worst was picked after looking. `worst_tenth` is the mean over the worst tenth of the classes,
    one at least; `spread` the best class's robust accuracy less the worst's.
    """

    worst: Count
    value: Finite
    low: Finite
    high: Finite
    worst_tenth: Finite
    spread: Finite


class Checks(Part):
    """What the diagnostics cost; part of the totals in `Cost`."""

    forwards: Count = 0
    backwards: Count = 0
    seconds: Seconds = 0.0


class Cost(Part):
    """What the evaluation cost: passes of one sample, all together, those of the diagnostics included."""

    forwards: Count
    backwards: Count
    seconds: Seconds
    device: Name
    engine: Name = "plain"
    checks: Checks = Checks()


class FindingInfo(Part):
    """A check that fired."""

    check: Name
    severity: Literal["suspect", "unreliable"]
    message: Text


class Paper(Part):
    """Where the model or defense was published."""

    title: Text
    authors: Text | None = None
    venue: Name | None = None
    url: Url | None = None


class Artefacts(Part):
    """Hashes of what lies beside the record.

    `verdicts_sha256` is of the verdict table's content, whatever wrote it (None: a record that was filed under schema 1);
    `verdicts_file_sha256` of its Parquet file, whose bytes depend on the writer's version. Files are
    named by their own hash.
    """

    verdicts_sha256: Sha256 | None
    verdicts_file_sha256: Sha256
    examples_sha256: Sha256 | None = None


def unwrapped(text: str, kind: str, where: str) -> tuple[dict[str, Any], object]:
    """The content under "record" or "reference" of a file's text, and the schema version that it claims.

    Raises:
        StoreError: no JSON, or not of that shape.
    """
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"{where}: not a {kind}: expected JSON as the store writes it ({error}); "
            "restore it, or move it out of the store"
        ) from None
    content = whole.get(kind) if isinstance(whole, dict) else None
    if not isinstance(content, dict) or "schema_version" not in content:
        raise StoreError(
            f'{where}: not a {kind}: expected JSON as the store writes it, {{"{kind}": {{"schema_version": ...}}}}, '
            f"got {reprlib.repr(whole)}; restore it, or move it out of the store"
        )
    return content, content["schema_version"]


def canonical(content: object) -> str:
    """JSON of which there is one text per content; ValueError for NaN and infinity."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
