"""Transfer of adversarial examples from a surrogate."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import per_row, uphill
from robust.errors import InputError, RobustError, told
from robust.losses import LOSSES
from robust.oracle import Access, Oracle
from robust.target import Target
from robust.threat import Threat


@ATTACKS.register("transfer")
@dataclass(frozen=True)
class Transfer(Attack):
    """Momentum iterations on a surrogate, each tried on the target (MI-FGSM, Dong et al. 2018, arXiv 1710.06081).

    The target answers with labels only, one query a step; the passes of the surrogate are not counted.

    Args:
        surrogate: a model SPEC as for --model, an nn.Module, or a Target with its own normalisation and the threat's bounds;
            needed. It must take the samples and know their classes.
        weights: file of the surrogate's weights, where SPEC takes one.
        steps: gradient steps on the surrogate, >= 1.
        step_size: in units of eps; None for 2.5 / steps.
        momentum: share of the summed gradients that stays, >= 0.
        loss: "ce", "margin", "dlr", "mifpe", "logit" or "probability".
    """

    name: ClassVar[str] = "transfer"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "decision"
    paper: ClassVar[str] = "Dong et al. 2018"

    surrogate: Any = None
    weights: str | None = None
    steps: int = 20
    step_size: float | None = None
    momentum: float = 1.0
    loss: str = "ce"

    def __post_init__(self) -> None:
        self.check_numbers("step_size")
        if self.steps < 1 or self.momentum < 0:
            raise InputError(
                f"transfer: expected steps >= 1 and momentum >= 0, got {self.steps} and {self.momentum}"
            )
        if not isinstance(self.surrogate, str | nn.Module | Target | None):
            raise InputError(
                f"transfer: surrogate: expected a model SPEC, a module or a Target, got {self.surrogate!r}"
            )

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters; a surrogate that is no SPEC by the name of its class."""
        kept = {name: getattr(self, name) for name in ("weights", "steps", "step_size", "momentum", "loss")}
        return {"surrogate": self._surrogate_name, **kept}

    @property
    def label(self) -> str:
        """Name with the surrogate's and the parameters that differ from the defaults: "transfer(Net,steps=40)"."""
        others = {f: getattr(self, f.name) for f in fields(self) if f.name != "surrogate"}
        changed = [f"{f.name}={value}" for f, value in others.items() if value != f.default]
        return f"{self.name}({','.join([self._surrogate_name, *changed])})"

    @property
    def loads(self) -> tuple[str, ...]:
        """The surrogate's SPEC, where it is one."""
        return (self.surrogate,) if isinstance(self.surrogate, str) else ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Which files the surrogate is read from: their names alone do not tell."""
        return tuple(f"{option}: SHA-256 of its files {sha256}" for option, sha256 in self._files.items())

    @property
    def _files(self) -> dict[str, str]:
        from robust.sources import named_sha256

        return named_sha256({"surrogate": self.surrogate, "weights": self.weights})

    @property
    def _surrogate_name(self) -> str:
        given = self.surrogate.model if isinstance(self.surrogate, Target) else self.surrogate
        return given if isinstance(given, str) else type(given).__name__

    def check(self, threat: Threat) -> None:
        """Raise UnsupportedError for a norm it does not know, InputError without a surrogate."""
        super().check(threat)
        if self.surrogate is None:
            raise InputError(
                "transfer: needs a surrogate, the model whose gradients it follows: give surrogate=SPEC "
                "(--set surrogate=path/to/file.py:factory)"
            )
        if isinstance(self.surrogate, Target) and self.surrogate.bounds != threat.bounds:
            raise InputError(
                f"transfer: surrogate: its bounds are {self.surrogate.bounds}, the threat's {threat.bounds}; give the same to both"
            )

    def run(self, oracle: Oracle) -> Tensor:
        threat, loss = oracle.threat, LOSSES[self.loss]
        size = threat.radius * (2.5 / self.steps if self.step_size is None else self.step_size)
        s = oracle.state()
        s.x_adv, s.summed = oracle.x, torch.zeros_like(oracle.x)
        with self._load(threat.bounds, oracle.x.device) as surrogate:
            for step in oracle.steps(self.steps):
                if step == 0:
                    _try(surrogate, oracle.x, oracle.y)
                gradient = oracle.gradient_of(surrogate, s.x_adv, loss).gradient
                length = gradient.flatten(1).abs().mean(1).clamp_min(1e-30)
                s.summed = self.momentum * s.summed + gradient / per_row(length, gradient)
                s.x_adv = oracle.project(s.x_adv + size * uphill(s.summed, s.x_adv, threat))
                oracle.decide(s.x_adv)
        return s.x_adv

    def _load(self, bounds: tuple[float, float], device: torch.device) -> Target:
        if isinstance(self.surrogate, Target):
            return self.surrogate
        model = self.surrogate
        if isinstance(model, str):
            return _load_once(model, self.weights, bounds, device, tuple(self._files.items()))
        return Target(model, bounds=bounds, device=device)


def _try(surrogate: Target, x: Tensor, y: Tensor) -> None:
    """Raise InputError where the surrogate fails on such samples, or has no class for a label."""
    try:
        with torch.no_grad():
            classes = surrogate.logits(x[:1]).shape[1]
    except RobustError:
        raise
    except Exception as error:
        raise InputError(
            f"transfer: surrogate: fails on samples of shape {tuple(x.shape[1:])} ({told(error)}); give a model of the same data"
        ) from error
    if int(y.max()) >= classes:
        raise InputError(
            f"transfer: surrogate: has {classes} classes, and a label is {int(y.max())}; give a model of the same classes"
        )


@functools.lru_cache(maxsize=4)
def _load_once(
    spec: str,
    weights: str | None,
    bounds: tuple[float, float],
    device: torch.device,
    files: tuple[tuple[str, str], ...],  # with others, the same names are another model
) -> Target:
    from robust.sources import load

    return load(spec, weights, bounds=bounds, device=device)
