"""From a model to a hardened one, with the evidence before and after."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor, nn

from robust.attacks.base import build, json_value
from robust.defenses import RECIPES, Defense, EpochResult, Trainer, TrainingOptions, Wrapper, make_defense
from robust.defenses.data import count_classes, own_copy
from robust.defenses.devices import rank
from robust.defenses.plots import plot_history
from robust.defenses.pseudo_labels import pseudo_labelled
from robust.devices import resolve_device
from robust.errors import DataError, InputError, StoreError, samples_of
from robust.evaluation import Suite, evaluate
from robust.files import given_path, why_unwritten
from robust.in_front import bare
from robust.leaderboard import Record, Store
from robust.leaderboard.schema import TRAINING
from robust.quantized import attackable
from robust.report import Report
from robust.rng import checked_seed
from robust.run import Progress
from robust.sources import Samples, as_samples, load, save_weights
from robust.suites import resolve
from robust.target import Target
from robust.threat import UNIT, Threat, pair_of_bounds


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
    model: nn.Module | Target,
    data: Any,
    *,
    defense: str | Defense | Mapping[str, Any] = "pgd-at",
    threat: str | Threat | None = None,
    validation: Any = None,
    extra: Any = None,
    pseudo_labels: str | nn.Module | Target | None = None,
    out: str | Path | None = None,
    recipe: str = "mnist",
    training: Mapping[str, Any] | None = None,
    suite: Suite = "standard",
    seed: int = 0,
    device: str = "auto",
    resume: bool = True,
    name: str | None = None,
    command: str | None = None,
    progress: Callable[[EpochResult], None] | None = None,
    ticks: Callable[[int, int], None] | None = None,
    attack_progress: Callable[[Progress], None] | None = None,
) -> Hardened:
    """Train a hardened copy of a model. The given one stays as it was.

    Args:
        model: module giving logits, or a Target: its scaling and normalisation are in front of the model in
            training and evaluation, and not part of the hardened model's own weights.
        data: training samples, as for `robust.evaluate`.
        defense: name, object, or {"name": ..., option: ...}; "trades+awp" wraps one in another.
        threat: what to harden against; some defenses need none. Of a plain module its bounds are those of the data; a
            Target has its own.
        validation: held-out samples on which the model is evaluated before and after. The best epoch is
            chosen on a tenth split off from `data` instead, or the figure after would flatter.
        extra: further samples, labelled (such as generated ones) or not, which make up `extra_share` of
            every batch (Wang et al. 2023, arXiv 2302.04638). With `pseudo_labels` a tensor of inputs will do.
        pseudo_labels: a trained model (module, Target or SPEC) whose predictions become the labels of `extra`
            (Carmon et al. 2019, arXiv 1905.13736).
        out: folder for weights.safetensors (the best epoch's), last.safetensors, history.json,
            config.json, checkpoints, reports, and a leaderboard record for each report. Nothing is written
            before all that was given has been checked.
        recipe: named training options; `training` overrides single ones.
        suite: for the evaluations before and after.
        seed: of all random draws. device: "auto", "cpu", "cuda" or "cuda:N".
        resume: go on from the checkpoint in `out`, where there is one.
        name: of the model in the records; its class by default.
        command: that asked for it, for the records.
        progress, ticks, attack_progress: called per epoch, per batch (done, total), per evaluation step.

    Of several processes that train together, the first one evaluates and writes.

    Raises:
        InputError and its kin before the first epoch; TrainingError when training fails.
    """
    seed = checked_seed(seed)
    _check_kinds(out, recipe, training)
    chosen = make_defense(defense)
    within = threat.bounds if isinstance(threat, Threat) else UNIT
    given = model if isinstance(model, Target) else Target(model, bounds=within, device=device)
    prepared = given.as_module()
    threat = None if threat is None else Threat.parse(threat, given.bounds)
    chosen.check(threat)
    if threat is not None:
        resolve(suite, threat)
    if extra is None and "extra_share" in (training or {}):
        raise InputError("extra_share: it is the share of extra data, and there is none; give `extra`")
    options = training_options(recipe, {**(training or {}), "seed": seed, "device": device})
    bounds = _bounds(given, threat, chosen)
    train = as_samples(data, bounds=bounds)
    with samples_of("validation"):
        held_out = None if validation is None else as_samples(validation, bounds=bounds)
    if held_out is not None:
        _check_validation(held_out, train, prepared, device)
    more = _extra(extra, pseudo_labels, bounds, device)
    folder, is_first = None if out is None else Path(out), rank() == 0
    keep = _Folder(folder if is_first else None, name or type(given.model).__name__, command)
    note = partial(keep.config, chosen, threat, options, more)
    trainer = Trainer(
        options, extra=more, out=folder, resume=resume, ready=note, progress=progress, ticks=ticks
    )
    fitted = chosen.fit(prepared, train, threat=threat, trainer=trainer)
    note()  # of a defense that trains nothing
    hardened = bare(fitted) if prepared is not given.model else fitted
    keep.weights(hardened, trainer, prefix="model." if hardened is not fitted else "")
    asked: dict[str, Any] = {"suite": suite, "seed": seed, "progress": attack_progress}
    judge = _Judge(given, device, threat, held_out if is_first else None, keep, asked)
    before = judge(own_copy(given.model), "before", _UNDEFENDED)
    after = judge(hardened, "after", _defended(chosen, threat, training or {}), whole=hardened is fitted)
    return Hardened(hardened, trainer.history, before, after)


def _bounds(given: Target, threat: Threat | None, defense: Defense) -> tuple[float, float]:
    """Lowest and highest valid value of the data: those of the model, which a threat has from it."""
    bounds = pair_of_bounds(given.bounds)
    if threat is None and isinstance(defense, Wrapper) and bounds != UNIT:
        raise InputError(
            f"threat: without one {defense.name} is for inputs in {UNIT}, the model's are in {bounds}; give a threat, from which "
            "it has them"
        )
    return bounds


def _check_validation(held_out: Samples, train: Samples, model: nn.Module, device: str) -> None:
    """Raise before any training what the evaluations could only raise after it."""
    shapes = [tuple(part.x.shape[1:]) for part in (train, held_out)]
    if shapes[0] != shapes[1]:
        raise DataError(f"validation: expected samples of the shape of data, {shapes[0]}, got {shapes[1]}")
    classes, highest = count_classes(model, [train], resolve_device(device)), int(held_out.y.max())
    if highest >= classes:
        raise DataError(
            f"validation: labels go up to {highest}, but the model has {classes} classes (0 to {classes - 1}); "
            "give samples of the classes that it is trained on"
        )


def _extra(
    extra: Any, teacher: str | nn.Module | Target | None, bounds: tuple[float, float], device: str
) -> Samples | None:
    """The extra data, labelled."""
    if extra is None:
        if teacher is not None:
            raise InputError("pseudo_labels: they are for extra data, and there is none; give `extra`")
        return None
    if teacher is not None and isinstance(extra, Tensor | np.ndarray):
        extra = (extra, np.zeros(len(extra), dtype=np.int64))
    with samples_of("extra"):
        samples = as_samples(extra, bounds=bounds)
    if teacher is None:
        return samples
    teacher = load(teacher, device=device) if isinstance(teacher, str) else teacher
    return pseudo_labelled(samples, teacher, device=device)


def listed(defense: Defense, training: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a defense as a record lists them, and the options of its training that were given."""
    given = {TRAINING: json_value(training)} if training else {}
    return {**defense.parameters, **given}


def _defended(defense: Defense, threat: Threat | None, training: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of the defense."""
    trained_threat = None if threat is None or not defense.against_threat else str(threat)
    return {"name": defense.title, "parameters": listed(defense, training), "trained_threat": trained_threat}


_UNDEFENDED: Final[Mapping[str, Any]] = {"name": "as given", "parameters": {}, "trained_threat": None}


class _Folder:
    """What hardening leaves behind; nothing without a folder."""

    def __init__(self, folder: Path | None, name: str, command: str | None) -> None:
        self.folder, self._name, self._command = folder, name, command

    def config(
        self, defense: Defense, threat: Threat | None, options: TrainingOptions, extra: Samples | None
    ) -> None:
        """Write config.json."""
        if self.folder is None:
            return
        config = {
            "defense": defense.title,
            "parameters": defense.parameters,
            "masks_gradients": defense.masks_gradients,
            "threat": None if threat is None else str(threat),
            "training": asdict(options),
            "extra": None if extra is None else extra.about,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(config, indent=2, default=str)
            (self.folder / "config.json").write_text(text, encoding="utf-8")
        except OSError as error:
            raise StoreError(f"out: cannot write to {self.folder}: {why_unwritten(error)}") from error

    def weights(self, hardened: nn.Module, trainer: Trainer, prefix: str = "") -> None:
        """Write the best epoch's weights, the last one's (without `prefix`), and the plot of the history."""
        if self.folder is None:
            return
        save_weights(hardened, self.folder / "weights.safetensors")
        if trainer.last:
            own = {
                name.removeprefix(prefix): t for name, t in trainer.last.items() if name.startswith(prefix)
            }
            save_weights(_Bag(own), self.folder / "last.safetensors")
        plot_history(trainer.history, self.folder / "history.png")

    def report(self, report: Report, part: str, defense: Mapping[str, Any]) -> None:
        """Write a report and its leaderboard record."""
        if self.folder is None:
            return
        report.save(self.folder / part)
        record = Record.from_report(report, name=self._name, defense=defense, command=self._command)
        Store(self.folder).add(record, report.verdicts)


@dataclass(frozen=True)
class _Judge:
    """Evaluates a model on the validation data and keeps the report; None without such data or without a threat.

    Attributes:
        given: what was to be hardened.
        options: of the evaluation.
    """

    given: Target
    device: str
    threat: Threat | None
    held_out: Samples | None
    keep: _Folder
    options: Mapping[str, Any]

    def __call__(
        self, net: nn.Module, part: str, defended: Mapping[str, Any], *, whole: bool = False
    ) -> Report | None:
        if self.threat is None or self.held_out is None:
            return None
        report = evaluate(self._target(net, whole=whole), self.held_out, threat=self.threat, **self.options)
        self.keep.report(report, part, defended)
        return report

    def _target(self, net: nn.Module, *, whole: bool) -> Target:
        """The model with what was in front of the given one, unless it has that inside (`whole`)."""
        given = self.given
        before = {} if whole else {key: getattr(given, key) for key in ("normalize", "size", "preprocessing")}
        return Target(
            attackable(net),
            bounds=given.bounds,
            device=self.device,
            probabilities=given.probabilities,
            **before,
        )


class _Bag(nn.Module):
    """A state dict on its own, as a module."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._state = dict(state)

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return self._state


def _check_kinds(out: Any, recipe: Any, training: Any) -> None:
    if out is not None:
        given_path("out", "a folder", out)
    if not isinstance(recipe, str):
        raise InputError(f"recipe: expected a name such as 'mnist', got {recipe!r}")
    if training is not None and not isinstance(training, Mapping):
        raise InputError(f"training: expected a mapping of options such as {{'epochs': 5}}, got {training!r}")


def training_options(recipe: str, overrides: Mapping[str, Any]) -> TrainingOptions:
    """A recipe's options with some replaced; values may be text.

    Raises:
        UnknownNameError: no such recipe.
        InputError: no such option, or a value that does not fit.
    """
    base: TrainingOptions = RECIPES[recipe]
    options: TrainingOptions = build(TrainingOptions, "training", {**asdict(base), **overrides})
    return options
