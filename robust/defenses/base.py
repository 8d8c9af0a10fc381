"""What a defense is, and how one is found by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from torch import nn

from robust.attacks.base import build, json_value, name_of
from robust.defenses.options import TrainingOptions
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
    masks_gradients: ClassVar[bool] = False  # known to stop gradient attacks without holding

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

    def deployed(self, model: nn.Module, *, bounds: tuple[float, float] = (0.0, 1.0)) -> nn.Module:
        """A trained model as `fit` returns it: itself, or with the transform in front; for loading weights."""
        return model

    @property
    def against_threat(self) -> bool:
        """Whether it trains against the threat: of a defense around another, whether that one does."""
        return self.needs_threat

    @property
    def title(self) -> str:
        """The name to show: of a defense around another, both."""
        return self.name

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters with their effective values, as JSON can hold them."""
        return {key: json_value(value) for key, value in asdict(self).items()}

    def check(self, threat: Threat | None) -> None:
        """Raise InputError where a threat is needed and none is given."""
        if self.needs_threat and threat is None:
            raise InputError(
                f"threat: defense {self.name!r} trains against one; give it, such as 'linf:8/255'"
            )

    def require(self, name: str, good: bool, wanted: str) -> None:
        """Raise InputError about a parameter unless it is good."""
        if not good:
            raise InputError(f"{self.name}: {name}: expected {wanted}, got {getattr(self, name)}")


DEFENSES: Registry[type[Defense]] = Registry("defense", "robust.defenses")


def make_defense(spec: str | Defense | Mapping[str, Any], **options: object) -> Defense:
    """A defense from its name and options, a mapping {"name": ..., option: ...}, or itself.

    "trades+awp" is the wrapper "awp" of the objective "trades"; each takes the options that it knows.

    Raises:
        UnknownNameError: no such defense.
        InputError: no such option, or a value that does not fit.
    """
    if isinstance(spec, Defense):
        return spec
    if isinstance(spec, Mapping):
        options = {**spec, **options}
        spec = name_of("defense", options)
    if not isinstance(spec, str):
        raise InputError(
            f"defense: expected a name such as 'pgd-at', a mapping with a name, or a Defense, got {spec!r}"
        )
    of, plus, outer = spec.rpartition("+")
    if plus and not (of and outer):
        raise InputError(f"defense: expected INNER+WRAPPER, such as 'trades+awp', got {spec!r}")
    if plus:
        options = _of(of, outer, options)
    cls = DEFENSES[outer]
    for key in options:
        if hasattr(TrainingOptions, key) and key not in {field.name for field in fields(cls)}:
            raise InputError(
                f"defense {spec!r}: no option {key!r}; it is an option of the training: --train {key}={options[key]}, "
                "or the key `training`"
            )
    made: Defense = build(cls, f"defense {spec!r}", options)
    return made


def _of(of: str, outer: str, options: Mapping[str, object]) -> dict[str, object]:
    """Options of a wrapper in which those that it does not know are the inner defense's."""
    known = {f.name for f in fields(DEFENSES[outer])}
    if not {"of", "options"} <= known:
        raise InputError(f"defense '{of}+{outer}': {outer!r} is no wrapper of another defense")
    mine = {key: value for key, value in options.items() if key in known}
    inner = {key: value for key, value in options.items() if key not in known}
    return {**mine, "of": of, "options": inner}
