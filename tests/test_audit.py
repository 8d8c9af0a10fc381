"""The judge of every claim: what rounding denies is asked about once more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robust.audit import audit, audit_twice
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
