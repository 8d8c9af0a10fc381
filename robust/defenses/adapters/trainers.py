"""ART's trainers: their gradients on the one training loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BeforeValidator
from torch import Tensor, nn
from torch.nn import functional

from robust.attacks.adapters.isolation import private_randomness, quiet
from robust.attacks.adapters.options import read_option
from robust.defenses.adapters.art import ART, Peer, make_class
from robust.defenses.adapters.augmentations import class_count, draws_key
from robust.defenses.base import Defense
from robust.defenses.devices import world_size
from robust.defenses.inner import grown, unwrapped
from robust.defenses.options import Batch
from robust.defenses.training import Trainer
from robust.errors import UnsupportedError
from robust.sources import Samples
from robust.threat import Threat

_NORMS = {"linf": math.inf, "l2": 2, "l1": 1}
_PROXY_RATE = 0.01  # of the step that tells AWP a direction; its length is gamma's


def _text(like: object) -> BeforeValidator:
    return BeforeValidator(lambda value: read_option(value, like=like, whole=type(like) is int))


@dataclass(frozen=True)
class ArtTrainer(Defense):
    """A trainer of ART; subclasses are made by name.

    ART attacks each batch and computes the gradients of its loss, in float32; the optimizer, the schedule,
    validation, checkpoints and guards are this package's. eps grows as for the objectives here.
    """

    needs_threat = True
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    library: ClassVar[ART]
    peer: ClassVar[Peer]
    label: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]

    warmup: Annotated[float, _text(0.3)] = 0.3

    def __post_init__(self) -> None:
        self.require("warmup", 0 <= self.warmup <= 1, "a share in [0, 1]")
        if getattr(self, "max_iter", 1) < 1:
            self.require("max_iter", False, "at least 1")

    def fit(self, model: nn.Module, data: Samples, *, threat: Threat | None, trainer: Trainer) -> nn.Module:
        self.check(threat)
        assert threat is not None
        if threat.norm not in self.norms:
            raise UnsupportedError(
                f"defense {self.name!r} works for {', '.join(self.norms)}, not for {threat.norm}"
            )
        if world_size() > 1:
            raise UnsupportedError(f"defense {self.name!r} trains in one process; leave --devices out")
        step = _Step(self, threat)
        return trainer.fit(model, data, step, threat=threat, title=f"{self.title} {self.parameters}")

    def trainer(self, classifier: Any, threat: Threat, rows: int) -> Any:
        """ART's trainer under a threat, for batches of so many rows."""
        options = {key: getattr(self, key) for key in self.keys}
        steps, step = getattr(self, "max_iter", 1), getattr(self, "eps_step", None)
        attack = {"eps": threat.radius, "eps_step": step or 2.5 * threat.radius / steps}
        given: dict[str, Any] = {**options, **attack, "classifier": classifier, "warmup": 0}
        if self.peer.attack:
            found = self.library.load("art.attacks.evasion").ProjectedGradientDescentPyTorch(
                classifier, norm=_NORMS[threat.norm], max_iter=steps, num_random_init=1, batch_size=rows,
                verbose=False, **attack,
            )  # fmt: skip
            given |= {"attack": found, "attacks": found}
        if self.label == "AdversarialTrainerAWPPyTorch":
            given["proxy_classifier"] = self.classifier(deepcopy(classifier.model), threat, classifier, None)
        made = self.library.call(self.label, given)
        if self.label == "AdversarialTrainerMadryPGD":
            made.attack.set_params(batch_size=rows)
        return made

    def classifier(self, model: nn.Module, threat: Threat, shape: Any, classes: int | None) -> Any:
        """The model as ART wants it.

        Args:
            shape: of a sample; or, for a proxy that takes steps of its own, the classifier that it stands for.
        """
        proxy = classes is None
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, _PROXY_RATE) if proxy else _Gathered(parameters, 0.0)
        device = next(model.parameters()).device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return self.library.load("art.estimators.classification").PyTorchClassifier(
                model=model if proxy else _Whole(model),
                loss=nn.CrossEntropyLoss() if proxy else _Heard(),
                optimizer=optimizer,
                input_shape=shape.input_shape if proxy else shape,
                nb_classes=shape.nb_classes if proxy else classes,
                clip_values=threat.bounds,
                device_type="gpu" if device.type == "cuda" else "cpu",
            )


@dataclass(frozen=True)
class AttackedTrainer(ArtTrainer):
    """A trainer of ART that is given an attack: ART's PGD.

    Args:
        max_iter: its steps.
        eps_step: their size in input units; None for 2.5 eps / max_iter.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    max_iter: Annotated[int, _text(10)] = 10
    eps_step: Annotated[Any, BeforeValidator(lambda v: read_option(v, like=None, whole=False))] = None


class _Whole(nn.Module):
    """A model as one module: of an nn.Sequential ART would ask for the output of every layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return logits


class _Gathered(torch.optim.SGD):
    """An optimizer that takes no step: the gradients are left for the loop's own."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        return None


class _Heard(nn.CrossEntropyLoss):
    """Cross-entropy that remembers its last value."""

    last: Tensor | None = None

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        value = super().forward(logits, y)
        self.last = value.detach()
        return value


class _Step:
    """A batch's loss, whose gradients are those that ART's trainer computes for it."""

    def __init__(self, defense: ArtTrainer, threat: Threat) -> None:
        self._defense, self._threat = defense, threat
        self._classifier: Any = None
        self._classes = 0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        module = unwrapped(model)
        if self._classifier is None:
            shape, self._classes = tuple(batch.x.shape[1:]), class_count(model, batch)
            with _as_it_was(module):
                self._classifier = self._defense.classifier(module, self._threat, shape, self._classes)
        threat = grown(self._threat, batch, self._defense.warmup)
        labels = functional.one_hot(batch.y, self._classes).float()
        x, y = (part.cpu().contiguous().numpy() for part in (batch.x, labels))
        in_full = torch.autocast(batch.x.device.type, enabled=False)
        with _as_it_was(module), private_randomness(draws_key(batch)), quiet(), in_full:
            trainer = self._defense.trainer(self._classifier, threat, len(x))
            trainer.fit(x, y, batch_size=len(x), nb_epochs=1)
        return _with_gradients(module, self._classifier.loss.last)


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Weights and modes are put back afterwards: ART moves and switches them."""
    modes = [(module, module.training) for module in model.modules()]
    weights = [(p, p.detach().clone()) for p in model.parameters()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for parameter, old in weights:
                parameter.copy_(old)


def _with_gradients(model: nn.Module, value: Tensor) -> Tensor:
    """A scalar of this value whose gradients are those that the parameters hold; they are taken from them."""
    parts = []
    for parameter in model.parameters():
        if parameter.grad is not None:
            parts.append((parameter * parameter.grad).sum())
            parameter.grad = None
    linear = torch.stack(parts).sum()
    return value + (linear - linear.detach())


def trainer_of(library: ART, name: str) -> type[ArtTrainer]:
    """The trainer of that name as a defense."""
    if library.peers[name].attack:
        return make_class(library, name, AttackedTrainer)
    return make_class(library, name, ArtTrainer, **({"eps_step": None} if "PGD" in name else {}))
