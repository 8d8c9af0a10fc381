"""What a defense is, and how one is found by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import nn

from robust.attacks.base import build
from robust.defenses.training import Trainer
from robust.errors import InputError
from robust.registry import Registry
from robust.sources import Samples
from robust.threat import Threat


@dataclass(frozen=True)
class Defense(ABC):
    """A way to harden a model; its fields are its parameters."""

    name: ClassVar[str]
    paper: ClassVar[str]
    needs_threat: ClassVar[bool] = False

    @abstractmethod
    def fit(self, model: nn.Module, data: Samples, *, threat: Threat | None, trainer: Trainer) -> nn.Module:
        """Train a hardened copy of the model, in eval mode; the given one stays as it was.

        Args:
            model: gives logits (N, C).
            data: training samples, inside the threat's box.
            threat: what to harden against; None only where `needs_threat` is False. Every epoch is
                validated under it.
            trainer: runs the epochs and keeps their history.

        Raises:
            InputError: before the first epoch, where model, data and threat do not fit.
            TrainingError: training diverged or collapsed.
        """

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters with their effective values."""
        return asdict(self)

    def check(self, threat: Threat | None) -> None:
        """Raise InputError where a threat is needed and none is given."""
        if self.needs_threat and threat is None:
            raise InputError(
                f"threat: defense {self.name!r} trains against one; give it, such as 'linf:8/255'"
            )


DEFENSES: Registry[type[Defense]] = Registry("defense", "robust.defenses")


def make_defense(spec: str | Defense | Mapping[str, Any], **options: object) -> Defense:
    """A defense from its name and options, a mapping {"name": ..., option: ...}, or itself.

    Raises:
        UnknownNameError: no such defense.
        InputError: no such option, or a value that does not fit.
    """
    if isinstance(spec, Defense):
        return spec
    if isinstance(spec, Mapping):
        options = {**spec, **options}
        spec = str(options.pop("name", ""))
    made: Defense = build(DEFENSES[spec], f"defense {spec!r}", options)
    return made
