"""Verdicts beside the exact answer of a mixed-integer program, on a net that is small enough for it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from wrapped import trained

import robust
from robust.threat import Threat

THREAT = Threat.parse("linf:0.08")


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    import exact

    return exact


@functools.cache
def small() -> nn.Module:
    """A convolution and two linear layers with 54 ReLUs, trained on digits."""
    return trained(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 22), nn.ReLU(), nn.Linear(22, 10)
        ),
        rate=1e-2,
        epochs=15,
    )  # fmt: skip


def test_standard_leaves_standing_what_nothing_can_break(exact: Any, digits: tuple[Tensor, Tensor]) -> None:
    """And breaks what can be broken: the verdict is the exact one."""
    model, (x, y) = small(), digits
    verdicts = robust.evaluate(model, digits, threat=THREAT, device="cpu").verdicts
    parts = exact.parts_of(model, x.shape[1:])
    seen = {"survived": 0, "broken": 0}
    for i, status in enumerate(verdicts.status):
        if status in seen and seen[status] < 20:
            answer = exact.examine(model, parts, x[i : i + 1], int(y[i]), THREAT, 30.0)
            assert answer == {"survived": "verified", "broken": "broken"}[status]
            seen[status] += 1
    assert min(seen.values()) > 10


def test_bounds_hold_all_over_the_threat(exact: Any, digits: tuple[Tensor, Tensor]) -> None:
    model, x = small(), digits[0][:1]
    parts = exact.parts_of(model, x.shape[1:])
    low, high = ((x + edge * THREAT.radius).clamp(0, 1) for edge in (-1, 1))
    box = exact.Interval(*(edge.flatten().double().numpy() for edge in (low, high)))
    inner = exact.inner_intervals(parts, box)
    tops = exact.upper(parts, box, inner, np.eye(10))
    points = low + torch.rand(2000, *x.shape[1:], generator=torch.Generator().manual_seed(0)) * (high - low)
    corners = torch.where(points > x, high, low)
    with torch.no_grad():
        for at in (points, corners):
            assert np.all(model(at).numpy() <= tops + 1e-4)
            before = model[0](at).flatten(1).numpy()
            assert np.all((inner[0].low - 1e-4 <= before) & (before <= inner[0].high + 1e-4))
    reached = model[0](corners).flatten(1).detach().numpy().max(0)
    middle = (inner[0].low + inner[0].high) / 2
    assert np.all(reached > middle - 1e-4)  # of the first layer's inputs they are tight


@pytest.mark.parametrize("layer", [nn.Tanh(), nn.MaxPool2d(2)])
def test_nets_of_other_layers_are_refused(layer: nn.Module, exact: Any) -> None:
    with pytest.raises(SystemExit, match=f"expected affine layers and ReLUs, got {type(layer).__name__}"):
        exact.parts_of(nn.Sequential(layer, nn.Flatten(), nn.Linear(16, 2)), (1, 8, 8))


def test_other_threats_are_refused(exact: Any, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    parts = exact.parts_of(small(), x.shape[1:])
    with pytest.raises(SystemExit, match=r"expected a threat of linf, got l2:0\.5"):
        exact.examine(small(), parts, x[:1], int(y[0]), Threat.parse("l2:0.5"), 1.0)
