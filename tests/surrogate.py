"""A model to transfer attacks from, as a user would write it."""

from __future__ import annotations

import torch
from conftest import _digits
from torch import nn


def digits() -> nn.Module:
    """A net unlike the one under attack, trained on digits for some seconds."""
    x, y, _, _ = _digits()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(30):
            for rows in torch.randperm(len(x)).split(128):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
    return model.eval()
