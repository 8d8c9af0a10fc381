"""The cells of a sweep: the product of its lists, less what is excluded, each with a content key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, TypeVar

from robust.defenses import Wrapper, make_defense
from robust.errors import InputError
from robust.leaderboard.layout import plain
from robust.sources import Preprocessing, named_sha256
from robust.suites import Stage, resolve
from robust.sweep.config import Curve, DefenseEntry, Exclusion, ModelEntry, Suite, SweepConfig
from robust.sweep.curves import stages_below
from robust.threat import Threat

CODE_VERSION: Final = 20  # raise it when verdicts or weights of an unchanged plan may come out otherwise


@dataclass(frozen=True)
class Pair:
    """A model and how it is hardened."""

    model: ModelEntry
    defense: DefenseEntry
    train: str | None
    seed: int  # of the initial weights and the training

    @property
    def title(self) -> str:
        """For progress and messages, in one line whatever the names hold."""
        return f"{plain(self.model.title)} x {plain(self.defense.title)}"

    @property
    def wrapper(self) -> Wrapper | None:
        """The defense, where it puts a transform in front of a model."""
        made = make_defense(str(self.defense.name), **self.defense.options)
        return made if isinstance(made, Wrapper) else None

    @property
    def inner(self) -> DefenseEntry:
        """What the model is trained by: the defense, or the one that its transform is put in front of."""
        made = self.wrapper
        if made is None:
            return self.defense
        return self.defense.model_copy(update={"name": made.of or "none", "options": dict(made.options)})

    @property
    def behind(self) -> str | None:
        """The transform in front of the trained model, as JSON (name and options); None for none."""
        made = self.wrapper
        if made is None:
            return None
        kept = {key: value for key, value in self.defense.options.items() if key not in ("of", "options")}
        return json.dumps({"name": self.defense.name, **kept}, sort_keys=True)

    @property
    def as_is(self) -> bool:
        """Nothing is to be trained."""
        made = self.wrapper
        given = self.model.weights is not None or self.train is None or (made is not None and not made.of)
        return self.inner.name == "none" and given and not self.defense.training

    @property
    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """The normalisation that was given."""
        given = self.model.normalize
        return None if given is None else (tuple(given[0]), tuple(given[1]))

    @property
    def identity(self) -> str:
        """Equal for equal pairs."""
        model = self.model.model_dump(mode="json", include={"spec", "weights", "name", "normalize"})
        return json.dumps([model, self.defense.model_dump(mode="json"), self.train, self.seed])


@dataclass(frozen=True)
class Origin:
    """What a pair's model is besides its weights.

    Attributes:
        sha256: of the files that it is read from; None where there are none.
        fit: what its source declares in front of it; None where nothing does, or the plan does.
    """

    sha256: str | None
    fit: Preprocessing | None

    @property
    def identity(self) -> list[str | None]:
        """Equal for equal models of equal weights."""
        return [self.sha256, repr(self.fit)]


@dataclass(frozen=True)
class Cell:
    """One evaluation of the plan."""

    pair: Pair
    data: str
    limit: int | None
    threat: str
    suite: Suite
    seed: int
    cascade: bool

    @property
    def title(self) -> str:
        """For progress and messages."""
        return f"{self.pair.title}, {self.threat}, {suite_title(self.suite)}, seed {self.seed}"

    @property
    def identity(self) -> str:
        """Equal for equal cells, where a title may be of several: it leaves out what a suite's attacks are given."""
        what = [self.data, self.limit, self.threat, self.suite, self.seed, self.cascade]
        return json.dumps([self.pair.identity, *what], default=str)


@dataclass(frozen=True)
class CurveCell:
    """One curve of the plan."""

    pair: Pair
    data: str
    limit: int | None
    curve: Curve
    seed: int

    @property
    def title(self) -> str:
        """For progress and messages."""
        return f"{self.pair.title}, {self.curve.title}, {suite_title(self.curve.suite)}, seed {self.seed}"

    @property
    def identity(self) -> str:
        """As of a cell."""
        what = [self.data, self.limit, self.curve.model_dump(mode="json"), self.seed]
        return json.dumps([self.pair.identity, *what], default=str)


_Kind = TypeVar("_Kind", Cell, CurveCell)


def suite_title(suite: Suite) -> str:
    """A suite's name, or its attacks."""
    if isinstance(suite, str):
        return suite
    return "+".join(item if isinstance(item, str) else str(item.get("name", "?")) for item in suite)


def plan(config: SweepConfig) -> list[Cell]:
    """The evaluations of a sweep, pair by pair.

    Raises:
        InputError: an exclusion that no cell matches, or nothing left.
    """
    cells = _once(cell for pair in pairs(config) for cell in _cells_of(pair, config))
    curves = _all_curves(config)
    everything: list[Cell | CurveCell] = [*cells, *curves]
    for exclusion in config.exclude:
        if not any(_matches(exclusion, cell) for cell in everything):
            said = ", ".join(
                f"{key} = {value!r}" for key, value in exclusion.model_dump(exclude_none=True).items()
            )
            names = sorted({cell.pair.title for cell in everything})
            raise InputError(f"sweep: exclude {said} matches no cell; there are {', '.join(names)}")
    left = _kept(cells, config)
    if not left and not _kept(curves, config):
        raise InputError("sweep: exclude leaves no cell")
    return left


def curve_cells(config: SweepConfig) -> list[CurveCell]:
    """The curves of a sweep."""
    return _kept(_all_curves(config), config)


def _all_curves(config: SweepConfig) -> list[CurveCell]:
    return _once(
        CurveCell(pair, pair.model.data or config.data, pair.model.limit or config.limit, curve, seed)
        for pair in pairs(config)
        for curve in config.curves
        for seed in pair.model.seeds or config.seeds
    )


def _kept(cells: list[_Kind], config: SweepConfig) -> list[_Kind]:
    """Those that nothing excludes."""
    return [cell for cell in cells if not any(_matches(exclusion, cell) for exclusion in config.exclude)]


def _once(cells: Iterable[_Kind]) -> list[_Kind]:
    """Each cell once, where entries of one model overlap."""
    return list({cell.identity: cell for cell in cells}.values())


def pairs(config: SweepConfig) -> Iterator[Pair]:
    """Every model with every defense."""
    for entry in config.models:
        for model in entry.expand():
            for listed in model.defenses or config.defenses:
                for defense in listed.expand():
                    seed = (model.seeds or config.seeds)[0]
                    yield Pair(model, defense, model.train or config.train, seed)


def short_names(config: SweepConfig) -> dict[str, str]:
    """Title of every cell and pair -> what sets it apart from the others of the sweep, for narrow places."""
    cells: list[Cell | CurveCell] = [*plan(config), *curve_cells(config)]
    named = {cell.title: _traits(cell) for cell in cells}
    named |= {cell.pair.title: _traits(cell)[:2] for cell in cells}
    varies = [len(set(column)) > 1 for column in zip(*(_traits(cell) for cell in cells), strict=True)]
    short = {}
    for title, traits in named.items():
        telling = [trait for trait, telling in zip(traits, varies, strict=False) if telling]
        short[title] = ", ".join(telling or traits[:1])
    return short


def _traits(cell: Cell | CurveCell) -> list[str]:
    model, defense = plain(cell.pair.model.title), plain(cell.pair.defense.title)
    if isinstance(cell, CurveCell):
        threat, suite = cell.curve.title, cell.curve.suite
    else:
        threat, suite = cell.threat, cell.suite
    return [model, defense, threat, suite_title(suite), f"seed {cell.seed}"]


def _cells_of(pair: Pair, config: SweepConfig) -> Iterator[Cell]:
    model = pair.model
    for threat in model.threats or config.threats:
        for suite in model.suites or config.suites:
            for seed in model.seeds or config.seeds:
                yield Cell(
                    pair,
                    model.data or config.data,
                    model.limit or config.limit,
                    threat,
                    suite,
                    seed,
                    config.cascade,
                )


def _matches(exclusion: Exclusion, cell: Cell | CurveCell) -> bool:
    """Whether all that is asked for fits; of a curve each of its threats."""
    if isinstance(cell, CurveCell):
        suite, threats = cell.curve.suite, [str(threat) for threat in cell.curve.threats]
    else:
        suite, threats = cell.suite, [cell.threat]
    names = {
        "model": [cell.pair.model.title],
        "defense": [cell.pair.defense.title, str(cell.pair.defense.name)],
        "suite": [suite_title(suite)],
        "seed": [str(cell.seed)],
    }
    asked = {key: str(pattern) for key, pattern in exclusion.model_dump(exclude_none=True).items()}
    threat = asked.pop("threat", "*")
    return all(fnmatchcase(one, threat) for one in threats) and all(
        any(fnmatchcase(name, pattern) for name in names[key]) for key, pattern in asked.items()
    )


def dependencies(cell: Cell | CurveCell, config: SweepConfig, origin: Origin) -> dict[str, Any]:
    """What a cell's result depends on, but for the weights and the data."""
    about: dict[str, Any] = {
        "model": [cell.pair.model.spec, cell.pair.model.normalize, origin.identity],
        "pair": [cell.pair.model.title, cell.pair.defense.model_dump(mode="json")],
        "seed": cell.seed,
        "precision": config.precision,
        "batch_size": config.batch_size,
    }
    if isinstance(cell, CurveCell):
        suite, threats = cell.curve.suite, cell.curve.threats
        suites = [stages_identity(suite, threat) for threat in threats]
        below = [[_stage(stage) for stage in stages_below(suite, threat) or ()] for threat in threats[:-1]]
        return {**about, "curve": [str(threat) for threat in threats], "suites": suites, "below": below}
    threat = Threat.parse(cell.threat)
    return {
        **about,
        "examples": config.keep_examples,
        "threat": [threat.norm, threat.eps, threat.bounds],
        "suite": stages_identity(cell.suite, threat),
        "cascade": cell.cascade,
    }


def stages_identity(suite: Suite, threat: Threat) -> list[Any]:
    """A suite with all its effective parameters, as JSON can hold it."""
    name, stages = resolve(suite, threat)
    return [name, [_stage(stage) for stage in stages]]


def _stage(stage: Stage) -> list[Any]:
    attack = stage.attack
    name = attack.name if attack.source == "robust" else f"{attack.name} of {attack.source}"
    conditions = (value for key, value in vars(stage).items() if key != "attack")
    files = named_sha256(attack.parameters)
    return [name, attack.parameters, *conditions, *([files] if files else [])]


def content_key(content: dict[str, Any]) -> str:
    """24 hex digits of what a result depends on."""
    text = json.dumps({"code": CODE_VERSION, **content}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
