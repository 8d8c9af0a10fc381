"""Threats that are no norm balls: exact membership, projections, attacks, and the corruptions themselves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import robust
from robust.attacks import PatchPGD
from robust.corruptions import CORRUPTIONS, SEVERITIES, corrupt, corruption_accuracy
from robust.errors import InputError, ThreatError, UnknownNameError, UnsupportedError
from robust.families import Spatial
from robust.families.spatial import warp
from robust.threat import Threat

SPECS = ["spatial:30,0.1", "corruptions", "corruptions:3", "corruptions:2-4", "patch:5x3"]


@pytest.fixture
def images() -> Tensor:
    """Six smooth colour images, (6, 3, 16, 16)."""
    coarse = torch.rand(6, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, (16, 16), mode="bilinear")


@pytest.mark.parametrize("spec", SPECS)
def test_threats_are_read_and_written_back(spec: str) -> None:
    threat = Threat.parse(spec)
    assert str(threat) == spec
    assert Threat.parse(str(threat)) == threat
    assert Threat(threat.norm, threat.eps, threat.bounds).radius == threat.radius > 0


def test_shorthands_give_the_same_threats() -> None:
    made = (robust.Spatial(30, 0.1), robust.Corruptions(), robust.Corruptions(3), robust.Patch(5, 3))
    assert [str(threat) for threat in made] == ["spatial:30,0.1", "corruptions", "corruptions:3", "patch:5x3"]


@pytest.mark.parametrize("given", [(None,), ("far",), (30, "far"), ([30],)])
def test_a_shorthand_of_no_number_is_refused_as_the_threat_is(given: Any) -> None:
    with pytest.raises(ThreatError, match="threat spatial: expected"):
        robust.Spatial(*given)


@pytest.mark.parametrize(
    "spec",
    ["spatial:", "spatial:0", "spatial:181", "spatial:10,0.6", "spatial:1,2,3", "spatial:nan", "corruptions:0",
     "corruptions:6", "corruptions:4-2", "corruptions:fog", "patch:", "patch:0x3", "patch:5x", "patch", "spatial"],
)  # fmt: skip
def test_bad_threats_are_refused(spec: str) -> None:
    with pytest.raises(ThreatError, match="threat"):
        Threat.parse(spec)


@pytest.mark.parametrize("spec", ["spatial:30,0.1", "corruptions"])
def test_every_member_is_inside_and_little_else(spec: str, images: Tensor) -> None:
    threat = Threat.parse(spec)
    family = threat.family
    assert family is not None
    sizes = list(family.sizes)  # type: ignore[attr-defined]
    assert sizes == sorted(sizes)
    for index in range(1, len(sizes), max(1, len(sizes) // 4)):
        point = family.member(images, index, threat.bounds)  # type: ignore[attr-defined]
        alone = family.member(images[2:3], index, threat.bounds)  # type: ignore[attr-defined]
        torch.testing.assert_close(alone, point[2:3], rtol=0, atol=1e-6)
        inside, distance = threat.measure(point.double(), images.double())
        assert inside.all()
        assert (distance <= sizes[index] + 1e-6).all()
        nudged = point.clone()
        nudged[:, 0, 3, 3] = (nudged[:, 0, 3, 3] - 0.5).abs()
        assert not threat.contains(nudged, images).any()
        torch.testing.assert_close(threat.project(point, images), point, rtol=0, atol=1e-5)
    assert threat.contains(images, images).all()
    assert threat.distance(images, images).tolist() == [0.0] * 6
    assert not threat.contains(torch.full_like(images, torch.nan), images).any()


def test_severities_are_told_apart(images: Tensor) -> None:
    worse = corrupt(images, "contrast", 4)
    assert Threat.parse("corruptions").distance(worse, images).tolist() == [4.0] * 6
    assert Threat.parse("corruptions:2-4").contains(worse, images).all()
    assert not Threat.parse("corruptions:3").contains(worse, images).any()


def test_the_spatial_grid_is_the_papers() -> None:
    grid = Spatial(30, 0.1).grid
    assert len(grid) == 31 * 5 * 5
    assert grid[0][1:] == (0.0, 0.0, 0.0)
    assert {cell[1] for cell in grid} >= {-30.0, 30.0}
    assert len(Spatial(30).grid) == 31


def test_warps_by_hand() -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 1, 3] = 1.0
    torch.testing.assert_close(warp(x, 90, 0, 0, (0, 1)), torch.rot90(x, 1, (2, 3)), rtol=0, atol=1e-5)
    moved = warp(x, 0, 0.4, -0.2, (0, 1))
    assert moved[0, 0, 3, 2].item() == pytest.approx(1, abs=1e-5)
    assert moved.sum().item() == pytest.approx(1, abs=1e-5)
    dark = warp(torch.ones(1, 1, 5, 5), 0, 0.4, 0, (-1, 1))
    torch.testing.assert_close(dark[0, 0, :, 2], torch.tensor([-1.0, -1, 1, 1, 1]))


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6))
@settings(deadline=None, max_examples=30)
def test_patch_projection_is_the_nearest_point(seed: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 2, 6, 6, generator=generator, dtype=torch.float64)
    v = x + torch.randn(3, 2, 6, 6, generator=generator, dtype=torch.float64)
    threat = robust.Patch(height, width)
    z = threat.project(v, x)
    assert threat.contains(z, x).all()
    assert torch.equal(threat.project(z, x), z)
    best = torch.full((3,), math.inf, dtype=torch.float64)
    for top in range(7 - height):
        for left in range(7 - width):
            other = x.clone()
            rows, columns = slice(top, top + height), slice(left, left + width)
            other[:, :, rows, columns] = v[:, :, rows, columns].clamp(0, 1)
            best = torch.minimum(best, (other - v).flatten(1).norm(dim=1))
    torch.testing.assert_close((z - v).flatten(1).norm(dim=1), best)


def test_patch_sizes() -> None:
    x = torch.full((3, 3, 8, 8), 0.5)
    x_adv = x.clone()
    x_adv[1, 2, 2:4, 5:8] = 1.0
    x_adv[2, 0, 0, 0] = x_adv[2, 1, 4, 0] = 0.0
    threat = robust.Patch(4, 3)
    assert threat.distance(x_adv, x).tolist() == [0.0, 1.0, 1.25]
    assert threat.contains(x_adv, x).tolist() == [True, True, False]
    assert not threat.contains(x_adv + 0.6, x).any()
    with pytest.raises(InputError, match="larger than the image"):
        robust.Patch(9, 1).project(x_adv, x)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_grow_and_depend_on_the_image_alone(kind: str, images: Tensor) -> None:
    before = images.clone()
    outs = [corrupt(images, kind, severity) for severity in SEVERITIES]
    sizes = [float((out - images).square().mean()) for out in outs]
    assert torch.equal(images, before)
    for out in outs:
        assert out.shape == images.shape
        assert ((out >= 0) & (out <= 1)).all()
    assert sizes[0] > 0
    assert sizes[4] > 1.3 * sizes[0]
    torch.testing.assert_close(corrupt(images[3:4], kind, 3), outs[2][3:4], rtol=0, atol=1e-6)
    assert torch.equal(corrupt(images, kind, 3), outs[2])
    wide = corrupt(images * 4 - 2, kind, 2, bounds=(-2.0, 2.0))
    assert wide.amin() >= -2
    assert wide.amax() <= 2
    grey = corrupt(images[:, :1, :10], kind, 3)
    assert grey.shape == (6, 1, 10, 16)


def test_corruption_names_are_the_known_ones() -> None:
    assert " ".join(sorted(CORRUPTIONS)) == (
        "brightness contrast defocus_blur elastic_transform fog frost gaussian_noise glass_blur impulse_noise "
        "jpeg_compression motion_blur pixelate shot_noise snow zoom_blur"
    )


def test_corruptions_by_hand(images: Tensor) -> None:
    flat = torch.full((400, 1, 8, 8), 0.5) + 0.001 * torch.arange(400).view(-1, 1, 1, 1) / 400
    noise = corrupt(flat, "gaussian_noise", 5) - flat
    assert noise.std().item() == pytest.approx(0.1, rel=0.05)
    shot = corrupt(flat, "shot_noise", 5) - flat
    assert shot.std().item() == pytest.approx((0.5 / 50) ** 0.5, rel=0.05)
    assert abs(shot.mean().item()) < 0.003
    hit = corrupt(flat, "impulse_noise", 5)
    assert ((hit == 0) | (hit == 1)).float().mean().item() == pytest.approx(0.07, abs=0.01)
    torch.testing.assert_close(corrupt(images, "contrast", 5).mean((2, 3)), images.mean((2, 3)))
    for kind in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate"):
        torch.testing.assert_close(corrupt(flat[:1], kind, 5), flat[:1], rtol=0, atol=1e-5)
    with pytest.raises(UnknownNameError, match="unknown corruption 'smog'"):
        corrupt(images, "smog", 1)
    with pytest.raises(InputError, match="severity: expected 1 to 5"):
        corrupt(images, "fog", 0)


def test_mean_corruption_accuracy(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    table = corruption_accuracy(net, digits, severities=(1, 5), device="cpu", batch_size=40)
    assert list(table.index) == list(CORRUPTIONS)
    assert list(table.columns) == [1, 5, "mean"]
    expected = (net(corrupt(x, "fog", 5)).argmax(1) == y).float().mean().item()
    assert table.loc["fog", 5] == pytest.approx(expected, abs=1 / 64 + 1e-6)
    assert table[1].mean() > table[5].mean() > 0
    assert table["mean"].mean() == pytest.approx((table[1].mean() + table[5].mean()) / 2)


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"batch_size": 1.5}, {"severities": ()}, {"severities": 3}, {"severities": (1, 6)}],
)
def test_options_of_the_mean_out_of_range(
    wrong: dict[str, Any], net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(wrong))}: expected"):
        corruption_accuracy(net, digits, device="cpu", **wrong)


def test_an_answer_that_is_not_finite_is_not_right(digits: tuple[Tensor, Tensor]) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 10), torch.nan)

    table = corruption_accuracy(Broken(), (digits[0], 0 * digits[1]), severities=(1,), device="cpu")
    assert table["mean"].max() == 0


@pytest.mark.parametrize("spec", ["spatial:20", "corruptions:1", "patch:1x2"])
def test_evaluation_under_a_family(spec: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:16], digits[1][:16]
    report = robust.evaluate(net, (x, y), threat=spec, device="cpu", batch_size=16, keep_examples=True)
    assert report.statuses["broken"] > 0
    assert all(entry["rejected"] == 0 for entry in report.attacks)
    assert report.examples is not None
    rows = report.examples["sample_id"]
    found = report.examples["x_adv"]
    threat = Threat.parse(spec)
    assert threat.contains(found, x[rows]).all()
    assert (net(found).argmax(1) != y[rows]).all()
    broken = report.verdicts[report.verdicts.status == "broken"]
    assert (broken.distance <= threat.radius).all()


def test_a_smaller_family_never_breaks_more(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    data = digits[0][:16], digits[1][:16]
    for wide, narrow in (("spatial:30,0.1", "spatial:30"), ("corruptions:4-5", "corruptions:4")):
        of_wide, of_narrow = (
            robust.evaluate(net, data, threat=spec, device="cpu", batch_size=16).verdicts
            for spec in (wide, narrow)
        )
        assert (of_narrow.distance.notna() <= of_wide.distance.notna()).all()


def test_what_does_not_fit_is_refused(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UnsupportedError, match="not for spatial"):
        robust.evaluate(net, digits, threat="spatial:30,0.1", suite="pgd", device="cpu")
    flat = digits[0].flatten(1), digits[1]
    unfolding = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), net)
    for spec in ("patch:3x3", "spatial:30", "corruptions:1"):
        with pytest.raises(InputError, match="needs images"):
            robust.evaluate(unfolding, flat, threat=spec, device="cpu")
    with pytest.raises(InputError, match="hardening needs a ball in linf, l2 or l1"):
        robust.harden(net, (digits[0], digits[1]), defense="pgd-at", threat="spatial:30")
    with pytest.raises(InputError, match="steps >= 1 and places >= 1"):
        PatchPGD(places=0)
