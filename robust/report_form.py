"""The form of report.json: every key that is read of it, and what must be there."""

from __future__ import annotations

import reprlib
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

_EXPECTED: Final = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "too_short": "two numbers",
    "too_long": "two numbers",
}  # by pydantic's name for the mistake


def _as_text(eps: object) -> object:
    """An eps as text, which a threat made of a number has not."""
    return str(eps) if type(eps) in (int, float) else eps


_Count = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Form(BaseModel):
    """Nothing is converted: text is no number. Keys that no form names may hold anything."""

    model_config = ConfigDict(strict=True)


class _Threat(_Form):
    norm: str
    eps: Annotated[str, BeforeValidator(_as_text)]
    bounds: Annotated[list[float], Field(min_length=2, max_length=2)]


class _Attack(_Form):
    name: str
    label: str
    parameters: dict[str, Any]
    access: Literal["gradient", "score", "decision"]
    source: str
    batch_dependent: bool
    notes: list[str]
    minimum_norm: bool
    selection: dict[str, Any]
    attacked: _Count
    broke: _Count
    survived: _Count
    rejected: _Count
    silent: _Count
    unstarted: _Count
    errors: _Count
    forwards: _Count
    backwards: _Count
    seconds: _Seconds


class _Finding(_Form):
    check: str
    severity: Literal["suspect", "unreliable"]
    message: str


class _Checks(_Form):
    forwards: _Count
    backwards: _Count
    seconds: _Seconds


class _Model(_Form):
    spec: str
    sha256: str
    architecture: str
    parameters: _Count


class _Data(_Form):
    spec: str
    sha256: str
    class_names: list[str] | None = None


class _Report(_Form):
    threat: _Threat
    suite: str
    suite_version: int | None = None
    seed: int
    attacks: list[_Attack]
    cascade: bool
    minimize: bool = False
    trust: Literal["trusted", "suspect", "unreliable"]
    findings: list[_Finding]
    checks: _Checks
    failures: list[str]
    model: _Model
    data: _Data
    device: str
    engine: str
    eot: dict[str, Any] | None = None
    versions: dict[str, str]
    seconds: _Seconds


def problem_of(raw: dict[str, Any]) -> str:
    """The first key of report.json that is not what `Report.save` writes there, and why; empty where all are."""
    try:
        _Report.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            return f"{where}: is missing"
        expected = _EXPECTED.get(first["type"]) or first["msg"].removeprefix("Input should be ")
        return f"{where}: expected {expected}, got {reprlib.repr(first['input'])}"
    return ""
