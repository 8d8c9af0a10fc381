"""The one training loop, on Lightning Fabric: validation, best weights, checkpoints, resume, guards."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from robust.attacks import PGD
from robust.defenses.checkpoint import Checkpoint
from robust.defenses.data import OnDevice, batches, check_data, count_classes, crop_and_flip, split_validation
from robust.defenses.options import Batch, EpochResult, Objective, TrainingOptions
from robust.errors import InputError, ModelError, TrainingError
from robust.oracle import Oracle
from robust.rng import Streams
from robust.sources import Samples, model_sha256
from robust.target import Target
from robust.threat import Threat

_PATIENCE: Final = 3  # epochs without skill, after it was better, that count as collapse
_CHANCE_SLACK: Final = 0.02  # above 1 / classes, still no skill

Ticks = Callable[[int, int], None]


class Trainer:
    """Trains copies of models; see `fit`.

    Args:
        options: how to train.
        validation: held-out samples; None splits a tenth (at most 1,000) off the training data.
        out: folder for checkpoints and history.json; None keeps nothing.
        resume: go on from a checkpoint in `out`; one that was made with another model, data, objective
            or options is an error. Without, it is replaced.
        progress: called after every epoch, when its checkpoint is written.
        ticks: called after every batch with (done, total) of the epoch.

    Attributes:
        history: an entry per epoch of the latest `fit`.
    """

    def __init__(
        self,
        options: TrainingOptions,
        *,
        validation: Samples | None = None,
        out: Path | None = None,
        resume: bool = True,
        progress: Callable[[EpochResult], None] | None = None,
        ticks: Ticks | None = None,
    ) -> None:
        self.options, self.validation, self.out, self.resume = options, validation, out, resume
        self.history: list[EpochResult] = []
        self._progress, self._ticks = progress, ticks

    @property
    def best(self) -> EpochResult | None:
        """The epoch whose weights `fit` returned; None before."""
        return max(reversed(self.history), key=lambda result: result.score, default=None)

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

        Raises:
            InputError: before the first epoch, where model, data, threat and options do not fit, or the
                checkpoint is another run's.
            TrainingError: a loss that is not finite, or a constant prediction.
        """
        self.history = []
        train, held_out = (
            (data, self.validation)
            if self.validation is not None
            else split_validation(data, self.options.seed)
        )
        check_data(train, held_out, threat, augment=self.options.augment)
        run = _Fit(copy.deepcopy(model), train, held_out, objective, threat, self.options, rate)
        checkpoint = Checkpoint(self.out, stage, run.identity(model, title)) if self.out is not None else None
        if checkpoint and self.resume:
            run.restore(checkpoint)
        self.history = run.history
        run.guard()
        for epoch in range(len(run.history) + 1, self.options.epochs + 1):
            run.epoch(epoch, self._ticks)
            if checkpoint:
                checkpoint.keep(run.state(), run.history)
            if self._progress:
                self._progress(run.history[-1])
            run.guard()
        return run.best_model()


class _Fit:
    """One model being trained."""

    def __init__(
        self,
        model: nn.Module,
        train: Samples,
        held_out: Samples,
        objective: Objective,
        threat: Threat | None,
        options: TrainingOptions,
        rate: float,
    ) -> None:
        self.options, self.objective, self.threat = options, objective, threat
        self.rate = rate
        self.validator = PGD(steps=options.validation_steps)
        if threat is not None:
            self.validator.check(threat)
        self.device = Target(model, device=options.device).device
        self.fabric = _fabric(self.device, options)
        self.model = model.to(self.device).train()
        with _private_random(self.device, options.seed):
            self.classes = count_classes(self.model, train, held_out, self.device)
        self.train, self.held_out = OnDevice(train, self.device), OnDevice(held_out, self.device)
        self.optimizer = _optimizer(self.model, options)
        self.net, self.fabric_optimizer = self.fabric.setup(self.model, self.optimizer)
        self.history: list[EpochResult] = []
        self.best = _copy_state(self.model)
        self.constant = self.unskilled = 0  # epochs in a row: a single class predicted; at chance

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

    def state(self) -> dict[str, Any]:
        """All that the epochs to come depend on."""
        return {
            "model": self.model.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "constant": self.constant,
            "unskilled": self.unskilled,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from the checkpoint, if there is one."""
        found = checkpoint.load(self.device)
        if found is None:
            return
        state, self.history = found
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.best, self.constant, self.unskilled = state["best"], state["constant"], state["unskilled"]

    def epoch(self, epoch: int, ticks: Ticks | None) -> None:
        """Train and validate one epoch."""
        start = time.perf_counter()
        seed = int.from_bytes(hashlib.sha256(f"{self.options.seed}/{epoch}".encode()).digest()[:7], "little")
        with _private_random(self.device, seed):
            loss = self._train(epoch, seed, ticks)
            clean, robust = self._validate()
        rate = self.optimizer.param_groups[0]["lr"]
        seconds = time.perf_counter() - start
        result = EpochResult(epoch, self.options.epochs, loss, clean, robust, rate, seconds)
        if result.score >= max((r.score for r in self.history), default=-1.0):
            self.best = _copy_state(self.model)
        self.history.append(result)

    def _train(self, epoch: int, seed: int, ticks: Ticks | None) -> float:
        """One pass over the training data; returns the mean loss."""
        parts = batches(len(self.train), self.options.batch_size, seed, self.device)
        losses = torch.zeros(len(parts), device=self.device)  # read once an epoch: no wait per batch
        for i, rows in enumerate(parts):
            progress = (epoch - 1 + i / len(parts)) / self.options.epochs
            losses[i] = self._step(rows, epoch, progress)
            if ticks:
                ticks(i + 1, len(parts))
        if not bool(losses.isfinite().all()):
            bad = int((~losses.isfinite()).nonzero()[0])
            raise TrainingError(
                f"training diverged: loss is not finite in epoch {epoch}, batch {bad + 1} of {len(parts)}; lower "
                f"learning_rate (now {self.options.learning_rate:g}) or set gradient_clip"
            )
        return float(losses.mean())

    def _step(self, rows: Tensor, epoch: int, progress: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * self.rate * _rate(self.options.schedule, progress)
        x, y, ids = self.train.x(rows), self.train.y[rows], self.train.ids[rows]
        if self.options.augment:
            x = crop_and_flip(x, Streams(self.options.seed, ids, ("augment", epoch)))
        with self.fabric.autocast():  # the inner attack too, which goes round Fabric's wrapper
            loss = self.objective(self.net, Batch(x, y, ids, self.options.seed, epoch, progress))
        self.fabric_optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        if self.options.gradient_clip is not None:
            self.fabric.clip_gradients(self.net, self.fabric_optimizer, max_norm=self.options.gradient_clip)
        self.fabric_optimizer.step()
        return loss.detach()

    def _validate(self) -> tuple[float, float | None]:
        """Clean accuracy, and robust accuracy under PGD where there is a threat."""
        right = standing = 0
        predicted = torch.zeros(self.classes, dtype=torch.bool, device=self.device)
        with Target(self.model, device=self.device) as target:
            for rows in torch.arange(len(self.held_out), device=self.device).split(256):
                x, y, ids = self.held_out.x(rows), self.held_out.y[rows], self.held_out.ids[rows]
                with torch.no_grad():
                    prediction = target.logits(x).argmax(1)
                predicted[prediction] = True
                good = prediction == y
                right += int(good.sum())
                if self.threat is not None and bool(good.any()):
                    oracle = Oracle(target, x[good], y[good], ids[good], self.threat)
                    self.validator(oracle)
                    standing += int((~(oracle.ledger.broken | oracle.ledger.failed)).sum())
        n = len(self.held_out)
        is_constant = int(predicted.sum()) == 1 and right < n
        self.constant = self.constant + 1 if is_constant else 0
        at_chance = is_constant or right / n <= 1 / self.classes + _CHANCE_SLACK
        self.unskilled = self.unskilled + 1 if at_chance else 0
        return right / n, None if self.threat is None else standing / n

    def guard(self) -> None:
        """Raise TrainingError where the model has lost, or never found, any skill."""
        if not self.history:
            return
        over = len(self.history) == self.options.epochs
        was_better = (
            max(r.clean_accuracy for r in self.history) > min(2, (1 + self.classes) / 2) / self.classes
        )
        lost = was_better and self.unskilled >= _PATIENCE
        if lost or (over and self.constant):
            what = (
                "every validation sample gets the same class"
                if self.constant
                else "it is right by chance only"
            )
            raise TrainingError(
                f"training collapsed: after epoch {len(self.history)} {what} (clean accuracy "
                f"{self.history[-1].clean_accuracy:.1%}); lower learning_rate or eps, or raise warmup"
            )

    def best_model(self) -> nn.Module:
        """The model with the weights of its best epoch, in eval mode."""
        self.model.load_state_dict(self.best)
        return self.model.eval()


def _fabric(device: torch.device, options: TrainingOptions) -> Fabric:
    if options.precision == "16-mixed" and device.type != "cuda":
        raise InputError(
            f"training: precision '16-mixed' needs CUDA, and the device is {device}; use 'bf16-mixed' or '32-true'"
        )
    devices = [device.index or 0] if device.type == "cuda" else 1
    return Fabric(accelerator=device.type, devices=devices, precision=options.precision)


@contextmanager
def _private_random(device: torch.device, seed: int) -> Iterator[None]:
    """Torch's generators seeded inside, as they were afterwards; those of other devices untouched."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _optimizer(model: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ModelError("model: has no parameter to train; unfreeze some with model.requires_grad_(True)")
    rate, decay = options.learning_rate, options.weight_decay
    if options.optimizer == "adam":
        return torch.optim.AdamW(parameters, rate, weight_decay=decay)
    return torch.optim.SGD(parameters, rate, momentum=0.9, nesterov=True, weight_decay=decay)


def _rate(schedule: str, progress: float) -> float:
    """Share of the learning rate at this point of the training."""
    if schedule == "constant":
        return 1.0
    return max(progress, 0.01) / 0.25 if progress < 0.25 else max((1 - progress) / 0.75, 1e-3)


def _copy_state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}
