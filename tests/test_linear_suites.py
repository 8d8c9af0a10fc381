"""The suite `standard` on linear classifiers in the unit box, where what can be broken is known exactly."""

from __future__ import annotations

import pytest
import torch
from conftest import Linear
from torch import Tensor

import robust


def problem(values: int, classes: int) -> tuple[Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(values)
    weight = 5 * torch.randn(classes, values, generator=generator)
    model = Linear(weight, -0.5 * weight.sum(1))
    x = torch.rand(40, values, generator=generator)
    return model, x, model(x).argmax(1)


def exactly_breakable(model: Linear, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
    """Which samples some class takes over: the most that its lead can gain is a sum over the values that gain most."""
    logits, found = model(x).detach(), torch.zeros(len(x), dtype=torch.bool)
    for k in range(logits.shape[1]):
        slope = (model.weight[k] - model.weight[y]).detach()
        room = torch.where(slope > 0, 1 - x, x)
        if norm == "linf":
            gain = (slope.abs() * room.clamp_max(eps)).sum(1)
        elif norm == "l0":
            gain = (slope.abs() * room).topk(int(eps), dim=1).values.sum(1)
        else:
            size, order = slope.abs().sort(dim=1, descending=True)
            room = room.gather(1, order)
            spent = room.minimum((eps - room.cumsum(1) + room).clamp_min(0))
            gain = (spent * size).sum(1)
        found |= (y != k) & (logits[:, k] - logits.gather(1, y[:, None])[:, 0] + gain > 1e-4)
    return found


@pytest.mark.parametrize(
    ("values", "classes", "threats"),
    [
        (4, 2, ("linf:0.1", "l1:0.3")),
        (8, 3, ("linf:0.08", "l1:0.5", "l0:1")),
        (20, 4, ("linf:0.03", "l1:0.5", "l0:1")),
        (48, 10, ("linf:0.02", "l1:0.4", "l0:1")),
        (200, 3, ("linf:0.02", "l1:1.5", "l0:3")),
    ],
)
def test_standard_breaks_all_that_can_be_broken(values: int, classes: int, threats: tuple[str, ...]) -> None:
    model, x, y = problem(values, classes)
    for threat in threats:
        norm, eps = threat.split(":")
        expected = exactly_breakable(model, x, y, norm, float(eps))
        assert expected.any(), f"{threat} tells nothing"
        report = robust.evaluate(model, (x, y), threat=threat, device="cpu")
        broken = torch.from_numpy((report.verdicts["status"] == "broken").to_numpy(copy=True))
        assert (expected & ~broken).sum() == 0, threat
        assert report.trust == "trusted", report.findings
