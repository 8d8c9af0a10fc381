"""Mistakes in a plan, found before any time is spent on it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robust.defenses import Wrapper, make_defense
from robust.errors import InputError
from robust.hardening import training_options
from robust.leaderboard.schema import LONGEST_NAME
from robust.sources import DATASETS, MODELS, SPLITS, check_groups, data_form, model_form, untrained
from robust.sources.origin import GRAPHS
from robust.suites import resolve
from robust.sweep.cells import Cell, CurveCell, Pair, curve_cells, pairs, plan, stages_identity
from robust.sweep.config import SweepConfig, size_of
from robust.threat import Threat


def check_plan(config: SweepConfig) -> list[Cell | CurveCell]:
    """All that is to be done.

    What a plan names is looked for, but not opened: models and samples of other libraries, and what is wrong inside
    a file, come to light when their turn comes.

    Raises:
        InputError and its kin: a name, option or file that is not there, or a combination that cannot be.
    """
    everything: list[Cell | CurveCell] = [*plan(config), *curve_cells(config)]
    for pair in pairs(config):
        _check_pair(pair, config)
    for cell in everything:
        if isinstance(cell, Cell):
            resolve(cell.suite, Threat.parse(cell.threat))
        else:
            resolve(cell.curve.suite, cell.curve.threats[0])
    _check_distinct(everything, config)
    attacked = {cell.data for cell in everything}
    trained = {cell.pair.train for cell in everything if cell.pair.train and not cell.pair.as_is}
    for data in sorted(attacked | trained):
        _check_data(data)
    for data in sorted(attacked):
        check_groups(data, config.groups)
    return everything


def _check_pair(pair: Pair, config: SweepConfig) -> None:
    made = make_defense(str(pair.defense.name), **pair.defense.options)
    training_options(config.recipe, pair.defense.training)
    _check_model(str(pair.model.spec), pair.model.weights)
    if len(pair.model.title) > LONGEST_NAME:
        raise InputError(
            f"models: expected a name of at most {LONGEST_NAME} characters, as a record holds it, got "
            f"{len(pair.model.title)}, {pair.model.title[:40]!r}...; give the model a shorter `name`"
        )
    if isinstance(made, Wrapper):
        _check_behind(pair, made)
    if pair.as_is:
        return
    if pair.train is None:
        raise InputError(f"sweep: defense {pair.defense.name!r} needs samples to train on; give `train`")
    made.check(None if pair.defense.threat is None else Threat.parse(pair.defense.threat))


def _check_distinct(everything: list[Cell | CurveCell], config: SweepConfig) -> None:
    """That no two cells come to the same, however they are written: their results would be filed as one."""
    every = {cell.pair.identity: cell.pair for cell in everything}
    models = {identity: _meaning(pair, config) for identity, pair in every.items()}
    searches: dict[tuple[str, ...], list[Any]] = {}
    known: dict[str, Cell | CurveCell] = {}
    for cell in everything:
        _, *how = _written(cell)
        if tuple(how) not in searches:  # an attack may name files, which are read
            searches[tuple(how)] = _search(cell)
        what = [models[cell.pair.identity], searches[tuple(how)], cell.data, cell.limit, cell.seed]
        before = known.setdefault(json.dumps(what, default=str), cell)
        if before is not cell:
            written = zip(_written(before), _written(cell), strict=True)
            alike = ", ".join(f"{new} is {old}" for old, new in written if old != new)
            said = f": {alike}, written otherwise" if alike else ""
            raise InputError(f"sweep: {cell.title} is there twice{said}; give it once")


def _meaning(pair: Pair, config: SweepConfig) -> list[Any]:
    """Equal for pairs whose models are the same, under one title, as far as a plan can tell."""
    model, made = pair.model, make_defense(str(pair.defense.name), **pair.defense.options)
    trained: list[Any] = []
    if not (pair.as_is and model.weights is not None):
        options = asdict(training_options(config.recipe, pair.defense.training))
        threat = pair.defense.threat and size_of(Threat.parse(pair.defense.threat))
        trained = [pair.train, pair.seed, threat, options]
    return [model.title, model.spec, model.weights, model.normalize, made.title, made.parameters, trained]


def _search(cell: Cell | CurveCell) -> list[Any]:
    """What a cell's samples are attacked with, and how far it may go."""
    if isinstance(cell, CurveCell):
        threats = cell.curve.threats
        return [[size_of(threat), stages_identity(cell.curve.suite, threat)] for threat in threats]
    threat = Threat.parse(cell.threat)
    return [size_of(threat), stages_identity(cell.suite, threat), cell.cascade]


def _written(cell: Cell | CurveCell) -> list[str]:
    """What a plan may write in several ways, as this one does."""
    entry = cell.pair.defense.model_dump(exclude_defaults=True)
    if isinstance(cell, CurveCell):
        threat, suite = f"{cell.curve.norm} at {cell.curve.eps}", cell.curve.suite
    else:
        threat, suite = cell.threat, cell.suite
    return [f"defense {entry}", f"threat {threat}", f"suite {suite!r}"]


def _check_behind(pair: Pair, made: Wrapper) -> None:
    """Two transforms, or one that trains nothing in front of initial weights though there are samples to train on."""
    spec, name = str(pair.model.spec), pair.defense.name
    if made.stacked:
        raise InputError(
            f"sweep: defense {name!r} puts more than one input transform in front of the model, and a record is of one; "
            f"give {made.of!r}"
        )
    if not made.of and pair.train is not None and pair.model.weights is None and untrained(spec):
        raise InputError(
            f"sweep: defense {name!r} takes the model as it is, and {spec} has nothing but initial weights; give the "
            f"model `weights`, or train it first: 'none+{name}', 'pgd-at+{name}' or another one before the +"
        )


def _check_model(spec: str, weights: str | None) -> None:
    form, (_, _, name) = model_form(spec), spec.partition(":")
    if form == "builtin":
        _ = MODELS[name]
    elif form in GRAPHS:
        _check_file("model", name)
    elif form == ".py":
        _check_file("model", spec.rpartition(":")[0])
    if weights is not None:
        _check_file("weights", weights)


def _check_data(spec: str) -> None:
    form, (_, _, rest) = data_form(spec), spec.partition(":")
    if form == "builtin":
        name, _, split = rest.partition(":")
        shipped = DATASETS[name].__module__.startswith("robust.")  # others may have any splits
        if shipped and split and split not in SPLITS:
            raise InputError(f"data builtin:{name}: expected split {' or '.join(SPLITS)}, got {split!r}")
    elif form == "folder" and not Path(rest).is_dir():
        raise InputError(f"data: no such folder {rest}; a relative one is looked for in {Path.cwd()}")
    elif form in ("folder", "hf", "torchvision"):
        return  # looked into when their turn comes
    elif not re.search(r"\{.*\}", spec):
        _check_file("data", spec)


def _check_file(what: str, path: str) -> None:
    if not Path(path).is_file():
        raise InputError(f"{what}: no such file {path}; a relative one is looked for in {Path.cwd()}")
