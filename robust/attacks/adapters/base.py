"""What the adapters of other libraries share: a named attack, the model on loan, private randomness."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from fractions import Fraction
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Annotated, Any, ClassVar, Final

import numpy as np
import torch
from pydantic import BeforeValidator
from torch import Tensor

from robust.attacks.adapters.meter import Meter
from robust.attacks.base import Attack
from robust.errors import InputError, MissingDependencyError, UnsupportedError
from robust.oracle import Access, Finished, Oracle
from robust.threat import Threat

_GROUP: Final = 64
_ROUNDING: Final = 1e-5  # a point this much (relatively) out of the ball was meant to be on its surface


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
        return self.x[0].numel()

    @property
    def pixels(self) -> int:
        """Pixels that an l0 threat of `eps` values lets an attack repaint, at least one."""
        channels = self.x.shape[1] if self.x.dim() == 4 else 1
        return max(1, int(self.eps) // channels)


class Library(ABC):
    """Another library's attacks by name: `name:ATTACK`.

    Attributes:
        name: prefix, and the module that is imported when an attack is first asked for.
        package: distribution that holds it.
        extra: of this project, that installs it.
        peers: its attacks that fit a threat here.
        absent: its attacks that do not, and why.
        provided: parameters that the adapter fills in, by name; users do not see them.
        real: parameters whose default is a whole number and whose value need not be.
        differs: what every attack of it does otherwise than those of this package.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    extra: ClassVar[str]
    peers: ClassVar[Mapping[str, Peer]]
    absent: ClassVar[Mapping[str, str]]
    provided: ClassVar[Mapping[str, Callable[[Job], Any]]]
    real: ClassVar[frozenset[str]] = frozenset()
    differs: ClassVar[tuple[str, ...]]

    @abstractmethod
    def constructor(self, name: str) -> type[Any]:
        """The library's own class of that name; imports the library."""

    @abstractmethod
    def search(self, name: str, job: Job) -> Tensor:
        """Run the attack: adversarial candidates, (N, ...) in the unit box."""

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
                return importlib.import_module(module)
        except Exception as error:  # a library that fails with whatever error is as good as missing
            state = "is not installed" if self.version is None else "cannot be imported"
            reason = "" if self.version is None else f" ({type(error).__name__}: {error})"
            raise MissingDependencyError(
                f"attacks {self.name}:... need {self.package}, which {state}{reason}; "
                f'pip install "robust-harness[{self.extra}]"'
            ) from error

    def names(self) -> list[str]:
        """The attacks that can be asked for."""
        return sorted(self.peers)

    def refuse(self, name: str) -> None:
        """Raise UnsupportedError for an attack that the library has and that fits no threat here."""
        if name in self.absent:
            raise UnsupportedError(f"attack {self.name}:{name} is not offered here: {self.absent[name]}")

    def adapter(self, name: str) -> type[Adapter]:
        """The attack as one of ours: its parameters are the library's own, with the library's defaults."""
        return _adapter(self, name)

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The parameters of the library's attack that are the user's to set."""
        parameters = inspect.signature(self.constructor(name)).parameters
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {k: p for k, p in parameters.items() if k not in self.provided and p.kind not in kinds}

    def arguments(self, name: str, job: Job) -> dict[str, Any]:
        """What its constructor is called with."""
        parameters = inspect.signature(self.constructor(name)).parameters
        return {**job.options, **{k: fill(job) for k, fill in self.provided.items() if k in parameters}}


@dataclass(frozen=True)
class Adapter(Attack):
    """An attack of another library. Subclasses are made by name; their fields are the library's parameters.

    Two more are the adapter's: `group`, the samples that the library is given at a time (1: each alone, which
    makes counts exact and the verdict independent of the batch), and `budget`, the passes (forwards plus
    backwards) after which the library is stopped and the nearest adversarial point it had visited is taken.
    """

    library: ClassVar[Library]
    peer: ClassVar[Peer]
    label_name: ClassVar[str]

    def run(self, oracle: Oracle) -> Tensor:
        """Give the library the samples group by group, and score what it returns."""
        self._fits(oracle.x)
        low, high = oracle.threat.bounds
        width = high - low
        x = ((oracle.x - low) / width).clamp_(0, 1)
        norm = oracle.threat.norm
        eps = oracle.threat.radius / (1 if norm == "l0" else width)
        seeds = oracle.random("library").integers((1,), 0, 2**31 - 1).squeeze(1).tolist()
        found, costs = oracle.x.clone(), torch.zeros((2, len(x)), dtype=torch.int64, device=x.device)
        limit = _least(oracle.left, self._own("budget"))
        for start in range(0, len(x), self._own("group")):
            rows = slice(start, start + self._own("group"))
            meter = Meter(self._lent(oracle), x[rows], oracle.y[rows], (low, high), norm, limit)
            options = {k: self._option(k, eps) for k in self._library_options()}
            job = Job(meter, x[rows].clone(), oracle.y[rows].clone(), eps, norm, seeds[start], options)
            found[rows] = low + width * self._search(job)
            costs[0, rows], costs[1, rows] = meter.forwards, meter.backwards
        oracle.charge(*costs)
        found = _settle(found, oracle)
        oracle.visit(found)
        return found

    def _lent(self, oracle: Oracle) -> Callable[[Tensor], Tensor]:
        logits = oracle.lend()
        return (lambda x: logits(x).softmax(1)) if self.peer.probabilities else logits

    def _search(self, job: Job) -> Tensor:
        with _private_randomness(job.seed), _quiet(), torch.enable_grad():
            try:
                found = self.library.search(self.label_name, job)
            except Finished:
                found = job.model.nearest
            except ModuleNotFoundError as error:
                raise MissingDependencyError(
                    f"attack {self.name!r} needs the package {error.name}, which is not installed and not in the "
                    f"extra {self.library.extra}; pip install {error.name}"
                ) from error
        return found.detach().to(job.x).clone()

    def _fits(self, x: Tensor) -> None:
        wanted = self.peer.channels
        if wanted and (x.dim() != 4 or x.shape[1] != wanted):
            raise UnsupportedError(
                f"attack {self.name!r} works on images with {wanted} channels, not on samples of shape "
                f"{tuple(x.shape[1:])}"
            )

    def _own(self, name: str) -> Any:
        return getattr(self, name)

    def _library_options(self) -> list[str]:
        return [f.name for f in fields(self) if f.name not in ("group", "budget")]

    def _option(self, name: str, eps: float) -> Any:
        """An option's value; a step size that was left open is made from eps."""
        value, peer = getattr(self, name), self.peer
        if name == peer.step and value is None:
            return peer.share * eps / (getattr(self, peer.steps) if peer.steps else 1)
        return value

    @property
    def source(self) -> str:
        """The library and its version."""
        return f"{self.library.name} {self.library.version}"

    @property
    def batch_dependent(self) -> bool:
        """The library sees many samples at once and decides how."""
        return bool(self._own("group") > 1)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the library does otherwise than this package."""
        own = (self.peer.differs,) if self.peer.differs else ()
        step: tuple[str, ...] = ()
        if self.peer.step and getattr(self, self.peer.step) is None:
            rule = f"{self.peer.share:g} eps" + (f" / {self.peer.steps}" if self.peer.steps else "")
            step = (f"{self.peer.step} is absolute there; left open, it is {rule} here",)
        return (*own, *step, *self.library.differs)

    @property
    def stays_inside(self) -> bool:
        """Nothing is assumed: its points are measured."""
        return False


@cache
def _adapter(library: Library, name: str) -> type[Adapter]:
    peer = library.peers[name]
    options: list[Any] = []
    for key, parameter in library.options(name).items():
        default = None if key == peer.step else parameter.default
        if isinstance(default, list):
            default = tuple(default)
        whole = isinstance(parameter.default, int) and key not in library.real
        whole &= "float" not in str(parameter.annotation)
        kind = Annotated[Any, BeforeValidator(partial(_read, like=parameter.default, whole=whole))]
        options.append((key, kind, field(default=default)))
    positive = partial(_read, like=1, whole=True)
    options.append(
        ("group", Annotated[Any, BeforeValidator(positive)], field(default=1 if peer.alone else _GROUP))
    )
    options.append(("budget", Annotated[Any, BeforeValidator(positive)], field(default=None)))
    about = {
        "name": f"{library.name}:{name}", "norms": tuple(peer.norms.split()), "access": peer.access,
        "paper": peer.paper, "minimum_norm": peer.minimum_norm, "library": library, "peer": peer, "label_name": name,
        "__doc__": f"{name} of {library.name} ({peer.paper}).", "__module__": __name__, "__post_init__": _check,
    }  # fmt: skip
    return make_dataclass(f"{library.name}_{name}", options, bases=(Adapter,), namespace=about, frozen=True)


def _check(self: Adapter) -> None:
    for key in ("group", "budget"):
        value = getattr(self, key)
        if value is not None and value < 1:
            raise InputError(f"{self.name}: {key} must be at least 1, got {value}")


def _read(value: Any, *, like: Any, whole: bool) -> Any:
    """An option's value from text, by the kind of its default.

    Raises:
        ValueError: another kind.
    """
    if isinstance(value, str) and not isinstance(like, str):
        value = _literal(value)
    if value is None or like is None or like is inspect.Parameter.empty:
        return value
    if isinstance(like, bool):
        expected, fits = "true or false", isinstance(value, bool)
    elif isinstance(like, int | float):
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        expected = "a number"
        if whole:
            expected, fits = "a whole number", fits and float(value).is_integer()
    else:
        return value
    if not fits:
        raise ValueError(f"expected {expected}")
    return int(value) if whole else value


def _literal(text: str) -> Any:
    """8/255, 0.1, true, none, (2, 10); anything else stays text."""
    lowered = text.strip().lower()
    if lowered in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[lowered]
    for read in (int, lambda t: float(Fraction(t.replace(" ", ""))), float, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, ZeroDivisionError):
            return read(text)
    return text


def _settle(found: Tensor, oracle: Oracle) -> Tensor:
    """Undo rounding: points a hair outside the ball go onto it, all others stay where the library put them."""
    threat: Threat = oracle.threat
    distance = threat.distance(found, oracle.x)
    near = distance.isfinite() & (distance <= threat.radius * (1 + _ROUNDING)) & (threat.norm != "l0")
    if not bool(near.any()):
        return found
    near = near.view(-1, *[1] * (found.dim() - 1))
    return torch.where(near, oracle.project(torch.where(near, found, oracle.x)), found)


def _least(left: int | None, budget: int | None) -> int | None:
    """Passes the library may cost a sample: one is kept for looking at what it returns."""
    limits = [value for value in (left, budget) if value is not None]
    return min(limits) - 1 if limits else None


@contextlib.contextmanager
def _private_randomness(seed: int) -> Iterator[None]:
    """The global generators, seeded for a library that knows no others, and put back after."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - libraries use the global one
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        try:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Libraries print, warn and draw progress bars between ours; standard output is for the result."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield
