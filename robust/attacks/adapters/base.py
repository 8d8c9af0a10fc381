"""An attack of another library as one of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache, partial
from typing import Annotated, Any, ClassVar, Final

import torch
from pydantic import BeforeValidator
from torch import Tensor

from robust.attacks.adapters.isolation import private_randomness, quiet
from robust.attacks.adapters.library import Job, Library, Peer
from robust.attacks.adapters.meter import Meter
from robust.attacks.adapters.options import read_option
from robust.attacks.base import Attack, make_attack
from robust.errors import InputError, MissingDependencyError, UnsupportedError
from robust.oracle import Finished, Oracle
from robust.threat import Threat

_GROUP: Final = 64
_ROUNDING: Final = 1e-5  # a point this much (relatively) out of the ball was meant to be on its surface


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
        self._fits(oracle)
        low, high = oracle.threat.bounds
        width = high - low
        x = ((oracle.x - low) / width).clamp_(0, 1)
        norm = oracle.threat.norm
        eps = _unit_eps(oracle.threat)
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

    def check(self, threat: Threat) -> None:
        """Refuse another norm, and parameters that the library refuses."""
        super().check(threat)
        eps = _unit_eps(threat)
        options = {k: self._option(k, eps) for k in self._library_options()}
        complaint = self.library.complaint(self.label_name, options, eps, threat.norm)
        if complaint is not None:
            raise InputError(
                f"{self.label}: {self.library.name} refuses it under {threat}: {complaint}; "
                f"`robust list attacks {self.name}` shows its options"
            )

    def _lent(self, oracle: Oracle) -> Callable[[Tensor], Tensor]:
        logits = oracle.lend()
        return (lambda x: logits(x).softmax(1)) if self.peer.probabilities else logits

    def _search(self, job: Job) -> Tensor:
        with private_randomness(job.seed), quiet(), torch.enable_grad():
            try:
                found = self.library.search(self.label_name, job)
            except Finished:
                found = job.model.nearest
            except ModuleNotFoundError as error:
                raise MissingDependencyError(
                    f"attack {self.name!r} needs the package {error.name}, which is not installed; pip install {error.name}"
                ) from error
        return found.detach().to(job.x).clone()

    def _fits(self, oracle: Oracle) -> None:
        x, wanted, least = oracle.x, self.peer.channels, self.peer.classes
        if least > 2 and (classes := oracle.gaps.shape[1]) < least:
            raise UnsupportedError(
                f"attack {self.name!r} works on models of at least {least} classes, not of {classes}"
            )
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

    def __reduce__(self) -> tuple[Any, ...]:
        """Its class is made by name, and so it must be where it is sent to."""
        return make_attack, ({"name": self.name, **self.parameters},)

    @property
    def source(self) -> str:
        """The library and its version."""
        return f"{self.library.name} {self.library.version}"

    @property
    def batch_dependent(self) -> bool:
        """The library sees many samples at once and decides how."""
        return bool(self._own("group") > 1)

    @property
    def at_once(self) -> int | None:
        """A group: what a library found is kept, and progress shown, once a group is done."""
        return int(self._own("group"))

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
def adapter_of(library: Library, name: str) -> type[Adapter]:
    """The library's attack as one of ours: its parameters are the library's own, with the library's defaults."""
    peer = library.peers[name]
    options: list[Any] = []
    for key, parameter in library.options(name).items():
        default = None if key == peer.step else parameter.default
        if isinstance(default, list):
            default = tuple(default)
        whole = type(parameter.default) is int and key not in library.real
        whole &= "float" not in str(parameter.annotation)
        kind = Annotated[Any, BeforeValidator(partial(read_option, like=parameter.default, whole=whole))]
        options.append((key, kind, field(default=default)))
    positive = partial(read_option, like=1, whole=True)
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
    peer = self.peer
    least = {"group": 1, "budget": 1, **({peer.steps: 1} if peer.step and peer.steps else {}), **peer.least}
    for key, lowest in least.items():
        value = getattr(self, key)
        if value is not None and value < lowest:
            raise InputError(f"{self.name}: {key} must be at least {lowest}, got {value}")


def _settle(found: Tensor, oracle: Oracle) -> Tensor:
    """Undo rounding: points a hair outside the ball go onto it, all others stay where the library put them."""
    threat: Threat = oracle.threat
    distance = threat.distance(found, oracle.x)
    near = distance.isfinite() & (distance <= threat.radius * (1 + _ROUNDING)) & (threat.norm != "l0")
    if not bool(near.any()):
        return found
    near = near.view(-1, *[1] * (found.dim() - 1))
    return torch.where(near, oracle.project(torch.where(near, found, oracle.x)), found)


def _unit_eps(threat: Threat) -> float:
    """eps in the unit box, in which libraries work."""
    low, high = threat.bounds
    return threat.radius / (1 if threat.norm == "l0" else high - low)


def _least(left: int | None, budget: int | None) -> int | None:
    """Passes the library may cost a sample: one is kept for looking at what it returns."""
    limits = [value for value in (left, budget) if value is not None]
    return min(limits) - 1 if limits else None
