"""From a model to a hardened one, with the evidence before and after."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from robust.attacks.base import build
from robust.defenses import RECIPES, Defense, EpochResult, Trainer, TrainingOptions, make_defense
from robust.errors import StoreError
from robust.evaluation import Suite, evaluate
from robust.report import Report
from robust.run import Progress
from robust.sources import as_samples, save_weights
from robust.threat import Threat


@dataclass(frozen=True)
class Hardened:
    """What hardening gave.

    Attributes:
        model: the hardened copy, in eval mode.
        history: an entry per epoch: loss, clean and robust validation accuracy, learning rate, seconds.
        before, report: evaluations on the validation data before and after; None without such data or
            without a threat.
    """

    model: nn.Module
    history: list[EpochResult]
    before: Report | None
    report: Report | None


def harden(
    model: nn.Module,
    data: Any,
    *,
    defense: str | Defense | Mapping[str, Any] = "pgd-at",
    threat: str | Threat | None = None,
    validation: Any = None,
    out: str | Path | None = None,
    recipe: str = "mnist",
    training: Mapping[str, Any] | None = None,
    suite: Suite = "standard",
    seed: int = 0,
    device: str = "auto",
    resume: bool = True,
    progress: Callable[[EpochResult], None] | None = None,
    ticks: Callable[[int, int], None] | None = None,
    attack_progress: Callable[[Progress], None] | None = None,
) -> Hardened:
    """Train a hardened copy of a model. The given one stays as it was.

    Args:
        model: module giving logits.
        data: training samples, as for `robust.evaluate`.
        defense: name, object, or {"name": ..., option: ...}.
        threat: what to harden against; some defenses need none.
        validation: held-out samples on which the model is evaluated before and after. The best epoch is
            chosen on a tenth split off from `data` instead, or the figure after would flatter.
        out: folder for weights.safetensors, history.json, config.json, checkpoints and reports.
        recipe: named training options; `training` overrides single ones.
        suite: for the evaluations before and after.
        resume: go on from the checkpoint in `out`, where there is one.
        progress, ticks, attack_progress: called per epoch, per batch (done, total), per evaluation step.

    Raises:
        InputError and its kin before the first epoch; TrainingError when training fails.
    """
    chosen = make_defense(defense)
    threat = None if threat is None else Threat.parse(threat)
    options = training_options(recipe, {**(training or {}), "seed": seed, "device": device})
    folder = None if out is None else Path(out)
    held_out = None if validation is None else as_samples(validation)
    trainer = Trainer(options, out=folder, resume=resume, progress=progress, ticks=ticks)
    hardened = chosen.fit(model, as_samples(data), threat=threat, trainer=trainer)
    if folder is not None:
        _write_config(folder, chosen, threat, options)
        save_weights(hardened, folder / "weights.safetensors")
    before = after = None
    if threat is not None and held_out is not None:
        before, after = (
            evaluate(
                net, held_out, threat=threat, suite=suite, seed=seed, device=device, progress=attack_progress
            )
            for net in (copy.deepcopy(model), hardened)
        )
        if folder is not None:
            before.save(folder / "before")
            after.save(folder / "after")
    return Hardened(hardened, trainer.history, before, after)


def training_options(recipe: str, overrides: Mapping[str, Any]) -> TrainingOptions:
    """A recipe's options with some replaced; values may be text.

    Raises:
        UnknownNameError: no such recipe.
        InputError: no such option, or a value that does not fit.
    """
    base: TrainingOptions = RECIPES[recipe]
    options: TrainingOptions = build(TrainingOptions, "training", {**asdict(base), **overrides})
    return options


def _write_config(folder: Path, defense: Defense, threat: Threat | None, options: TrainingOptions) -> None:
    config = {
        "defense": defense.name,
        "parameters": defense.parameters,
        "threat": str(threat),
        "training": asdict(options),
    }
    try:
        (folder / "config.json").write_text(json.dumps(config, indent=2, default=str), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"out: cannot write to {folder}: {error.strerror or error}") from error
