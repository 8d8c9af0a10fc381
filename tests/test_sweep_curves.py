"""Accuracy over eps: never rising, never above a single evaluation's, and hardly dearer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Linear
from torch import Tensor, nn

import robust
from robust.run import Settings
from robust.sources import as_samples
from robust.sweep import SweepConfig, run_sweep
from robust.sweep.curves import attack_curve, points
from robust.target import Target
from robust.threat import Threat

EIGHT = ["0.02", "0.04", "0.06", "0.08", "0.1", "0.14", "0.18", "0.25"]


def test_a_linear_model_falls_where_its_closed_form_says() -> None:
    """Two classes: the least linf perturbation is |margin| / ||w||_1, in the middle of the box."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 12, generator=draw)
    x = 0.5 + 0.05 * torch.randn(60, 12, generator=draw)
    model = Linear(weight, torch.zeros(2))
    y = model(x).argmax(1)
    y[:5] = 1 - y[:5]
    gap = (weight[0] - weight[1]) @ x.T
    least = gap.abs() / (weight[0] - weight[1]).abs().sum()
    threats = [Threat("linf", eps) for eps in ("0.01", "0.02", "0.04", "0.08")]
    rows = range(len(x))
    part = attack_curve(
        Target(model, device="cpu"), as_samples((x, y)), threats, "standard", Settings(micro_batch=32, precision="float32"), rows
    )  # fmt: skip
    radii = torch.tensor([threat.radius for threat in threats])
    expected = torch.searchsorted(radii, least)
    expected[:5] = -1
    assert part.table["falls_at"].tolist() == expected.tolist()
    assert (part.table["distance"].dropna() <= 0.08 + 1e-6).all()


def test_eight_radii_cost_little_more_than_twice_the_dearest_one(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    threats = [Threat("linf", eps) for eps in EIGHT]
    with_batch = Settings(micro_batch=64, precision="float32")
    samples = as_samples((x, y))
    curve = attack_curve(Target(net, device="cpu"), samples, threats, "standard", with_batch, range(len(x)))
    cost = curve.table[["forwards", "backwards"]].to_numpy().sum()
    single = [
        robust.evaluate(net, samples, threat=threat, device="cpu", batch_size=64, precision="float32")
        for threat in threats
    ]
    alone = [report.verdicts[["forwards", "backwards"]].to_numpy().sum() for report in single]
    assert cost <= 2.1 * max(alone)
    assert cost < 0.65 * sum(alone)
    found = points(curve.table, threats)
    accuracies = [point["k"] for point in found]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > accuracies[-1]
    for point, report in zip(found, single, strict=True):
        assert abs(point["k"] - report.statuses["survived"]) <= 1
    falls = curve.table["falls_at"].to_numpy()
    radius = np.array([0, *(threat.radius for threat in threats)])
    fallen = (falls >= 0) & (falls < len(threats))
    distance = curve.table["distance"].to_numpy()[fallen]
    assert (distance <= radius[1:][falls[fallen]] * (1 + 1e-4)).all()
    assert (distance > radius[:-1][falls[fallen]] * (1 - 1e-5)).all()


def test_curves_of_a_sweep_are_kept_drawn_and_found_again(tmp_path: Path) -> None:
    plan = SweepConfig.model_validate(
        {
            "data": "builtin:digits",
            "train": "builtin:digits:train",
            "limit": 40,
            "shard": 15,
            "models": [{"spec": "builtin:digits-mlp"}],
            "defenses": [{"name": "none", "training": {"epochs": 2}}],
            "curves": [{"norm": "linf", "eps": ["0.1", 0.02, "0.05"], "suite": "quick"}],
        }
    )
    first = run_sweep(plan, tmp_path, device="cpu")
    (curve,) = first.curves
    assert (first.computed, first.records, first.failures) == (1, [], [])
    assert [point["eps"] for point in curve["points"]] == ["0.02", "0.05", "0.1"]
    assert all(p["low"] <= p["value"] <= p["high"] and p["n"] == 40 for p in curve["points"])
    assert run_sweep(plan, tmp_path, device="cpu").reused == 1
    pytest.importorskip("matplotlib")
    from robust.sweep.plots import plot_curves

    files = plot_curves([curve], tmp_path / "pictures" / "linf")
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert "robust" not in files[1].read_text()[:20]
    assert "95 % interval" in files[1].read_text()
    assert plot_curves([curve], tmp_path / "again" / "linf")[1].read_bytes() == files[1].read_bytes()


def test_curves_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for curve, message in [
        ({"norm": "linf", "eps": ["0.1"]}, "eps"),
        ({"norm": "linf", "eps": ["0.1", "1/10"]}, "the same radius twice"),
        ({"norm": "linf", "eps": ["0.1", "x"]}, "eps"),
    ]:
        with pytest.raises(ValueError, match=message):
            SweepConfig.model_validate({"data": "d", "models": [{"spec": "m"}], "curves": [curve]})
