"""Public attacks in l0, where AutoAttack has none: sigma-zero, then Sparse-RS on what it leaves.

sigma-zero (Cina et al. 2025, arXiv 2402.01879) as in adv_lib, 1,000 steps as in its paper; Sparse-RS (Croce et al. 2022,
arXiv 2006.12834) by its authors, 10,000 queries as in theirs. l0 counts values here and pixels there: Sparse-RS sees an
image with channels as one of a single channel, a channel below the other, as its authors' runs in feature space do.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable

from torch import Tensor, nn

from robust.threat import Threat

NAME = "public sigma-zero (1,000 steps), Sparse-RS (10,000 queries)"


def attack(
    folder: str, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int = 0
) -> Callable[[], Tensor]:
    """What makes adversarial images, (N, ...) in [0, 1], where one is found; `folder` holds the authors' Sparse-RS."""
    sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # which adv_lib imports for its plots
    from adv_lib.attacks import sigma_zero

    if folder not in sys.path:
        sys.path.insert(0, folder)
    sparse_rs = importlib.import_module("rs_attacks").RSAttack
    channels, height, width = x.shape[1:]
    search = sparse_rs(
        lambda grey: model(grey.reshape(-1, channels, height, width)),
        eps=int(threat.radius),
        n_queries=10_000,
        seed=seed,
        verbose=False,
    )

    def run() -> Tensor:
        out = x.clone()
        right = (model(x).argmax(1) == y).nonzero().flatten()
        near = sigma_zero(model, x[right], y[right], num_steps=1000).detach()
        reached = (near != x[right]).flatten(1).sum(1) <= threat.radius
        out[right[reached]] = near[reached]
        left = right[model(out[right]).argmax(1) == y[right]]
        if len(left):
            grey = x[left].reshape(len(left), 1, channels * height, width)
            out[left] = search.perturb(grey, y[left])[1].reshape(-1, channels, height, width)
        return out

    return run
