"""ART's augmentations: training on batches that its training-time preprocessors have changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from robust.attacks.adapters.isolation import private_randomness, quiet
from robust.defenses.adapters.art import ART, Peer, make_class
from robust.defenses.inner import clean_logits
from robust.defenses.objective import ObjectiveDefense, Step
from robust.defenses.options import Batch
from robust.errors import InputError
from robust.rng import Streams
from robust.threat import Threat


def draws_key(batch: Batch) -> int:
    """Seed of what a library draws for a batch: 32 bits."""
    return (
        Streams.key(batch.seed, ("art", batch.epoch, batch.replay, int(batch.ids[0]))) & 0xFFFFFFFF
    )  # all that NumPy's generator takes


def class_count(model: nn.Module, batch: Batch) -> int:
    """How many classes a model has, by a pass of one sample."""
    one = replace(batch, x=batch.x[:1], y=batch.y[:1], ids=batch.ids[:1])
    return clean_logits(model, one).shape[1]


@dataclass(frozen=True)
class Augmentation(ObjectiveDefense):
    """Cross-entropy on batches whose samples and labels ART has changed; subclasses are made by name."""

    library: ClassVar[ART]
    peer: ClassVar[Peer]
    label: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        self._made(10, None)

    def _made(self, classes: int, threat: Threat | None) -> Any:
        options = {key: getattr(self, key) for key in self.keys}
        bounds = None if threat is None else threat.bounds
        return self.library.call(
            self.label, {**options, "num_classes": classes, "clip_values": bounds, "channels_first": True}
        )

    def step(self, threat: Threat | None) -> Step:
        made: list[tuple[Any, int]] = []
        labels: list[Tensor] = []

        def points(model: nn.Module, batch: Batch) -> Tensor:
            if not made:
                classes = class_count(model, batch)
                made.append((self._made(classes, threat), classes))
            preprocessor, classes = made[0]
            y = functional.one_hot(batch.y, classes).float()
            try:
                with private_randomness(draws_key(batch)), quiet():
                    x, y = preprocessor(batch.x.cpu().numpy(), y.cpu().numpy())
            except ValueError as error:
                raise InputError(f"art: {error} (samples of shape {tuple(batch.x.shape[1:])})") from error
            labels[:] = [torch.as_tensor(y).to(batch.x)]
            return torch.as_tensor(x).to(batch.x)

        def loss(net: nn.Module, batch: Batch, points: Tensor) -> Tensor:
            return self.loss(net, replace(batch, y=labels[0]), points, threat)

        return Step(points, loss)

    def loss(self, net: nn.Module, batch: Batch, points: Tensor, threat: Threat | None) -> Tensor:
        return batch.cross_entropy(net(points))


def augmentation_of(library: ART, name: str) -> type[Augmentation]:
    """The augmentation of that name as a defense."""
    defaults = (
        {"sigma": 0.25} if name == "GaussianAugmentation" else {"length": 8} if name == "Cutout" else {}
    )
    return make_class(library, name, Augmentation, **defaults)
