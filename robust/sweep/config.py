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
    """The text below each field is its description in the JSON schema, which an editor shows."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


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
    """A defense, or several by a list of names."""

    name: Names
    """As in `robust list defenses`; "none" leaves a model that has weights, or nothing to train on, as it is."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the defense."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Option -> values: one defense for every combination."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Options of the recipe to replace, such as epochs."""
    threat: str | None = None
    """The threat to train against, such as "linf:8/255"."""

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
    """A model to harden and attack, or several by a list of specs."""

    spec: Names
    """As on the command line: "nets.py:make", "torchvision:resnet18" and so on."""
    weights: str | None = None
    """File of its weights."""
    name: str = ""
    """The name to show; without it, the spec's part after the last colon."""
    normalize: tuple[list[Number], list[Number]] | None = None
    """Mean and standard deviation per channel that the model expects; without it, what its source declares."""
    data: str | None = None
    """Samples that this model is attacked on, instead of the sweep's."""
    limit: Count | None = None
    """How many of the samples, instead of the sweep's limit."""
    train: str | None = None
    """Samples that this model is trained on, instead of the sweep's."""
    threats: list[str] | None = Field(default=None, min_length=1)
    """Threats of this model, instead of the sweep's."""
    suites: list[Suite] | None = Field(default=None, min_length=1)
    """Suites of this model, instead of the sweep's."""
    seeds: list[int] | None = Field(default=None, min_length=1)
    """Seeds of this model, instead of the sweep's."""
    defenses: list[DefenseEntry] | None = Field(default=None, min_length=1)
    """Defenses of this model, instead of the sweep's."""

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
    """Pattern of the model's name."""
    defense: str | None = None
    """Pattern of the defense's name, with or without its options as they are shown."""
    threat: str | None = None
    """Pattern of the threat, such as "l2:*"."""
    suite: str | None = None
    """Pattern of the suite's name, or of its attacks' joined by +."""
    seed: Whole | None = None
    """The seed."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError("give at least one of model, defense, threat, suite, seed")
        return self


class Curve(_Strict):
    """Robust accuracy over many radii of one norm, at about the cost of two."""

    norm: Literal["linf", "l2", "l1"]
    """"linf", "l2" or "l1"."""
    eps: list[str] = Field(min_length=2)
    """The radii, as in threats."""
    suite: Suite = "standard"
    """What every sample meets at its hardest radius: a suite's name, or a list of attacks."""

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
    """A sweep: every model is hardened by every defense and attacked under every threat, suite and seed."""

    data: str
    """SPEC of the samples that are attacked, such as "builtin:digits:test" or "data.npz"."""
    groups: str | None = None
    """Column or array of `data` with each sample's group, for accuracy per group; as `--groups` of `robust attack`."""
    train: str | None = None
    """SPEC of the samples that defenses train on; validation is split off from it."""
    limit: Count | None = None
    """How many of the samples are attacked, a seeded fair subset; all without it."""
    recipe: str = "mnist"
    """Named training options that defenses start from: "mnist", "cifar10", "cifar10-resnet18" and so on."""
    models: list[ModelEntry] = Field(min_length=1)
    """Models to harden and attack."""
    defenses: list[DefenseEntry] = Field(default=[DefenseEntry(name="none")], min_length=1)
    """Defenses that every model is hardened by."""
    threats: list[str] = Field(default=[])
    """Threats that every hardened model is attacked under, such as "linf:8/255"."""
    suites: list[Suite] = Field(default=["standard"], min_length=1)
    """What attacks: each the name of a suite or an attack, or a list of attacks."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Seeds of the attacks; a model's first is that of its initial weights and training too."""
    exclude: list[Exclusion] = Field(default=[])
    """Evaluations and curves to leave out."""
    curves: list[Curve] = Field(default=[])
    """Robust accuracy over eps, for every model x defense x seed."""
    cascade: bool = True
    """Whether an attack of a suite meets only those whom the ones before it left; else all meet each."""
    shard: Count = 512
    """Samples that a worker is handed at once."""
    batch_size: Count | None = None
    """Rows a pass takes at most; by default 128, on a GPU 512. Not by measurement, as that could change the last bits."""
    keep_examples: Annotated[Whole, Field(ge=0)] = 8
    """Adversarial examples that are kept with a record, at most; 0 for none."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of the search: see `robust.evaluate`; "auto" may change the last bits from run to run."""

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
