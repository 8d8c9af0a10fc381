"""A search that cannot fail on an honest model: the whole box."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from robust.attacks import PGD
from robust.diagnose import checks
from robust.diagnose.checks import Finding
from robust.oracle import Oracle
from robust.target import Target
from robust.threat import Threat

_SEARCH: Final = PGD(steps=30, loss="margin", schedule="cosine", step_size=0.5, random_start=False)


def unbounded(target: Target, x: Tensor, y: Tensor, micro_batch: int) -> tuple[list[Finding], int, int]:
    """Attack a few correctly classified samples within the whole box; findings, forwards, backwards."""
    low, high = target.bounds
    threat = Threat("linf", repr(high - low), target.bounds)
    ids = torch.arange(len(x), device=x.device)
    oracle = Oracle(target, x, y, ids, threat, purpose="unbounded", micro_batch=micro_batch)
    _SEARCH(oracle)
    ledger = oracle.ledger
    left = int((~ledger.broken & ~ledger.failed).sum())
    found = []
    if left >= max(2, 0.05 * len(x)):
        found.append(
            checks.UNBOUNDED.finding(f"{left} of {len(x)} samples withstand a search of the whole box")
        )
    return found, int(ledger.forwards.sum()), int(ledger.backwards.sum())
