"""Wrapping defenses: an input transform in front of a model. They hide gradients and hold nothing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn

from robust import transforms
from robust.bpda import Substituted
from robust.defenses.base import DEFENSES, Defense, make_defense
from robust.defenses.training import Trainer
from robust.errors import InputError, RobustError, told
from robust.in_front import Behind
from robust.sources import Samples
from robust.threat import Threat


@dataclass(frozen=True)
class Wrapper(Defense):
    """A transform in front of a model, trained or as it is; subclasses say which.

    What `fit` returns computes model(transform(x)) to the bit, and its gradient is the model's at
    transform(x), as if the transform were the identity (BPDA, Athalye et al. 2018, arXiv 1802.00420): so
    every attack goes through it, and its verdict is not flattered.

    Args:
        of: defense that trains the model first; "" takes the model as it is.
        options: of that defense.
    """

    masks_gradients: ClassVar[bool] = True

    of: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ = self._inner
        self.transform((0.0, 1.0))

    @cached_property
    def _inner(self) -> Defense | None:
        return make_defense(self.of, **dict(self.options)) if self.of else None

    @abstractmethod
    def transform(self, bounds: tuple[float, float]) -> nn.Module:
        """The transform of inputs in these bounds."""

    @property
    def title(self) -> str:
        return self.name if self._inner is None else f"{self._inner.title}+{self.name}"

    @property
    def parameters(self) -> dict[str, Any]:
        inner = {} if self._inner is None else self._inner.parameters
        return {**super().parameters, "options": inner, "masks_gradients": True}

    @property
    def stacked(self) -> bool:
        """Between this transform and the model there is another one."""
        return isinstance(self._inner, Wrapper)

    @property
    def against_threat(self) -> bool:
        return self._inner is not None and self._inner.against_threat

    def check(self, threat: Threat | None) -> None:
        if self._inner is not None:
            self._inner.check(threat)

    def fit(self, model: nn.Module, data: Samples, *, threat: Threat | None, trainer: Trainer) -> nn.Module:
        self.check(threat)
        bounds = (0.0, 1.0) if threat is None else threat.bounds
        self._try(data, bounds)
        trained = (
            trainer.copy(model, data, threat)
            if self._inner is None
            else self._inner.fit(model, data, threat=threat, trainer=trainer)
        )
        return self._in_front_of(trained, bounds)

    @torch.no_grad()
    def _try(self, data: Samples, bounds: tuple[float, float]) -> None:
        """Raise InputError, before anything is trained, where the transform cannot take such samples."""
        try:
            self.transform(bounds)(data.rows([0]))
        except RobustError:
            raise
        except Exception as error:
            shape = tuple(data.x.shape[1:])
            raise InputError(
                f"{self.name}: fails on samples of shape {shape} ({told(error)}); it is for images (N, C, H, W)"
            ) from error

    def deployed(self, model: nn.Module, *, bounds: tuple[float, float] = (0.0, 1.0)) -> nn.Module:
        inner = model if self._inner is None else self._inner.deployed(model, bounds=bounds)
        return self._in_front_of(inner, bounds)

    def _in_front_of(self, model: nn.Module, bounds: tuple[float, float]) -> nn.Module:
        """A model that has all that it is behind but this transform."""
        behind = Behind(model, front=Substituted(self.transform(bounds)))
        parameter = next(model.parameters(), None)
        return behind.eval() if parameter is None else behind.to(parameter.device).eval()


@DEFENSES.register("bit-depth")
@dataclass(frozen=True)
class BitDepth(Wrapper):
    """Inputs quantised to a few bits (feature squeezing, Xu et al. 2018, arXiv 1704.01155).

    Masks gradients. Broken through a substitute gradient by He et al. 2017 and Athalye et al. 2018.

    Args:
        of: defense that trains the model first; "" takes the model as it is.
        options: of that defense.
        bits: a value, 1 to 8.
    """

    name: ClassVar[str] = "bit-depth"
    paper: ClassVar[str] = "Xu et al. 2018"

    bits: int = 3

    def transform(self, bounds: tuple[float, float]) -> nn.Module:
        return transforms.BitDepth(self.bits, bounds)


@DEFENSES.register("median")
@dataclass(frozen=True)
class Median(Wrapper):
    """Inputs smoothed by a median filter (feature squeezing, Xu et al. 2018, arXiv 1704.01155).

    Masks gradients. Images (N, C, H, W) only.

    Args:
        of: defense that trains the model first; "" takes the model as it is.
        options: of that defense.
        size: side of the window, odd, >= 3.
    """

    name: ClassVar[str] = "median"
    paper: ClassVar[str] = "Xu et al. 2018"

    size: int = 3

    def transform(self, bounds: tuple[float, float]) -> nn.Module:
        return transforms.Median(self.size)


@DEFENSES.register("jpeg")
@dataclass(frozen=True)
class JPEG(Wrapper):
    """Inputs compressed and decompressed (Dziugaite et al. 2016, arXiv 1608.00853).

    Masks gradients. Images (N, C, H, W) of one or three channels only.

    Args:
        of: defense that trains the model first; "" takes the model as it is.
        options: of that defense.
        quality: 1 to 95.
    """

    name: ClassVar[str] = "jpeg"
    paper: ClassVar[str] = "Dziugaite et al. 2016"

    quality: int = 75

    def transform(self, bounds: tuple[float, float]) -> nn.Module:
        return transforms.JPEG(self.quality, bounds)
