"""Tasks from the plan: what a pair's model or a cell's shard is to a worker."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from robust.defenses import make_defense
from robust.hardening import training_options
from robust.sources import named_sha256
from robust.sweep.cells import CurveCell, Origin, Pair, content_key
from robust.sweep.config import SweepConfig
from robust.sweep.finish import Open
from robust.sweep.held import Held
from robust.sweep.tasks import AttackTask, CurveTask, ModelRef, TrainTask

_CANDIDATES = 4  # samples that are looked at for each adversarial example that is to be kept


def training_key(pair: Pair, config: SweepConfig, initial: str, held: Held, origin: Origin) -> str:
    """The key of a pair's trained model.

    Args:
        initial: hash of the weights that training begins with.
        held: samples to train on; origin: of the model.
    """
    inner = pair.inner
    options = training_options(config.recipe, {"seed": pair.seed, **pair.defense.training})
    defense = make_defense(str(inner.name), **inner.options).parameters
    recipe: dict[str, Any] = {
        "model": [pair.model.spec, pair.model.normalize, origin.identity],
        "initial": initial,
        "defense": defense,
        "name": inner.name,
        "threat": pair.defense.threat,
        "train": held.sha256,
        "training": {key: value for key, value in asdict(options).items() if key != "device"},
    }
    if files := named_sha256(defense):
        recipe["files"] = files
    return content_key(recipe)


def train_task(
    pair: Pair, config: SweepConfig, ref: ModelRef, key: str, held: Held, folder: Path, token: str
) -> TrainTask:
    """The training of a pair's model."""
    return TrainTask(
        id=key,
        title=pair.title,
        model=ref,
        data=str(held.folder.resolve()),
        defense=str(pair.inner.name),
        options=pair.inner.options,
        threat=pair.defense.threat,
        recipe=config.recipe,
        training={"seed": pair.seed, **pair.defense.training},
        folder=str(folder.resolve()),
        token=token,
    )


def attack_task(opened: Open, rows: tuple[int, int], config: SweepConfig) -> AttackTask | CurveTask:
    """The shard of a cell at `rows`."""
    cell = opened.cell
    about: dict[str, Any] = {
        "id": f"{opened.key}/{rows[0]}-{rows[1]}",
        "title": cell.title,
        "model": opened.ref,
        "data": str(opened.held.folder.resolve()),
        "seed": cell.seed,
        "rows": rows,
        "batch_size": config.batch_size,
        "precision": config.precision,
    }
    if isinstance(cell, CurveCell):
        return CurveTask(threats=tuple(cell.curve.threats), suite=cell.curve.suite, **about)
    show = tuple(row for row in shown(opened.held.n, config.keep_examples) if row in range(*rows))
    return AttackTask(threat=cell.threat, suite=cell.suite, cascade=cell.cascade, show=show, **about)


def shown(n: int, keep: int) -> list[int]:
    """Rows, spread over all n, whose adversarial examples may be kept: the same whatever the shards are."""
    candidates = min(n, _CANDIDATES * keep)
    return [i * n // candidates for i in range(candidates)]
