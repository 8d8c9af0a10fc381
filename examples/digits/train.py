"""Trains the classifier on digits and writes model.safetensors."""

from __future__ import annotations

import torch
from model import WEIGHTS, build
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from robust.sources import load_data


def main() -> None:
    torch.manual_seed(0)
    data = load_data("builtin:digits:train")
    x, y = data.rows(slice(None)), data.y
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, weight_decay=1e-4)
    for _ in range(60):
        for rows in torch.randperm(len(x)).split(128):
            noisy = x[rows] + 0.1 * torch.randn_like(x[rows])
            optimizer.zero_grad()
            cross_entropy(model(noisy), y[rows]).backward()
            optimizer.step()
    save_file(model.state_dict(), WEIGHTS)


if __name__ == "__main__":
    main()
