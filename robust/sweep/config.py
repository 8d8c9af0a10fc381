"""What a sweep is to do, as typed data: read from a file (`robust.sweep.reading`), or built in."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from robust.rng import checked_seed
from robust.threat import Threat


def _no_boolean(value: Any) -> Any:
    """The number as it came; YAML's yes and true would be read as 1."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {str(value).lower()}")
    return value


Suite = str | list[str | dict[str, Any]]
Whole = Annotated[int, BeforeValidator(_no_boolean)]
Count = Annotated[Whole, Field(ge=1)]
Number = Annotated[float, BeforeValidator(_no_boolean)]
Names = str | Annotated[list[str], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _distinct(entries: list[Any] | None, *, titles: Sequence[object] = ()) -> list[Any] | None:
    """The list as it came; ValueError where an entry is there twice, as its cells would be, by its title if it has one."""
    there = entries or []
    for at, entry in enumerate(there):
        if entry in there[:at]:
            raise ValueError(f"{(titles or there)[at]} is there twice; give each once")
    return entries


def _check_seeds(seeds: Any) -> Any:
    """As they came, before they are read as numbers: true would be 1."""
    if isinstance(seeds, list | tuple):
        _distinct([checked_seed(seed) for seed in seeds])
    return seeds


def _parse_threats(threats: list[str] | None) -> list[str] | None:
    """The threats, each text without blanks around norm and eps; ValueError where one is there twice."""
    parsed = [Threat.parse(threat) for threat in threats or ()]
    _distinct([size_of(threat) for threat in parsed])
    return None if threats is None else [str(threat) for threat in parsed]


def _check_defenses(defenses: list[DefenseEntry] | None) -> list[DefenseEntry] | None:
    """As they came, if no two of those that they expand to are one."""
    every = [defense for entry in defenses or () for defense in entry.expand()]
    _distinct(every, titles=[defense.title for defense in every])
    return defenses


def size_of(threat: Threat) -> str:
    """Equal for threats that allow the same, however eps is written: 0.05 and 5e-2 are one."""
    return f"{threat.norm}:{threat.eps if threat.family else threat.radius}"


class DefenseEntry(_Strict):
    """A defense, or several by a list of names.

    Attributes:
        name: as in `robust list defenses`; "none" leaves a model that has weights, or nothing to train
            on, as it is.
        options: of the defense.
        grid: option -> values: one defense for every combination.
        training: options of the recipe to replace.
        threat: to train against.
    """

    name: Names
    options: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    threat: str | None = None

    @property
    def title(self) -> str:
        """The name with the options that were given, to show; what is behind a transform stands before it."""
        options = dict(self.options)
        of, inner = options.pop("of", ""), options.pop("options", {})
        given = {**(inner if isinstance(inner, dict) else {}), **options, **self.training}
        said = ",".join(f"{key}={value}" for key, value in given.items())
        name = f"{of}+{self.name}" if of else str(self.name)
        return f"{name}({said})" if said else name

    def expand(self) -> Iterator[DefenseEntry]:
        """One entry per name and combination of the grid."""
        for name in _as_list(self.name):
            for values in itertools.product(*self.grid.values()):
                options = {**self.options, **dict(zip(self.grid, values, strict=True))}
                yield self.model_copy(update={"name": name, "options": options, "grid": {}})


class ModelEntry(_Strict):
    """A model to harden and attack, or several by a list of specs.

    Attributes:
        spec: as on the command line; weights: its file.
        name: to show; normalize: (mean, std) that it expects.
        data, limit, train, threats, suites, seeds, defenses: override the sweep's for this model.
    """

    spec: Names
    weights: str | None = None
    name: str = ""
    normalize: tuple[list[Number], list[Number]] | None = None
    data: str | None = None
    limit: Count | None = None
    train: str | None = None
    threats: list[str] | None = Field(default=None, min_length=1)
    suites: list[Suite] | None = Field(default=None, min_length=1)
    seeds: list[int] | None = Field(default=None, min_length=1)
    defenses: list[DefenseEntry] | None = Field(default=None, min_length=1)

    _threats = field_validator("threats")(_parse_threats)
    _once = field_validator("suites")(_distinct)
    _defenses = field_validator("defenses")(_check_defenses)
    _seeds = field_validator("seeds", mode="before")(_check_seeds)

    @property
    def title(self) -> str:
        """The name to show."""
        return self.name or str(self.spec).rpartition(":")[2]

    def is_the_same_as(self, other: ModelEntry) -> bool:
        """Whether both are one model, that may be attacked otherwise."""
        return (self.spec, self.weights, self.normalize, self.train) == (
            other.spec, other.weights, other.normalize, other.train,
        )  # fmt: skip

    def expand(self) -> Iterator[ModelEntry]:
        """One entry per spec."""
        for spec in _as_list(self.spec):
            yield self.model_copy(update={"spec": spec})


class Exclusion(_Strict):
    """Cells and curves to leave out: those that match all of the given patterns (* and ? as in file names).

    Of a curve each of its threats must match.
    """

    model: str | None = None
    defense: str | None = None
    threat: str | None = None
    suite: str | None = None
    seed: Whole | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError("give at least one of model, defense, threat, suite, seed")
        return self


class Curve(_Strict):
    """Robust accuracy over many radii of one norm, at about the cost of two.

    Attributes:
        norm: "linf", "l2" or "l1".
        eps: the radii, as in threats.
        suite: what every sample meets at its hardest radius.
    """

    norm: Literal["linf", "l2", "l1"]
    eps: list[str] = Field(min_length=2)
    suite: Suite = "standard"

    @field_validator("eps", mode="before")
    @classmethod
    def _as_written(cls, eps: Any) -> Any:
        return [str(_no_boolean(radius)) for radius in eps] if isinstance(eps, list) else eps

    @model_validator(mode="after")
    def _reads(self) -> Self:
        radii = [Threat(self.norm, eps).radius for eps in self.eps]
        if len(set(radii)) < len(radii):
            raise ValueError("eps: the same radius twice")
        return self

    @property
    def title(self) -> str:
        """The norm and all radii: curves of one norm differ in nothing else that is short."""
        return f"{self.norm} at {', '.join(threat.eps for threat in self.threats)}"

    @property
    def threats(self) -> list[Threat]:
        """By growing radius."""
        return sorted((Threat(self.norm, eps) for eps in self.eps), key=lambda threat: threat.radius)


class SweepConfig(_Strict):
    """A sweep: every model is hardened by every defense and attacked under every threat, suite and seed.

    Attributes:
        data: samples that are attacked, cut to `limit` (a seeded fair subset).
        groups: column or array of `data` with each sample's group, for accuracy per group; see `robust.load_data`.
        train: samples that defenses train on; validation is split off from it.
        recipe: named training options that defenses start from.
        models, defenses, threats, suites, seeds: the lists whose product the cells are. A suite is a name
            or a list of attacks.
        exclude: cells to leave out.
        curves: accuracy over eps, for every model x defense.
        cascade: see `robust.evaluate`.
        shard: samples that a worker is handed at once.
        batch_size: rows a pass takes at most; by default 128, on a GPU 512. Not by measurement, as that
            could change the last bits of a result from run to run.
        keep_examples: adversarial examples that are kept with a record, at most; see docs/sweeps.md.
        precision: see `robust.evaluate`; "auto" may change the last bits too.
    """

    data: str
    groups: str | None = None
    train: str | None = None
    limit: Count | None = None
    recipe: str = "mnist"
    models: list[ModelEntry] = Field(min_length=1)
    defenses: list[DefenseEntry] = Field(default=[DefenseEntry(name="none")], min_length=1)
    threats: list[str] = Field(default=[])
    suites: list[Suite] = Field(default=["standard"], min_length=1)
    seeds: list[int] = Field(default=[0], min_length=1)
    exclude: list[Exclusion] = Field(default=[])
    curves: list[Curve] = Field(default=[])
    cascade: bool = True
    shard: Count = 512
    batch_size: Count | None = None
    keep_examples: Annotated[Whole, Field(ge=0)] = 8
    precision: Literal["float32", "bfloat16", "auto"] = "float32"

    _threats = field_validator("threats")(_parse_threats)
    _once = field_validator("suites")(_distinct)
    _defenses = field_validator("defenses")(_check_defenses)
    _seeds = field_validator("seeds", mode="before")(_check_seeds)

    @field_validator("models")
    @classmethod
    def _named_apart(cls, models: list[ModelEntry]) -> list[ModelEntry]:
        """A title stands for one model, on a board and in messages."""
        known: dict[str, ModelEntry] = {}
        every = [model for entry in models for model in entry.expand()]
        _distinct(every, titles=[model.title for model in every])
        for model in every:
            if not model.is_the_same_as(known.setdefault(model.title, model)):
                raise ValueError(
                    f"two are called {model.title!r}; give each an entry with a `name` of its own"
                )
        return models

    @field_validator("curves")
    @classmethod
    def _curves_differ(cls, curves: list[Curve]) -> list[Curve]:
        _distinct(
            [(curve.norm, [threat.radius for threat in curve.threats], curve.suite) for curve in curves],
            titles=[f"{curve.title} with {curve.suite}" for curve in curves],
        )
        return curves

    @model_validator(mode="after")
    def _spelled_alike(self) -> Self:
        """Boards keep radii apart that are written otherwise: of one plan their results could not be compared."""
        written: dict[str, str] = {}
        for threat in itertools.chain(self.threats, *(model.threats or () for model in self.models)):
            before = written.setdefault(size_of(Threat.parse(threat)), threat)
            if before != threat:
                raise ValueError(
                    f"threats: {before} and {threat} are the same; write it one way for all models"
                )
        return self

    @model_validator(mode="after")
    def _has_work(self) -> Self:
        if not self.threats and not self.curves and any(model.threats is None for model in self.models):
            raise ValueError("threats: give at least one, such as 'linf:8/255', or curves")
        return self


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def demonstration() -> SweepConfig:
    """The built-in sweep: real digits, three defenses, FGSM, PGD and CW, two radii in each of two norms."""
    return SweepConfig(
        train="builtin:mnist5k:train",
        data="builtin:mnist5k:test",
        recipe="mnist-quick",
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
