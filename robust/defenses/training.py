"""The one training loop, on Lightning Fabric: validation, best weights, checkpoints, resume, guards."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.hooks import RemovableHandle

from robust.defenses import guards
from robust.defenses.checkpoint import Checkpoint
from robust.defenses.data import (
    OnDevice,
    check_data,
    count_classes,
    crop_and_flip,
    join,
    mixed_batches,
    own_copy,
    split_validation,
)
from robust.defenses.devices import Devices, private_random
from robust.defenses.options import Batch, EpochResult, Objective, TrainingOptions
from robust.defenses.schedules import rate as rate_at
from robust.defenses.validation import Figures, Validator
from robust.errors import ModelError
from robust.rng import Streams
from robust.sources import Samples, model_sha256
from robust.target import Target
from robust.threat import Threat

_DAMPED: Final = 0.5  # factor on learning rate and single steps after catastrophic overfitting

Ticks = Callable[[int, int], None]
Weights = dict[str, Tensor]


class Trainer:
    """Trains copies of models; see `fit`.

    Started by torchrun or `robust harden --devices N`, every process trains on its share of each batch,
    and the first of them writes the files.

    Args:
        options: how to train.
        validation: held-out samples; None splits a tenth (at most 1,000) off the training data.
        extra: further training samples, which make up `options.extra_share` of every batch.
        out: folder for checkpoints and history.json; None keeps nothing.
        resume: go on from a checkpoint in `out`; one that was made with another model, data, objective
            or options is an error. Without, it is replaced.
        ready: called before the first epoch of a `fit`, when all that it was given has been checked.
        progress: called after every epoch, when its checkpoint is written.
        ticks: called after every batch with (done, total) of the epoch.

    Attributes:
        history: an entry per epoch of the latest `fit`.
        last: weights after the last epoch of the latest `fit`, where it returned the best epoch's.
    """

    def __init__(
        self,
        options: TrainingOptions,
        *,
        validation: Samples | None = None,
        extra: Samples | None = None,
        out: Path | None = None,
        resume: bool = True,
        ready: Callable[[], None] | None = None,
        progress: Callable[[EpochResult], None] | None = None,
        ticks: Ticks | None = None,
    ) -> None:
        self.options, self.validation, self.extra = options, validation, extra
        self.out, self.resume = out, resume
        self.history: list[EpochResult] = []
        self.last: Weights = {}
        self._ready, self._progress, self._ticks = ready, progress, ticks
        self._by_clean = False

    @property
    def best(self) -> EpochResult | None:
        """The epoch whose weights `fit` returned; None before."""
        kept = [result for result in reversed(self.history) if not result.rolled_back]
        return max(kept, key=lambda result: result.score(by_clean=self._by_clean), default=None)

    def fit(
        self,
        model: nn.Module,
        data: Samples,
        objective: Objective,
        *,
        threat: Threat | None,
        title: str,
        stage: str = "model",
        rate: float = 1.0,
        replays: int = 1,
        by_clean: bool = False,
    ) -> nn.Module:
        """Train a copy of the model and return its best epoch's weights, in eval mode on the device.

        An interrupted run goes on at the last whole epoch and ends with the same weights (on a CPU bit
        for bit): shuffles, inner attacks and dropout are keyed by seed and epoch. The global random
        state stays as it was. Parameters that are frozen in the given model stay frozen.

        Args:
            model: gives logits (N, C); stays as it was.
            data: training samples.
            objective: loss of a batch; the model it gets is in train mode.
            threat: every epoch is validated under it by PGD; None validates clean accuracy only.
            title: names objective and parameters; a checkpoint under another is not gone on from.
            stage: names the checkpoint, where a defense trains several models in turn.
            rate: factor on the learning rate, for objectives whose gradients have another scale.
            replays: how often every batch is trained on in a row.
            by_clean: the best epoch is the one with the best clean accuracy, threat or not, and none is
                undone: for objectives that do not train against the threat.

        Raises:
            InputError: before the first epoch, where model, data, threat and options do not fit, or the
                checkpoint is another run's.
            TrainingError: a loss that is not finite, or a constant prediction.
        """
        self.history = []
        held_out = self.validation
        if held_out is None:
            data, held_out = split_validation(data, self.options.seed)
        check_data(data, held_out, threat, augment=self.options.augment, extra=self.extra)
        run = _Fit(
            model, data, held_out, self.extra, objective, threat, self.options, rate, replays, by_clean
        )
        self._by_clean = by_clean
        checkpoint = Checkpoint(self.out, stage, run.identity(model, title)) if self.out is not None else None
        if checkpoint and self.resume:
            run.restore(checkpoint)
        self.history = run.history
        if self._ready:
            self._ready()
        run.check_skill()
        for epoch in range(len(run.history) + 1, self.options.epochs + 1):
            run.epoch(epoch, self._ticks)
            if checkpoint and run.devices.is_first:
                checkpoint.keep(run.state(), run.history)
            if self._progress:
                self._progress(run.history[-1])
            run.check_skill()
        self.last = _copy_state(run.judged)
        return run.best_model()

    def copy(self, model: nn.Module, data: Samples, threat: Threat | None) -> nn.Module:
        """A copy of the model in eval mode on the device, checked against the data, without training.

        Raises:
            InputError: model, data and threat do not fit.
        """
        check_data(data, data, threat, augment=False)
        device = Devices(self.options).device
        copied = own_copy(model).to(device).eval()
        count_classes(copied, [data], device)
        self.history = []
        return copied


class _Fit:
    """One model being trained."""

    def __init__(
        self,
        model: nn.Module,
        train: Samples,
        held_out: Samples,
        extra: Samples | None,
        objective: Objective,
        threat: Threat | None,
        options: TrainingOptions,
        rate: float,
        replays: int,
        by_clean: bool = False,
    ) -> None:
        self.options, self.objective, self.rate, self.replays = options, objective, rate, replays
        self.count, self.extra = len(train), 0 if extra is None else len(extra)
        self.threat, self.by_clean = threat, by_clean
        self.devices = Devices(options)
        self.device = self.devices.device
        model = own_copy(model).to(self.device).train()
        self.model = model.to(memory_format=torch.channels_last) if options.channels_last else model
        parts = [part for part in (train, held_out, extra) if part is not None]
        with private_random(self.device, options.seed):
            classes = count_classes(self.model, parts, self.device)
            self.copied = _with_copies(self.model, train, self.device)
        self.train = OnDevice(join(train, extra), self.device)
        self.held_out = OnDevice(held_out, self.device)
        self.validator = Validator(
            self.held_out, threat, options.validation_steps, classes, self.devices.share
        )
        self.optimizer = _optimizer(self.model, options)
        self.net, self.fabric_optimizer = self.devices.setup(self.model, self.optimizer)
        averaging = get_ema_multi_avg_fn(options.ema) if options.ema is not None else None
        with torch.no_grad():  # see own_copy
            self.average = (
                AveragedModel(self.model, multi_avg_fn=averaging, use_buffers=True) if averaging else None
            )
        self.skill = guards.Skill(classes, len(held_out))
        self.history: list[EpochResult] = []
        self.damping = 1.0
        self.best = _copy_state(self.judged)
        self.sound = copy.deepcopy(self._learner())  # what is gone back to

    @property
    def judged(self) -> nn.Module:
        """What is validated and returned: the averaged model, where there is one."""
        return self.model if self.average is None else self.average.module

    # -- state ------------------------------------------------------------------------------------

    def identity(self, initial: nn.Module, title: str) -> dict[str, str]:
        """What a checkpoint must have been made with to be gone on from."""
        options = {key: repr(value) for key, value in asdict(self.options).items() if key != "device"}
        return {
            "defense": title,
            "rate": repr(self.rate),
            "threat": str(self.threat and (str(self.threat), self.threat.bounds)),
            "model": model_sha256(initial),
            "data": self.train.samples.sha256,
            "validation": self.held_out.samples.sha256,
            **options,
        }

    def _learner(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }

    def _set_learner(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def state(self) -> dict[str, Any]:
        """All that the epochs to come depend on."""
        return {
            **self._learner(),
            "best": self.best,
            "sound": self.sound,
            "damping": self.damping,
            "precision": self.devices.fabric.strategy.precision.state_dict(),
            "constant": self.skill.constant,
            "unskilled": self.skill.unskilled,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from the checkpoint, if there is one."""
        found = checkpoint.load(self.device)
        if found is None:
            return
        state, self.history = found
        self._set_learner(state)
        self.devices.fabric.strategy.precision.load_state_dict(state["precision"])
        self.best, self.sound, self.damping = state["best"], state["sound"], state["damping"]
        self.skill.constant, self.skill.unskilled = state["constant"], state["unskilled"]

    # -- an epoch ---------------------------------------------------------------------------------

    def epoch(self, epoch: int, ticks: Ticks | None) -> None:
        """Train and validate one epoch."""
        start = time.perf_counter()
        seed = int.from_bytes(hashlib.sha256(f"{self.options.seed}/{epoch}".encode()).digest()[:7], "little")
        with private_random(self.device, seed):
            loss = self._train(epoch, seed, ticks)
            self.devices.share_buffers(self.model, self.judged)
            figures = self._validate()
        learning_rate = self.optimizer.param_groups[0]["lr"]
        result = EpochResult(
            epoch,
            self.options.epochs,
            loss,
            figures.clean,
            figures.robust,
            learning_rate,
            time.perf_counter() - start,
            figures.fgsm,
            figures.alignment,
        )
        self.history.append(self._judge(result))

    def _judge(self, result: EpochResult) -> EpochResult:
        """Keep a best epoch; undo one of catastrophic overfitting, and take smaller steps from there."""
        if not self.by_clean and guards.overfits_catastrophically(result, self.history):
            self._set_learner(self.sound)
            self.damping *= _DAMPED
            return replace(result, rolled_back=True)
        kept = [r.score(by_clean=self.by_clean) for r in self.history if not r.rolled_back]
        if result.score(by_clean=self.by_clean) >= max(kept, default=-1.0):
            self.best = _copy_state(self.judged)
            if self.threat is not None:
                self.sound = copy.deepcopy(self._learner())
        return result

    def _train(self, epoch: int, seed: int, ticks: Ticks | None) -> float:
        """One pass over the training data; returns the mean loss."""
        options = self.options
        parts = mixed_batches(
            self.count, self.extra, options.batch_size, options.extra_share, seed, self.device,
            least=2 * self.devices.share[1],
        )  # fmt: skip
        losses = torch.zeros(len(parts), device=self.device)  # read once an epoch: no wait per batch
        for i, rows in enumerate(parts):
            progress = (epoch - 1 + i / len(parts)) / options.epochs
            losses[i] = self._step(self.devices.part(rows), epoch, progress)
            if ticks:
                ticks(i + 1, len(parts))
        losses = self.devices.mean(losses)
        guards.finite(losses, epoch, options.learning_rate)
        return float(losses.mean())

    def _step(self, rows: Tensor, epoch: int, progress: float) -> Tensor:
        options = self.options
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * self.rate * self.damping * rate_at(options, progress)
        x, y, ids = self.train.x(rows), self.train.y[rows], self.train.ids[rows]
        if options.augment:
            x = crop_and_flip(x, Streams(options.seed, ids, ("augment", epoch)))
        if options.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        batch = Batch(x, y, ids, options.seed, epoch, progress, options.label_smoothing, self.damping)
        losses = [self._update(replace(batch, replay=i)) for i in range(self.replays)]
        return losses[-1]

    def _update(self, batch: Batch) -> Tensor:
        """One step of the optimizer; returns the loss before it."""
        fabric = self.devices.fabric
        with batch.undo:
            with fabric.autocast():  # the inner attack too, which goes round Fabric's wrapper
                loss = self.objective(self.net, batch)
            self.fabric_optimizer.zero_grad(set_to_none=True)
            fabric.backward(loss)
        if self.options.gradient_clip is not None:
            fabric.clip_gradients(self.net, self.fabric_optimizer, max_norm=self.options.gradient_clip)
        self.fabric_optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss.detach()

    def _validate(self) -> Figures:
        counts = self.devices.total(self.validator.counts(self.judged, self.device))
        figures = self.validator.figures(counts)
        self.skill.note(figures.clean, is_constant=figures.is_constant)
        return figures

    def check_skill(self) -> None:
        """Raise TrainingError where the model has lost, or never found, any skill."""
        self.skill.check(self.history, over=len(self.history) == self.options.epochs)

    def best_model(self) -> nn.Module:
        """The model with the weights of its best epoch, in eval mode."""
        self.model.load_state_dict(self.best)
        if self.copied is not None:
            self.copied.remove()
        return self.model.eval()


def _with_copies(model: nn.Module, data: Samples, device: torch.device) -> RemovableHandle | None:
    """Have a model that writes into its input get a copy of it, as in an evaluation: objectives ask about a point twice.

    Returns:
        the hook to remove, where there is one.
    """
    with Target(model, device=device) as target, torch.no_grad():
        target.logits(data.rows([0, 0]).to(device))
    return model.register_forward_pre_hook(_copy_input) if target.overwrites else None


def _copy_input(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return given[0].clone(), *given[1:]


def _optimizer(model: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ModelError("model: has no parameter to train; unfreeze some with model.requires_grad_(True)")
    rate, decay = options.learning_rate, options.weight_decay
    if options.optimizer == "adam":
        return torch.optim.AdamW(parameters, rate, weight_decay=decay)
    return torch.optim.SGD(parameters, rate, momentum=0.9, nesterov=True, weight_decay=decay)


def _copy_state(model: nn.Module) -> Weights:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}
