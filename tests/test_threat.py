"""Threats: reading them, and exact projections."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

import robust
from robust.errors import ThreatError
from robust.projections import keep_largest, norm_of
from robust.threat import NORMS, Threat


def _points(seed: int, n: int, d: int, spread: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, d, generator=generator, dtype=torch.float64)
    x[:, ::3] = x[:, ::3].round()  # pixels at the ends of the box
    return x, x + spread * torch.randn(n, d, generator=generator, dtype=torch.float64)


def _reference(threat: Threat, v: Tensor, x: Tensor) -> Tensor:
    """Projection by bisection over the multiplier, or by enumeration of the sorted gains (l0)."""
    d, room = (v - x).abs(), torch.where(v > x, 1 - x, x)
    if threat.norm == "linf":
        size = d.clamp_max(threat.radius).minimum(room)
    elif threat.norm == "l0":
        capped = d.minimum(room)
        gain = d**2 - (d - capped) ** 2
        kept = gain >= gain.sort(1, descending=True).values[:, int(threat.radius) - 1 : int(threat.radius)]
        size = torch.where(kept, capped, 0.0)
    else:
        shrink = (lambda t: d / (1 + t)) if threat.norm == "l2" else (lambda t: (d - t).clamp_min(0))
        low, high = torch.zeros(len(d), 1, dtype=d.dtype), torch.full((len(d), 1), 1e6, dtype=d.dtype)
        for _ in range(200):
            middle = (low + high) / 2
            over = norm_of(shrink(middle).minimum(room), threat.norm)[:, None] > threat.radius
            low, high = torch.where(over, middle, low), torch.where(over, high, middle)
        inside = norm_of(d.minimum(room), threat.norm)[:, None] <= threat.radius
        size = torch.where(inside, d, shrink(high)).minimum(room)
    return x + (v - x).sign() * size


@given(
    st.sampled_from(NORMS), st.integers(0, 10**6), st.integers(1, 40), st.floats(0.01, 30), st.floats(0.01, 5)
)
def test_projection_is_the_nearest_point(norm: str, seed: int, d: int, eps: float, spread: float) -> None:
    x, v = _points(seed, 5, d, spread)
    threat = Threat(norm, str(max(1, int(eps)) if norm == "l0" else eps))
    z = threat.project(v, x)
    assert threat.contains(z, x).all()
    expected = _reference(threat, v, x) if not (norm == "l0" and int(threat.radius) > d) else v.clamp(0, 1)
    left = 1e-5 * eps if norm == "l1" else 1e-7  # of eps l1 may leave so much unused
    torch.testing.assert_close((z - v).norm(dim=1), (expected - v).norm(dim=1), rtol=1e-6, atol=left)
    torch.testing.assert_close(threat.project(z, x), z, rtol=0, atol=1e-7)


@given(
    st.sampled_from(["l2", "l1"]),
    st.integers(0, 10**6),
    st.floats(0.01, 60),
    st.sampled_from([1.0, 30.0, 1e4]),
)
def test_projections_of_heavy_tails_stay_inside_and_depend_on_no_other_row(
    norm: str, seed: int, eps: float, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(8, 300, generator=generator)
    tails = torch.randn(8, 300, generator=generator)
    v = x + spread * tails * (2 * tails).exp()
    threat = Threat(norm, repr(eps))
    together = threat.project(v, x)
    assert threat.contains(together, x).all()
    for row in range(8):
        alone = threat.project(v[row : row + 1], x[row : row + 1])
        assert torch.allclose(alone, together[row : row + 1], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("x", "v", "eps"),
    [
        (torch.zeros(1, 50), torch.cat([torch.tensor([300.0]), torch.linspace(0, 1e-4, 49)])[None], "1.001"),
        (torch.full((1, 10), 0.5), 0.5 + torch.arange(91.0, 101.0)[None], "0.01"),
        (torch.zeros(1, 10), torch.full((1, 10), 1e8), "2"),
    ],
    ids=["one giant", "far out", "farther than float32 tells apart"],
)
def test_l1_projections_at_the_ends_of_float32_stay_inside(x: Tensor, v: Tensor, eps: str) -> None:
    threat = Threat("l1", eps)
    assert threat.contains(threat.project(v, x), x).all()


@pytest.mark.parametrize(
    ("values", "eps", "spread"), [(3072, "5", 0.01), (150_528, "5", 1e-4), (150_528, "12", 1e-4)]
)
def test_l1_projections_of_many_small_changes_stay_inside_when_each_is_rounded(
    values: int, eps: str, spread: float
) -> None:
    threat, generator = Threat("l1", eps), torch.Generator().manual_seed(1)
    x = torch.rand(8, values, generator=generator)
    x_adv = threat.project(x + spread * torch.randn(x.shape, generator=generator), x)
    whole = (x_adv.double() - x.double()).abs().sum(1)
    assert (whole <= threat.radius * (1 + 1e-5)).all()
    assert (whole >= threat.radius * (1 - 5e-3)).all()


def test_a_value_that_is_no_number_has_no_distance() -> None:
    x_adv = torch.tensor([[0.0, torch.nan, 0.5], [0.0, 1.0, 0.5]])
    for norm in NORMS:
        distance = norm_of(x_adv, norm)
        assert distance.isnan().tolist() == [True, False]


@given(st.sampled_from(["linf", "l2", "l1"]), st.integers(0, 10**6), st.floats(0.05, 4))
def test_float32_projection_stays_inside(norm: str, seed: int, eps: float) -> None:
    x, v = (t.float().view(5, 1, 8, 8) for t in _points(seed, 5, 64, 1.0))
    threat = Threat(norm, str(eps))
    assert threat.contains(threat.project(v, x), x).all()


@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0.01, 3), st.booleans())
@example(185, 3, 1.5, True)  # the sum stands still at eps itself
@example(3, 11, 2.00001, False)  # and here a hair below it
def test_l1_projection_of_equal_and_boxed_in_changes(seed: int, d: int, eps: float, equal: bool) -> None:
    """Where all values move alike and some have no room, the sum falls in jumps of slope and stands still between."""
    x, v = _points(seed, 4, d, 2.0)
    x = (4 * x).round() / 4
    v = x + 1.5 * (v - x).sign() if equal else v
    threat = Threat("l1", str(eps))
    torch.testing.assert_close(threat.project(v, x), _reference(threat, v, x), rtol=0, atol=1e-6 + 1e-5 * eps)


@pytest.mark.parametrize(
    ("bounds", "values", "eps"),
    [((-1.0, 1.0), 3072, "1.21"), ((0.0, 1.0), 3072, "1"), ((0.0, 1.0), 784, "0.0218")],
)
def test_l1_projections_stay_inside_where_rounding_decides_over_each_change(
    bounds: tuple[float, float], values: int, eps: str
) -> None:
    threat, generator = robust.L1(eps, bounds), torch.Generator().manual_seed(1)
    x = torch.empty(64, values).uniform_(*bounds, generator=generator)
    v = x + torch.randn(64, values, generator=generator).sign() * torch.logspace(-3, 1, 64)[:, None]
    inside = threat.project(v, x)
    assert bool(threat.contains(inside.double(), x.double()).all())
    assert float((inside - x).abs().sum(1).median()) > 0.9 * threat.radius


@pytest.mark.parametrize("values", [16_385, 50_000, 3 * 224 * 224, 3 * 512 * 512])
def test_l2_norms_of_large_images_are_as_exact_as_of_small_ones(values: int) -> None:
    flat = torch.randn(8, values, generator=torch.Generator().manual_seed(0)) * 0.01
    exact = flat.double().norm(dim=1)
    assert float((norm_of(flat, "l2") / exact - 1).abs().max()) < 2e-7


def test_l2_breaks_of_large_images_are_not_lost_to_rounding() -> None:
    """A linear model whose every boundary is well inside the ball."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 3))
    x = torch.rand(32, 3, 224, 224)
    report = robust.evaluate(net, (x, net(x).argmax(1)), threat="l2:2", suite="pgd", device="cpu")
    assert report.statuses["broken"] == len(x)
    assert not any(entry["rejected"] for entry in report.attacks)


def test_projecting_nothing_gives_nothing() -> None:
    for norm in NORMS:
        assert Threat(norm, "2").project(torch.ones(0, 4), torch.ones(0, 4)).shape == (0, 4)


def test_a_point_inside_stays_where_it_is() -> None:
    x = torch.full((1, 4), 0.5)
    for norm in NORMS:
        near = x + torch.tensor([[0.01, 0.0, 0.0, 0.0]])
        assert torch.equal(Threat(norm, "1").project(near, x), near)


@given(st.integers(1, 999), st.integers(1, 999))
def test_eps_is_kept_as_written_and_as_a_number(a: int, b: int) -> None:
    threat = Threat.parse(f"linf:{a}/{b}")
    assert str(threat) == f"linf:{a}/{b}"
    assert threat.radius == pytest.approx(a / b)
    assert Threat.parse(str(threat)) == threat


@pytest.mark.parametrize(
    "spec",
    [
        "linf",
        "linf:",
        "linf:0",
        "linf:-1",
        "linf:8/0",
        "linf:nan",
        "linf:1e39",
        "l2:1e300",
        "l2:1e19",
        "linf:inf",
        "l3:1",
        "l2:a",
        ":1",
        "l2:1e999",
        "l0:0.5",
    ],
)
def test_bad_threats_are_refused(spec: str) -> None:
    with pytest.raises(ThreatError, match=r"threat|eps"):
        Threat.parse(spec)


def test_a_threat_that_is_made_is_checked_as_one_that_is_read() -> None:
    with pytest.raises(ThreatError, match="at least 1 changed value"):
        robust.L0(0.5)


@pytest.mark.parametrize("bounds", [(1.0, 1.0), 5, (0.0, torch.inf), (0.0, 1e308)])
def test_bad_bounds_are_refused(bounds: tuple[float, float]) -> None:
    for make in (lambda: Threat("l2", "1", bounds), lambda: Threat.parse(robust.L2(1), bounds)):
        with pytest.raises(ThreatError, match=r"bounds: expected \(low, high\)"):
            make()


def test_bounds_of_a_threat_are_its_own_unless_they_are_the_default() -> None:
    wide = robust.Linf("0.1", (-1.0, 1.0))
    assert Threat.parse(robust.Linf("0.1"), (-1, 1)) == Threat.parse(wide, (-1, 1)) == wide
    with pytest.raises(ThreatError, match=r"linf:0.1: its bounds are \(-1.0, 1.0\), .* \(0.0, 1.0\)"):
        Threat.parse(wide, (0.0, 1.0))


def test_shorthands_name_the_norm() -> None:
    assert [str(t) for t in (robust.Linf("8/255"), robust.L2(0.5), robust.L1(12), robust.L0(24))] == [
        "linf:8/255", "l2:0.5", "l1:12", "l0:24",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("norm", "distance"), [("linf", 0.5), ("l2", 0.625**0.5), ("l1", 1.0 + 0.25), ("l0", 4.0)]
)
def test_distances(norm: str, distance: float) -> None:
    x, x_adv = torch.zeros(1, 1, 2, 3), torch.tensor([[[[0.5, -0.5, 0.25], [0.25, 0, 0]]]])
    expected = {"l1": 1.5, "l2": 0.625**0.5, "linf": 0.5, "l0": 4.0}[norm]
    assert Threat(norm, "1").distance(x_adv, x).item() == pytest.approx(expected)


def test_contains_refuses_nan_box_and_ball() -> None:
    x = torch.full((4, 2), 0.5)
    x_adv = x + torch.tensor([[0.1, 0.1], [torch.nan, 0], [0.2, 0], [0.1 + 5e-7, 0]])
    assert Threat("linf", "0.1").contains(x_adv, x).tolist() == [True, False, False, True]
    assert Threat("linf", "1").contains(x + 0.6, x).tolist() == [False] * 4


@given(st.integers(0, 10**6), st.sampled_from([(0.0, 255.0), (-1.0, 1.0), (0.0, 1.0), (-2.5, 3.0)]))
def test_a_corner_of_the_ball_is_inside_whatever_the_box(seed: int, bounds: tuple[float, float]) -> None:
    """A change of eps itself survives float32's rounding at the box's end, one of a hundredth more does not."""
    low, high = bounds
    generator = torch.Generator().manual_seed(seed)
    x = low + (high - low) * (0.2 + 0.6 * torch.rand(20, 1, 6, 6, generator=generator))
    eps = 4 / 255 * (high - low)
    threat = Threat("linf", str(eps), bounds)
    assert threat.contains(x + eps, x).all()
    assert not threat.contains(x + 1.01 * eps, x).any()
    assert not threat.contains(torch.full_like(x, high) + 1e-4 * (high - low), torch.full_like(x, high)).any()


def test_a_tiny_ball_is_not_widened_many_times_over() -> None:
    x = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    threat = Threat("linf", "1e-7")
    assert threat.contains(x + 1e-7, x).all()
    assert not threat.contains(x + 1e-6, x).any()


def test_of_equal_gains_no_more_are_kept_than_allowed() -> None:
    change = torch.tensor([[1.0, -1.0, 1.0, 0.5], [0.1, 0.2, -0.3, 0.4], [0.0, 0.0, 0.7, 0.0]])
    for eps in (2, 2.9, torch.full((3, 1), 2.0)):
        kept = keep_largest(change, change.square(), eps)
        assert norm_of(kept, "l0").tolist() == [2, 2, 1]
        assert kept[1].tolist() == pytest.approx([0.0, 0.0, -0.3, 0.4])
        assert torch.equal(
            kept[1:],
            keep_largest(change[1:], change[1:].square(), eps if isinstance(eps, float | int) else eps[1:]),
        )
    assert norm_of(
        keep_largest(change, change.square(), torch.tensor([[1.0], [3.0], [9.0]])), "l0"
    ).tolist() == [1, 3, 1]
    assert not keep_largest(change, change.square(), 0.5).any()


def test_a_point_is_in_the_box_by_its_own_values() -> None:
    threat = Threat("l2", "1")
    x = torch.tensor([[0.0, 1.0], [0.5, 1.1], [-0.1, 0.5], [torch.nan, 0.5]])
    assert threat.in_box(x).tolist() == [True, False, False, False]
    assert threat.in_box(x[:1]).tolist() == [True]
    assert threat.in_box(x[:0]).tolist() == []


def test_bounds_are_a_pair_of_whatever_kind() -> None:
    threat = Threat("l2", "0.5", [0, 1])  # type: ignore[arg-type]
    assert threat == Threat("l2", "0.5", (0, 1))
    assert hash(threat) == hash(Threat("l2", "0.5", (0, 1)))
    for wrong in ([1, 0], 1.0, (0, 1, 2), "01", None):
        with pytest.raises(ThreatError, match="bounds"):
            Threat("l2", "0.5", wrong)  # type: ignore[arg-type]
