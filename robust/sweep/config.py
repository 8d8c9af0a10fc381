"""What a sweep is to do, as typed data; read from TOML or built in."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from robust.errors import InputError
from robust.threat import Threat


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelEntry(_Strict):
    """A model to harden and attack: `spec` as on the command line, its weights, the name to show."""

    spec: str
    weights: str | None = None
    name: str = ""
    normalize: tuple[list[float], list[float]] | None = None

    @property
    def title(self) -> str:
        """The name to show."""
        return self.name or self.spec.rpartition(":")[2]


class DefenseEntry(_Strict):
    """A defense by name, with its options, recipe and the threat it trains against."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    threat: str | None = None


class SweepConfig(_Strict):
    """A sweep: every model is hardened by every defense and attacked under every threat, suite and seed.

    Attributes:
        train: data that defenses train on; validation is split off from it.
        data: data that is attacked, cut to `limit` samples (a seeded fair subset).
        recipe: named training options that defenses start from.
        suites: a suite's name, or a list of attacks each.
        cascade: see `robust.evaluate`.
    """

    data: str
    train: str | None = None
    limit: int | None = Field(default=None, ge=1)
    recipe: str = "mnist"
    models: list[ModelEntry] = Field(min_length=1)
    defenses: list[DefenseEntry] = Field(min_length=1)
    threats: list[str] = Field(min_length=1)
    suites: list[str | list[str | dict[str, Any]]] = Field(default=["standard"], min_length=1)
    seeds: list[int] = Field(default=[0], min_length=1)
    cascade: bool = True

    @field_validator("threats")
    @classmethod
    def _threats_parse(cls, threats: list[str]) -> list[str]:
        for threat in threats:
            Threat.parse(threat)
        return threats


def load_config(path: str | Path) -> SweepConfig:
    """Read a sweep from a TOML file.

    Raises:
        InputError: missing file, malformed TOML, unknown or ill-typed key (with its path and a suggestion).
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"sweep configuration: cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"sweep configuration: {path} is not TOML: {error}") from error
    try:
        return SweepConfig.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"sweep configuration {path}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    where = ".".join(map(str, first["loc"]))
    if first["type"] != "extra_forbidden":
        return f"{where}: {first['msg']}"
    known = {name for model in (SweepConfig, ModelEntry, DefenseEntry) for name in model.model_fields}
    near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
    return f"{where}: unknown key" + (f"; did you mean {near[0]!r}?" if near else "")


def demonstration() -> SweepConfig:
    """The built-in sweep: real digits, three defenses, FGSM, PGD and CW, two radii in each of two norms."""
    return SweepConfig(
        train="builtin:mnist5k:train",
        data="builtin:mnist5k:test",
        models=[ModelEntry(spec="builtin:mnist-cnn")],
        defenses=[
            DefenseEntry(name="none"),
            DefenseEntry(name="pgd-at", threat="linf:0.2"),
            DefenseEntry(name="distillation"),
        ],
        threats=["linf:0.1", "linf:0.2", "l2:1", "l2:2"],
        suites=["demo"],
        cascade=False,
    )
