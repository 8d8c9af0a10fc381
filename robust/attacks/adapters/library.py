"""Another library, before and after it is imported: its attacks, their parameters, a call of one."""

from __future__ import annotations

import importlib
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from robust.attacks.adapters.isolation import private_randomness, quiet
from robust.attacks.adapters.meter import Meter
from robust.errors import MissingDependencyError, UnsupportedError
from robust.oracle import Access


@dataclass(frozen=True)
class Peer:
    """What is known of a library's attack without importing the library.

    Args:
        norms: threats it is made for, in words: "linf l2".
        paper: its source.
        access: what it is allowed to ask of the model.
        minimum_norm: it searches the nearest adversarial point, whatever eps.
        step: its parameter for an absolute step size; default None here: `share` x eps over the number of steps.
        share: see `step`.
        steps: its parameter for the number of steps; "" to divide by nothing.
        alone: the library itself goes sample by sample: it is given one at a time, and nothing is lost.
        channels: of the images that it can work on; 0 for any input.
        classes: of the models that it can work on, at least.
        least: the smallest value of its parameters that it does not fail with, where that is not told by the library.
        probabilities: it refuses logits and is given their softmax.
        differs: what else to know of it.
    """

    norms: str
    paper: str
    access: Access = "gradient"
    minimum_norm: bool = False
    step: str = ""
    share: float = 2.5
    steps: str = "steps"
    alone: bool = False
    channels: int = 0
    classes: int = 2
    least: Mapping[str, int] = field(default_factory=dict)
    probabilities: bool = False
    differs: str = ""


@dataclass(frozen=True)
class Job:
    """One call of a library's attack. Everything is in the unit box: x (N, ...) in [0, 1]."""

    model: Meter
    x: Tensor
    y: Tensor
    eps: float
    norm: str
    seed: int
    options: Mapping[str, Any]

    @property
    def values(self) -> int:
        """Values of a sample."""
        return self.x.shape[1:].numel()

    @property
    def pixels(self) -> int:
        """Pixels that an l0 threat of `eps` values lets an attack repaint: at least one, at most all."""
        channels = self.x.shape[1] if self.x.dim() == 4 else 1
        return max(1, min(int(self.eps), self.values) // channels)


def _import(module: str) -> ModuleType:
    """As importlib does. ART keeps settings in a file, and trips where another process makes it at that moment: once more."""
    try:
        return importlib.import_module(module)
    except NameError:
        return importlib.import_module(module)


class Package:
    """Another library, before and after it is imported.

    Attributes:
        name: prefix, and the module that is imported when something of it is first asked for.
        package: distribution that holds it.
        extra: of this project, that installs it.
        kind: what is found under the prefix, in the singular.
        absent: what the library has that is not offered here, and why.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    extra: ClassVar[str]
    kind: ClassVar[str] = "attack"
    absent: ClassVar[Mapping[str, str]]

    @property
    def version(self) -> str | None:
        """Installed version, without importing it; None where it is missing."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None

    def load(self, module: str) -> ModuleType:
        """Import a module of the library.

        Raises:
            MissingDependencyError: not installed, or it does not import; names the extra.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _import(module)
        except Exception as error:  # a library that fails with whatever error is as good as missing
            state = "is not installed" if self.version is None else "cannot be imported"
            reason = "" if self.version is None else f" ({type(error).__name__}: {error})"
            raise MissingDependencyError(
                f"{self.kind}s {self.name}:... need {self.package}, which {state}{reason}; "
                f'pip install "robust-harness[{self.extra}]"'
            ) from error

    def refuse(self, name: str) -> None:
        """Raise UnsupportedError for what the library has and is not offered here."""
        if name in self.absent:
            raise UnsupportedError(f"{self.kind} {self.name}:{name} is not offered here: {self.absent[name]}")


class Library(Package, ABC):
    """Another library's attacks by name: `name:ATTACK`.

    Attributes:
        peers: its attacks that fit a threat here.
        provided: parameters that the adapter fills in, by name; users do not see them.
        real: parameters whose default is a whole number and whose value need not be.
        differs: what every attack of it does otherwise than those of this package.
    """

    peers: ClassVar[Mapping[str, Peer]]
    provided: ClassVar[Mapping[str, Callable[[Job], Any]]]
    real: ClassVar[frozenset[str]] = frozenset()
    differs: ClassVar[tuple[str, ...]]

    @abstractmethod
    def constructor(self, name: str) -> type[Any]:
        """The library's own class of that name; imports the library."""

    @abstractmethod
    def search(self, name: str, job: Job) -> Tensor:
        """Run the attack: adversarial candidates, (N, ...) in the unit box."""

    def names(self) -> list[str]:
        """The attacks that can be asked for."""
        return sorted(self.peers)

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The parameters of the library's attack that are the user's to set."""
        parameters = inspect.signature(self.constructor(name)).parameters
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {k: p for k, p in parameters.items() if k not in self.provided and p.kind not in kinds}

    def complaint(self, name: str, options: Mapping[str, Any], eps: float, norm: str) -> str | None:
        """What the library's own constructor says against options, tried on a stand-in for the model; None for nothing."""
        x, y = torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64)
        meter = Meter(lambda rows: rows.flatten(1)[:, :10], x, y, (0.0, 1.0), norm, None)
        try:
            with private_randomness(0), quiet(), suppress(ModuleNotFoundError):  # of which a run tells
                self.constructor(name)(**self.arguments(name, Job(meter, x, y, eps, norm, 0, options)))
        except (TypeError, ValueError) as error:
            return " ".join(str(error).split()).rstrip(".")
        return None

    def arguments(self, name: str, job: Job) -> dict[str, Any]:
        """What its constructor is called with."""
        parameters = inspect.signature(self.constructor(name)).parameters
        return {**job.options, **{k: fill(job) for k, fill in self.provided.items() if k in parameters}}
