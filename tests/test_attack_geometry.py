"""Steps of gradient attacks."""

from __future__ import annotations

import pytest
import torch

from robust.attacks.geometry import brought_in, steepest, uphill
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
