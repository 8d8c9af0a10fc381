"""The judge of every claim: what rounding denies is asked about once more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust
from robust.audit import audit, audit_twice
from robust.sources import load_data
from robust.target import Target
from robust.threat import Threat


class Rounds(nn.Module):
    """The boundary between the first two classes is at .5, and a hair beyond it in batches."""

    def forward(self, x: Tensor) -> Tensor:
        lead = x.flatten(1)[:, 0] - 0.5 - (1e-6 if len(x) > 1 else 0)
        return torch.stack([-lead, lead, torch.full_like(lead, -1.0)], 1)


def test_what_rounding_denies_is_asked_about_once_more() -> None:
    x, y = torch.full((4, 1, 1, 1), 0.1), torch.zeros(4, dtype=torch.int64)
    claimed = torch.tensor([0.6, 0.5 + 5e-7, 0.5, 0.3]).view(4, 1, 1, 1)
    threat = Threat("linf", "0.5")
    with Target(Rounds(), device="cpu") as target:
        once = audit(target, claimed, x, y, threat)
        twice, points = audit_twice(target, claimed, x, y, threat)
    assert once.valid.tolist() == [True, False, False, False]
    assert twice.valid.tolist() == [True, True, True, False]
    assert torch.equal(points[:2], claimed[:2])
    assert float(points[2]) == pytest.approx(0.5004)  # a thousandth farther
    assert twice.distance[2] == pytest.approx(0.4004)


class Drifts(nn.Module):
    """The logits of every batch size are off by amounts of their own, up to a ten-thousandth of their spread."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        low, high = logits.aminmax(dim=1, keepdim=True)
        noise = torch.rand(logits.shape[1], generator=torch.Generator().manual_seed(len(x))) - 0.5
        return logits + 2e-4 * (high - low) * noise.to(logits)


@pytest.mark.parametrize("attack", ["fab", "deepfool"])
def test_what_a_models_own_noise_denies_is_asked_about_alone(net: nn.Module, attack: str) -> None:
    """Points on the boundary itself, of a model whose logits move with the batch by too little to be batch-dependent."""
    samples = load_data("builtin:digits").limit(100)
    still, moving = (
        robust.evaluate(
            model, samples, threat="l2:0.5", suite=[attack], minimize=attack != "fab", device="cpu"
        )
        for model in (net, Drifts(net))
    )
    assert moving.attacks[0]["rejected"] == 0
    assert moving.findings == still.findings
    assert moving.robust_accuracy == still.robust_accuracy


def test_what_more_than_a_models_own_noise_denies_is_not_close() -> None:
    x, y = torch.full((4, 1, 1, 1), 0.1), torch.zeros(4, dtype=torch.int64)
    claimed = torch.tensor([0.49995, 0.4995, 0.4992, 0.3]).view(4, 1, 1, 1)
    with Target(Rounds(), device="cpu") as target:
        for drift, close in ((0.0, 0), (1e-4, 1), (1e-3, 3)):
            found = audit(target, claimed, x, y, Threat("linf", "0.5"), drift=drift)
            assert found.close.tolist() == [place < close for place in range(4)]
