"""Accuracy over eps: never rising, never above a single evaluation's, and hardly dearer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Linear, Outcome
from torch import Tensor, nn

import robust
from robust.attacks import PGD
from robust.cli.sweep import _print_curves
from robust.parts import Plan, attack_part
from robust.run import Settings
from robust.sources import as_samples
from robust.suites import Stage
from robust.sweep import SweepConfig, run_sweep
from robust.sweep.cells import curve_cells
from robust.sweep.curves import attack_curve, points
from robust.sweep.finish import counts
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


def test_eight_radii_cost_at_most_twice_the_dearest_one(
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
    assert cost <= 2 * max(alone)
    assert cost < 0.5 * sum(alone)
    found = points(curve.table, threats)
    accuracies = [point["k"] for point in found]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > accuracies[-1]
    for point, report in zip(found, single, strict=True):
        assert point["k"] <= report.statuses["survived"]
    falls = curve.table["falls_at"].to_numpy()
    radius = np.array([0, *(threat.radius for threat in threats)])
    fallen = (falls >= 0) & (falls < len(threats))
    distance = curve.table["distance"].to_numpy()[fallen]
    assert (distance <= radius[1:][falls[fallen]] * (1 + 1e-4)).all()
    assert (distance > radius[:-1][falls[fallen]] * (1 - 1e-5)).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_curve_depends_neither_on_the_batch_nor_on_the_shard(
    norm: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    samples = as_samples((digits[0][:12], digits[1][:12]))
    threats = [Threat(norm, eps) for eps in {"linf": ("0.04", "0.08", "0.1"), "l2": ("0.3", "0.5")}[norm]]

    def table(rows: range, batch: int) -> pd.DataFrame:
        settings = Settings(micro_batch=batch, precision="float32")
        return attack_curve(Target(net, device="cpu"), samples, threats, "standard", settings, rows).table

    whole = table(range(12), 64)
    apart = pd.concat([table(range(5), 4), table(range(5, 12), 4)], ignore_index=True)
    assert len(set(whole["falls_at"])) > 1
    for column in ("sample_id", "prediction", "falls_at"):
        assert whole[column].tolist() == apart[column].tolist(), column
    # A batch of another size is rounded in another way: a search may end at another step on a tie.
    assert (whole[["forwards", "backwards"]] != apart[["forwards", "backwards"]]).any(axis=1).sum() <= 1
    np.testing.assert_allclose(whole["distance"], apart["distance"], rtol=1e-4)


class Cliff(nn.Module):
    """Class 1 where the values add up to more than 1, and no gradient anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1)
        return torch.stack([torch.full_like(total, 0.5), (total > 1) + 0 * total], 1)


def test_searches_begin_at_a_break_that_is_known_beyond_the_radius() -> None:
    x, beyond = torch.full((3, 1, 1, 2), 0.4), torch.full((3, 1, 1, 2), 0.6)
    beyond[2] = torch.tensor([0.4, 0.9])  # whose nearest point inside is no break
    threat, attack = Threat("linf", "0.15"), PGD(steps=2, random_start=False)
    samples = as_samples((x, torch.zeros(3, dtype=torch.int64)))
    plan, settings = Plan(threat, "pgd", [Stage(attack)]), Settings(micro_batch=2, precision="float32")

    def statuses(near: Tensor | None) -> list[str]:
        part = attack_part(Target(Cliff(), device="cpu"), samples, plan, settings, near=near)
        return list(part.verdicts["status"])

    assert statuses(None) == ["survived"] * 3
    assert statuses(beyond) == ["broken", "broken", "survived"]


class SometimesNaN(nn.Module):
    """Class 1 where the first value is over 1/2; no numbers where the second is."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.flatten(1).unbind(1)
        logits = torch.stack([0.5 - first, first - 0.5], 1)
        return logits.where(second[:, None] < 0.5, torch.nan)


@pytest.mark.parametrize("label", [0, 1])
def test_clean_logits_that_are_no_numbers_are_errors_whatever_the_label(label: int) -> None:
    """argmax takes NaN for class 0: under label 1 they would be misclassified, and nothing would be told."""
    x = torch.tensor([[0.1, 0.1], [0.1, 0.9], [0.9, 0.9], [0.9, 0.1]]).view(4, 1, 1, 2)
    samples = as_samples((x, torch.full((4,), label)))
    threats = [Threat("linf", "0.01"), Threat("linf", "0.02")]
    settings = Settings(micro_batch=4, precision="float32")
    part = attack_curve(Target(SometimesNaN(), device="cpu"), samples, threats, "quick", settings, range(4))
    falls = [2, -2, -2, -1] if label == 0 else [-1, -2, -2, 2]
    assert part.table["falls_at"].tolist() == falls
    assert part.table["prediction"].tolist() == [0, -1, -1, 1]
    assert [finding.check for finding in part.findings].count("non-finite") == 1
    assert part.failures == ["clean: non-finite logits on 2 clean samples"]
    assert counts(part) == {"samples": 4, "correct": 1, "survived": 1}


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


def test_curves_of_one_norm_at_other_radii_have_a_table_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = SweepConfig.model_validate(
        {
            "data": "builtin:digits",
            "limit": 12,
            "models": [{"spec": "builtin:digits-mlp"}],
            "curves": [
                {"norm": "linf", "eps": ["0.02", "0.04"], "suite": "quick"},
                {"norm": "linf", "eps": ["0.1", "0.2"], "suite": "quick"},
            ],
        }
    )
    assert len({cell.title for cell in curve_cells(plan)}) == 2
    result = run_sweep(plan, tmp_path, device="cpu")
    assert _print_curves(result, tmp_path)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for curve in result.curves:
        head = lines.index(["robust", "%", *(point["eps"] for point in curve["points"])])
        assert lines[head + 2][-2:] == [f"{100 * point['value']:.1f}" for point in curve["points"]]


def test_pictures_that_cannot_be_written_leave_the_summary(
    tmp_path: Path, inside: Callable[..., Outcome]
) -> None:
    (tmp_path / "plan.toml").write_text(
        """
        data = "builtin:digits"
        limit = 4
        models = [{spec = "builtin:digits-mlp"}]
        curves = [{norm = "linf", eps = ["0.02", "0.04"], suite = ["fgsm"]}]
        """
    )
    arguments = ("sweep", "plan.toml", "--out", "out", "--device", "cpu")
    assert inside(*arguments, cwd=tmp_path).returncode == 0
    (picture,) = (tmp_path / "out" / "curves").glob("*.png")
    picture.unlink()
    picture.mkdir()
    done = inside(*arguments, cwd=tmp_path)
    assert done.returncode == 3
    assert f"{picture.name}: Is a directory; move away what is in the way" in done.stderr
    assert "0 evaluations computed, 1 found in out" in done.stdout


def test_plans_in_one_folder_keep_each_their_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    def pictures(name: str, *eps: str) -> set[str]:
        models = [{"spec": "builtin:digits-mlp", "name": name}]
        curve = {"norm": "linf", "eps": eps, "suite": ["fgsm"]}
        plan = SweepConfig.model_validate(
            {"data": "builtin:digits", "limit": 4, "models": models, "curves": [curve]}
        )
        before = {path: path.read_bytes() for path in tmp_path.glob("curves/*.[ps][nv]g")}
        assert _print_curves(run_sweep(plan, tmp_path, device="cpu"), tmp_path)
        assert {path: path.read_bytes() for path in before} == before
        return {path.name for path in tmp_path.glob("curves/*.[ps][nv]g")}

    first = pictures("one", "0.02", "0.04")
    assert len(first) == 2
    assert pictures("one", "0.02", "0.04") == first
    assert len(pictures("one", "0.1", "0.2")) == 4
    assert len(pictures("two", "0.1", "0.2")) == 6


def test_a_curve_that_is_computed_again_keeps_its_place_and_its_picture(tmp_path: Path) -> None:
    plan = SweepConfig.model_validate(
        {
            "data": "builtin:digits",
            "train": "builtin:digits:train",
            "limit": 4,
            "models": [{"spec": "builtin:digits-mlp"}],
            "defenses": [{"name": "none", "training": {"epochs": epochs}} for epochs in (1, 2)],
            "curves": [{"norm": "linf", "eps": ["0.02", "0.04"], "suite": ["fgsm"]}],
        }
    )

    def names() -> tuple[list[str], set[str]]:
        result = run_sweep(plan, tmp_path, device="cpu")
        _print_curves(result, tmp_path)
        return [curve["defense"] for curve in result.curves], {
            path.name for path in tmp_path.glob("curves/*.svg")
        }

    first = names()
    assert first[0] == ["none(epochs=1)", "none(epochs=2)"]
    for path in tmp_path.glob("curves/*.json"):
        if "none(epochs=1)" in path.read_text():
            path.unlink()
    assert names() == first


def test_curves_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for curve, message in [
        ({"norm": "linf", "eps": ["0.1"]}, "eps"),
        ({"norm": "linf", "eps": ["0.1", "1/10"]}, "the same radius twice"),
        ({"norm": "linf", "eps": ["0.1", "x"]}, "eps"),
    ]:
        with pytest.raises(ValueError, match=message):
            SweepConfig.model_validate({"data": "d", "models": [{"spec": "m"}], "curves": [curve]})
