"""Nets of one kind each that a suite has a stage for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust
from robust.attacks import APGD


class Gated(nn.Module):
    """Two classes; a hundred of 784 values count, and none of them before it is over .7: three make the second class."""

    def __init__(self) -> None:
        super().__init__()
        counts = torch.randperm(784, generator=torch.Generator().manual_seed(0)) < 100
        self.weight = nn.Parameter(counts / 0.3)

    def forward(self, x: Tensor) -> Tensor:
        score = (torch.relu(x.flatten(1) - 0.7) * self.weight).sum(1) - 2.5
        return torch.stack([-score, score], 1)


def test_in_l1_starts_far_outside_see_what_the_papers_radii_do_not() -> None:
    samples = torch.zeros(20, 1, 28, 28), torch.zeros(20, dtype=torch.int64)
    paper = robust.evaluate(Gated(), samples, threat="l1:3.5", suite=APGD(restarts=5), device="cpu")
    report = robust.evaluate(Gated(), samples, threat="l1:3.5", suite="standard", device="cpu")
    assert report.robust_accuracy < paper.robust_accuracy - 0.2
    assert report.trust != "trusted"  # every one can be broken


def test_in_l0_random_search_sees_what_gradients_do_not() -> None:
    samples = torch.zeros(20, 1, 28, 28), torch.zeros(20, dtype=torch.int64)
    descent = robust.evaluate(Gated(), samples, threat="l0:6", suite="sigma-zero", device="cpu")
    report = robust.evaluate(Gated(), samples, threat="l0:6", suite="standard", device="cpu")
    assert report.robust_accuracy == 0 < descent.robust_accuracy
    assert report.trust != "trusted"


class Plateau(nn.Module):
    """Brighter leads over the edge, but until then the label gains more by it than the class that lies behind."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).mean(1) - 0.5
        edge = 100 * (bright - 0.08).clamp_min(0)
        rest = torch.full_like(bright, -0.1)
        return torch.stack([1 + 0.05 * bright, 0.01 * bright + edge, rest, 2 * rest], 1)


@pytest.mark.parametrize("threat", ["linf:0.1", "l2:0.8"])
def test_what_margins_do_not_see_from_a_plateau_is_broken(threat: str) -> None:
    x, y = torch.full((16, 1, 8, 8), 0.5), torch.zeros(16, dtype=torch.int64)
    report = robust.evaluate(Plateau(), (x, y), threat=threat, device="cpu")
    assert report.robust_accuracy == 0
    (off,) = (attack for attack in report.attacks if attack["selection"].get("flat") == 0.95)
    assert off["broke"] >= 1
    assert off["survived"] == 0


class LevelClasses(nn.Module):
    """Nine classes are as unlikely as one another, and gain alike, each along its own signs; the least likely alone has an edge."""

    def __init__(self, length: float) -> None:
        super().__init__()
        signs = torch.randint(0, 2, (9, 64), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
        self.along = signs / length

    def forward(self, x: Tensor) -> Tensor:
        moved = (x.flatten(1) - 0.5) @ self.along.T
        edge = 6 * (moved[:, 8:] - 0.5).clamp_min(0)
        label = torch.ones_like(edge)
        return torch.cat([label, 0.2 + 0.15 * moved[:, :8], 0.199 + 0.15 * moved[:, 8:] + edge], 1)


@pytest.mark.parametrize(("threat", "length"), [("linf:0.1", 64 * 0.1), ("l2:0.8", 8 * 0.8)])
def test_where_the_logits_tell_no_class_from_another_all_are_tried(threat: str, length: float) -> None:
    """Ascents on any loss of all classes go along the signs of several, and steps towards a few likeliest classes miss the one."""
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + 0.002 * torch.randn(12, 1, 8, 8, generator=generator)
    data = x, torch.zeros(12, dtype=torch.int64)
    report = robust.evaluate(LevelClasses(length), data, threat=threat, device="cpu")
    assert report.robust_accuracy == 0
    (towards_nine,) = (
        attack for attack in report.attacks if attack["selection"].get("level") and attack["broke"]
    )
    assert towards_nine["label"] == "apgd(steps=5,targets=9)"
    assert towards_nine["broke"] == 12


class Gaussians(nn.Module):
    """How near a hundred centres are."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.rand(100, features))

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(x, self.centres).square() / (2 * 0.01 * x.shape[1]))


def test_in_l2_nets_of_gaussian_units_on_few_features_are_as_weak_as_targeted_ascents_say() -> None:
    """Another class than that in the lead breaks, and of samples that did not come as near as where images break."""
    generator = torch.Generator().manual_seed(99)
    centres, classes = torch.rand(40, 20, generator=generator), torch.randint(4, (40,), generator=generator)
    drawn = torch.randint(40, (2150,), generator=generator)
    x = (centres[drawn] + 0.06 * torch.randn(2150, 20, generator=generator)).clamp(0, 1)
    y = classes[drawn]
    torch.manual_seed(2)
    net = nn.Sequential(Gaussians(20), nn.Linear(100, 4))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(1200):
        rows = slice(100 * (step % 20), 100 * (step % 20 + 1))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    data = x[2000:], y[2000:]
    report = robust.evaluate(net, data, threat="l2:0.626", device="cpu")
    aimed = robust.evaluate(net, data, threat="l2:0.626", suite=APGD(targets=3), device="cpu")
    assert report.statuses["survived"] <= aimed.statuses["survived"] + 1
    (late,) = (entry for entry in report.attacks if entry["selection"].get("unless_far") == 0.15)
    assert late["broke"] > 0
