"""Steps of gradient attacks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robust.attacks import APGD
from robust.attacks.geometry import (
    ahead,
    brought_in,
    movable,
    moved,
    replace,
    signs_of_largest,
    steepest,
    uphill,
)
from robust.errors import InputError
from robust.oracle import Oracle
from robust.target import Target
from robust.threat import Threat


def test_l1_steps_go_to_values_that_have_room() -> None:
    threat = Threat("l1", "3")
    x = torch.tensor([[0.0, 1.0, 0.5, 0.5]])
    gradient = torch.tensor([[-9.0, 8.0, -2.0, 1e-20]])  # the first two lead out of the box
    assert steepest(gradient, "l1").tolist() == [[-1.0, 0.0, 0.0, 0.0]]
    assert uphill(gradient, x, threat).tolist() == [[0.0, 0.0, -1.0, 0.0]]
    inward = torch.tensor([[9.0, -8.0, -2.0, 1e-20]])
    assert uphill(inward, x, threat).tolist() == [[1.0, 0.0, 0.0, 0.0]]
    tiny = torch.tensor([[-9.0, 8.0, 0.0, 1e-20]])
    assert uphill(tiny, x, threat).tolist() == [[0.0, 0.0, 0.0, 1.0]]


def test_l2_steps_spend_nothing_on_values_at_the_end_of_the_box() -> None:
    x = torch.tensor([[0.0, 1.0, 0.5, 0.5, 0.0]])
    step = uphill(torch.tensor([[-9.0, 8.0, -3.0, 0.0, 4.0]]), x, Threat("l2", "1"))
    torch.testing.assert_close(step, torch.tensor([[0.0, 0.0, -0.6, 0.0, 0.8]]))
    nowhere = uphill(torch.tensor([[-9.0, 8.0, 0.0, 0.0, -1.0]]), x, Threat("l2", "1"))
    assert nowhere.tolist() == [[0.0] * 5]


@pytest.mark.parametrize(
    ("outside", "steps"), [(None, {3: 9, 2: 9, 1: 12}), (1, {1: 30}), (16, {16: 6, 8: 6, 4: 6, 2: 6, 1: 6})]
)
def test_apgd_in_l1_comes_in_from_far_changes_of_single_values(
    outside: float | None, steps: dict[int, int]
) -> None:
    """Noise as wide as the box is brought in to the largest radius: so the first point is as far out, and sparse."""
    x, seen = torch.full((3, 1, 28, 28), 0.5), list[Tensor]()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 2))
    target = Target(model, device="cpu")
    with torch.no_grad():
        model[1].bias.copy_(-1e6 * torch.tensor([0.0, 1.0]))
    y = torch.zeros(3, dtype=torch.int64)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    APGD(steps=30, outside=outside).run(Oracle(target, x, y, torch.arange(3), Threat("l1", "1")))
    radii = [radius for radius, count in steps.items() for _ in range(count + 1)]
    norms = [float((point - x).flatten(1).norm(p=1, dim=1).max()) for point in seen]
    assert norms[0] == pytest.approx(radii[0], rel=1e-4)
    assert (seen[0] != 0.5).flatten(1).sum(1).max() < 30 * radii[0]
    assert all(norm <= radius * 1.0001 for norm, radius in zip(norms, radii, strict=True))


def test_where_apgd_comes_in_from_is_at_least_eps() -> None:
    with pytest.raises(
        InputError, match=r"apgd: outside: expected a radius in units of eps, 1 or more, got 0\.5"
    ):
        APGD(outside=0.5)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-2.0, 3.0)])
def test_where_all_values_have_room_steps_are_the_steepest(bounds: tuple[float, float]) -> None:
    x, gradient = torch.rand(5, 7), torch.randn(5, 7)
    for norm in ("linf", "l2"):
        assert torch.equal(uphill(gradient, x, Threat(norm, "1", bounds)), steepest(gradient, norm))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_is_brought_in_lies_inside(norm: str) -> None:
    x, y = torch.rand(20, 12), torch.zeros(20, dtype=torch.int64)
    threat = Threat(norm, "0.7")
    oracle = Oracle(Target(torch.nn.Linear(12, 2), device="cpu"), x, y, torch.arange(20), threat)
    assert threat.contains(brought_in(oracle, x + 3 * torch.randn(20, 12)), x).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_signs_of_the_largest_are_as_many_as_asked_for_or_those_that_are_not_zero(dtype: torch.dtype) -> None:
    flat = torch.tensor(
        [[3.0, -2.0, 1.0, -4.0], [0.0, -1e-30, 0.0, 0.0], [2.0, -2.0, 2.0, 0.0], [0.0] * 4], dtype=dtype
    )
    two = [[1.0, 0.0, 0.0, -1.0], [0.0, -1.0, 0.0, 0.0], [1.0, -1.0, 1.0, 0.0], [0.0] * 4]
    assert signs_of_largest(flat, 2).tolist() == two
    assert signs_of_largest(flat, torch.full((4,), 2)).tolist() == two
    one, three = signs_of_largest(flat[:1], torch.tensor([1])), signs_of_largest(flat[:1], torch.tensor([3]))
    assert (one.abs().sum(), three.abs().sum()) == (1, 3)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.0, 255.0), (-0.3, 0.7), (-1e30, 1e30)], ids=str)
def test_only_values_at_the_end_of_the_box_cannot_move(bounds: tuple[float, float]) -> None:
    low, high = torch.tensor(bounds)
    inner = low + (high - low) * torch.tensor([1e-6, 0.5, 1 - 1e-6])
    x = torch.cat([low[None], inner, high[None]]).expand(2, 5)
    gradient = torch.tensor([[1e3], [-1e3]]).expand(2, 5)
    expected = gradient.clone()
    expected[0, 4] = expected[1, 0] = 0
    assert torch.equal(movable(gradient, x, bounds), expected)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_steps_in_one_go_are_those_in_two(norm: str) -> None:
    x, gradient, sizes = torch.rand(6, 1, 5, 5).round(decimals=1), torch.randn(6, 1, 5, 5), torch.rand(6)
    kept, threat = gradient.clone(), Threat(norm, "1")
    torch.testing.assert_close(ahead(x, gradient, threat, 0.3), x + 0.3 * uphill(gradient, x, threat))
    by_row = sizes.view(-1, 1, 1, 1) * steepest(gradient, norm)
    torch.testing.assert_close(moved(x, gradient, norm, sizes), x + by_row)
    torch.testing.assert_close(moved(x, gradient, norm, 0.3), x + 0.3 * steepest(gradient, norm))
    assert torch.equal(gradient, kept)


def test_rows_are_replaced_where_they_are() -> None:
    for rows in ([True, False, True], [False] * 3, [True] * 3):
        named = torch.tensor(rows)
        kept, other, new = torch.zeros(3, 2), torch.ones(3, 4), torch.full((3, 2), 7.0)
        replace(named, (kept, new), (other, other + 1))
        assert kept[:, 0].tolist() == [7.0 * row for row in rows]
        assert other[:, 3].tolist() == [1.0 + row for row in rows]
