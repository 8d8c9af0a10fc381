"""The attack inside a training step."""

from __future__ import annotations

from lightning_fabric import is_wrapped
from torch import Tensor, nn

from robust.attacks import Attack
from robust.defenses.options import Batch
from robust.oracle import Oracle
from robust.target import Target
from robust.threat import Threat


def perturb(model: nn.Module, batch: Batch, attack: Attack, threat: Threat, *, share: float = 1.0) -> Tensor:
    """The attack's last point for every sample of a batch: (N, ...).

    The model is frozen and in eval mode meanwhile: no weight gradients are computed and no batch-norm
    statistics change. Random starts differ by epoch and are each sample's own.

    Args:
        model: as an objective gets it. Fabric's wrapper, which allows no gradient but its own, is gone round.
        share: of eps that is used, in (0, 1].

    Raises:
        UnsupportedError: the attack does not know the threat's norm.
    """
    attack.check(threat)
    scaled = threat if share >= 1 else Threat(threat.norm, repr(threat.radius * share), threat.bounds)
    module = model.module if is_wrapped(model) else model
    assert isinstance(module, nn.Module)
    with Target(module, bounds=threat.bounds, device=batch.x.device) as target:
        oracle = Oracle(
            target,
            batch.x,
            batch.y,
            batch.ids,
            scaled,
            seed=batch.seed,
            purpose=f"train {batch.epoch}",
            micro_batch=len(batch.x),
            observe=False,
        )
        x_adv = attack.run(oracle)
    assert x_adv is not None, f"{attack.name} gives no point per row, so it cannot train"
    return x_adv.detach()
