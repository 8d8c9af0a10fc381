"""The attack inside a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robust.attacks import Attack
from robust.attacks.geometry import random_start, uphill
from robust.defenses.options import Batch
from robust.errors import UnsupportedError
from robust.losses import ce
from robust.oracle import Oracle
from robust.target import Target
from robust.threat import Threat

NORMS = ("linf", "l2", "l1")


@contextmanager
def access(model: nn.Module, batch: Batch, threat: Threat) -> Iterator[Oracle]:
    """An oracle for a batch that watches nothing: no row leaves, no point is recorded.

    The model is frozen and in eval mode meanwhile: no weight gradients are computed and no batch-norm
    statistics change. Random numbers differ by epoch and replay and are each sample's own.

    Args:
        model: as an objective gets it. Fabric's wrapper, which allows no gradient but its own, is gone round.
    """
    with Target(unwrapped(model), bounds=threat.bounds, device=batch.x.device, tf32=True) as target:
        yield Oracle(
            target,
            batch.x,
            batch.y,
            batch.ids,
            threat,
            seed=batch.seed,
            purpose=f"train {batch.epoch} {batch.replay}" if batch.replay else f"train {batch.epoch}",
            micro_batch=len(batch.x),
            observe=False,
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """The module itself, without Fabric's wrapper."""
    from lightning_fabric import is_wrapped

    module = model.module if is_wrapped(model) else model
    assert isinstance(module, nn.Module)
    return module


def perturb(model: nn.Module, batch: Batch, attack: Attack, threat: Threat) -> Tensor:
    """The attack's last point for every sample of a batch: (N, ...), without graph.

    Raises:
        UnsupportedError: the attack does not know the threat's norm.
    """
    attack.check(threat)
    with access(model, batch, threat) as oracle:
        x_adv = attack.run(oracle)
    assert x_adv is not None, f"{attack.name} gives no point per row, so it cannot train"
    return x_adv.detach()


@dataclass(frozen=True)
class Ascent:
    """Steepest ascent on any loss, from a start of one's own: the inner attack of most objectives.

    Args:
        steps: >= 1.
        step_size: in units of eps; None for 2.5 / steps.
        start: "uniform" in the threat set, "gaussian" (deviation .001, Zhang et al. 2019), or "clean".
        reach: the uniform start covers this multiple of eps.
        project: back into the threat set after every step; without, only into the box.
    """

    norms: ClassVar[tuple[str, ...]] = NORMS

    steps: int
    step_size: float | None
    start: str = "uniform"
    reach: float = 1.0
    project: bool = True

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        threat: Threat,
        loss: Callable[..., Tensor] = ce,
        *columns: Tensor,
    ) -> Tensor:
        """The last point: (N, ...), without graph.

        Args:
            loss: (logits, y, *columns) -> (N,); `columns` are per-row tensors.
        """
        require_norm(threat)
        step = threat.radius * (2.5 / self.steps if self.step_size is None else self.step_size)
        with access(model, batch, threat) as oracle:
            x_adv = self._begin(oracle)
            for _ in range(self.steps):
                gradient = oracle.gradient(x_adv, loss, *columns).gradient
                moved = torch.add(x_adv, uphill(gradient, x_adv, threat), alpha=step)
                x_adv = oracle.project(moved) if self.project else oracle.clip(moved)
        return x_adv.detach()

    def _begin(self, oracle: Oracle) -> Tensor:
        if self.start == "clean":
            return oracle.x
        streams = oracle.random("start")
        if self.start == "gaussian":
            return oracle.project(oracle.x + 1e-3 * streams.normal(oracle.x.shape[1:]))
        threat = oracle.threat
        if self.reach != 1:
            threat = Threat(threat.norm, repr(threat.radius * self.reach), threat.bounds)
        return random_start(oracle.x, threat, streams)


def grown(threat: Threat, batch: Batch, warmup: float) -> Threat:
    """The threat with the share of eps that is used by now, where it grows over this share of the training."""
    share = min(1.0, max(1e-3, batch.progress / warmup)) if warmup else 1.0
    if share >= 1:
        return threat
    return Threat(threat.norm, repr(threat.radius * share), threat.bounds)


def require_norm(threat: Threat) -> None:
    """Raise UnsupportedError unless the threat's norm has a steepest direction."""
    if threat.norm not in NORMS:
        raise UnsupportedError(
            f"threat {threat}: training attacks work for {', '.join(NORMS)}, not for {threat.norm}"
        )


def clean_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits (N, C) of the batch in eval mode, without graph: what KL attacks move away from."""
    module = unwrapped(model)
    with Target(module, device=batch.x.device, tf32=True) as target, torch.no_grad():
        return target.logits(batch.x)


def kl(logits: Tensor, _y: Tensor, reference: Tensor) -> Tensor:
    """KL(softmax(reference) || softmax(logits)) of each row: (N, C), _, (N, C) -> (N,)."""
    log_p = reference.log_softmax(1)
    return (log_p.exp() * (log_p - logits.log_softmax(1))).sum(1)
