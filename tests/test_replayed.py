"""Functions of many small operations as one recorded graph."""

from __future__ import annotations

import threading

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from robust.attacks import planes
from robust.attacks.ascent import _climbed_l2
from robust.attacks.fab import _onto_plane
from robust.crossing import crossing
from robust.projections import _project_l2, _scale_l2, _scale_l2_sorted, norm_of, project
from robust.replayed import Replayed

calls: list[int] = []


@Replayed
def moved(x: Tensor, by: Tensor, size: float | Tensor, *, bounds: tuple[float, float]) -> Tensor:
    calls.append(len(x))
    factor = size[:, None] if isinstance(size, Tensor) else size
    return (x + factor * by[:, None]).clamp(*bounds)


def test_on_a_cpu_it_is_the_function_itself() -> None:
    calls.clear()
    x, by = torch.rand(5, 3), torch.rand(5)
    for _ in range(2):
        assert torch.equal(moved(x, by, 2.0, bounds=(0.0, 1.0)), (x + 2 * by[:, None]).clamp(0, 1))
    assert calls == [5, 5]
    assert "moved" in repr(moved.__wrapped__)  # type: ignore[attr-defined]


@pytest.mark.gpu
def test_on_a_gpu_it_is_recorded_once_for_batches_of_about_a_size() -> None:
    calls.clear()
    kept = []
    for rows, size in ((5, 2.0), (16, 3.0), (3, -1.0), (16, 0.5)):
        x, by = torch.rand(rows, 3, device="cuda"), torch.rand(rows, device="cuda")
        kept.append((moved(x, by, size, bounds=(0.0, 1.0)), (x + size * by[:, None]).clamp(0, 1)))
    assert calls == [16, 16]  # once to warm up, once to record
    for seen, expected in kept:  # each in memory of its own
        torch.testing.assert_close(seen, expected)
    each = torch.rand(4, device="cuda")
    x, by = torch.rand(4, 3, device="cuda"), torch.rand(4, device="cuda")
    expected = (x + each[:, None] * by[:, None]).clamp(0, 1)
    torch.testing.assert_close(moved(x, by, each, bounds=(0.0, 1.0)), expected)
    assert len(calls) == 4
    many = torch.zeros(300, 3, device="cuda")
    moved(many, many[:, 0], 1.0, bounds=(0.0, 1.0))
    assert calls[4:] == [300]  # as it is
    x.requires_grad_()
    assert moved(x, by, 1.0, bounds=(0.0, 1.0)).requires_grad
    assert moved(x[:0], by[:0], 1.0, bounds=(0.0, 1.0)).shape == (0, 3)


@pytest.mark.gpu
def test_what_asks_the_device_for_values_is_run_as_it_is() -> None:
    seen = []

    @Replayed
    def asks(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x * 2 if float(x.sum()) > 0 else x

    x = torch.ones(4, 2, device="cuda")
    for _ in range(3):
        assert torch.equal(asks(x), 2 * x)
    assert seen[-2:] == [4, 4]
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.rand(3, device="cuda").shape == (3,)  # the generator is not held to be recorded
    torch.cuda.empty_cache()  # nor the allocator
    assert torch.equal(moved(x, x[:, 0], 1.0, bounds=(0.0, 9.0)), x + 1)


@pytest.mark.gpu
def test_threads_record_for_themselves() -> None:
    found: dict[int, Tensor] = {}
    x = torch.rand(8, 3, device="cuda")
    calls.clear()

    def work(number: int) -> None:
        for _ in range(20):
            found[number] = moved(x, x[:, 0], float(number), bounds=(0.0, 9.0))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    assert calls == [16] * 6
    for number in range(3):
        torch.testing.assert_close(found[number], (x + number * x[:, :1]).clamp(0, 9))


def _points(rows: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x = (torch.rand(rows, 1, 9, 9, generator=generator) * 1.4 - 0.2).clamp(0, 1)
    return [x, *((torch.randn(x.shape, generator=generator) * 0.2 + x).clamp(0, 1) for _ in range(2)),
            torch.randn(x.shape, generator=generator)]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 70, 300])
def test_what_is_recorded_computes_as_the_cpu_does(rows: int) -> None:
    x, at, previous, gradient = _points(rows)
    offset = gradient.flatten(1).sum(1) * 0.1
    there = [part.to("cuda") for part in (x, at, previous, gradient)]
    box = {"bounds": (0.0, 1.0)}
    for radius in (0.7, 2.0):
        torch.testing.assert_close(
            _project_l2(there[3], there[0], radius, **box).cpu(),
            _project_l2(gradient, x, radius, **box), rtol=0, atol=1e-4,
        )  # fmt: skip
        for momentum in (None, 0.75):
            torch.testing.assert_close(
                _climbed_l2(there[1], there[2], there[3], there[0], radius, 0.3, momentum=momentum, **box).cpu(),
                _climbed_l2(at, previous, gradient, x, radius, 0.3, momentum=momentum, **box), rtol=0, atol=1e-4,
            )  # fmt: skip
    for norm in ("linf", "l2", "l1"):
        options = {"norm": norm, "overshoot": 1.1, "alpha_max": 0.1, **box}
        torch.testing.assert_close(
            _onto_plane(there[1], there[0], there[3], offset.to("cuda"), **options).cpu(),
            _onto_plane(at, x, gradient, offset, **options), rtol=0, atol=1e-4,
        )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    values=st.integers(1, 40),
    scale=st.sampled_from([0.01, 0.3, 3.0]),
    eps=st.sampled_from([0.05, 0.5, 2.0, 100.0]),
    wide=st.booleans(),
)
def test_sorting_comes_to_the_point_that_newton_comes_to(
    seed: int, values: int, scale: float, eps: float, wide: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(4, values, generator=generator)
    x = (x * 1.6 - 0.3).clamp(0, 1) if wide else x
    delta = scale * torch.randn(4, values, generator=generator)
    delta[:, ::3] *= seed % 2
    for radius in (eps, eps * (0.5 + torch.rand(4, 1, generator=generator))):
        newton, sort = (way(delta, -x, 1 - x, radius) for way in (_scale_l2, _scale_l2_sorted))
        torch.testing.assert_close(sort, newton, rtol=0, atol=2e-5 * max(1.0, scale))
        assert (norm_of(sort, "l2")[:, None] <= torch.as_tensor(radius) * (1 + 1e-6)).all()
        assert (sort >= -x - 1e-6).all()
        assert (sort <= 1 - x + 1e-6).all()
    rate = torch.rand(4, values, generator=generator)
    room = torch.rand(4, values, generator=generator)
    full = rate * room
    goal = full.sum(1, keepdim=True) * torch.tensor([[0.1], [0.5], [0.99], [0.0]])
    newton, sort = (way(room, rate, full, goal) for way in (planes._pace, crossing))
    for t in (newton, sort):
        torch.testing.assert_close((rate * room.minimum(t)).sum(1, keepdim=True), goal, rtol=1e-4, atol=1e-5)


def test_a_goal_out_of_reach_is_met_as_far_as_it_goes() -> None:
    meets = torch.tensor([[0.5, 2.0, 1.0]])
    rate = torch.tensor([[1.0, 1.0, 0.0]])
    assert crossing(meets, rate, rate * meets, torch.tensor([[9.0]])).item() >= 2.0
    assert crossing(meets, rate, rate * meets, torch.tensor([[0.0]])).item() == 0.0
    assert crossing(meets, rate, rate * meets, torch.tensor([[2.0]])).item() == pytest.approx(1.5)


def test_projections_of_a_row_do_not_depend_on_the_others() -> None:
    x, at, *_ = _points(7)
    whole = project(4 * at, x, "l2", 0.5)
    for i in range(len(x)):
        torch.testing.assert_close(project(4 * at[i : i + 1], x[i : i + 1], "l2", 0.5), whole[i : i + 1])


def test_gradients_go_through_a_sorted_projection() -> None:
    x, at, *_ = (part.double().flatten(1) for part in _points(3))
    delta = (3 * (at - x)).requires_grad_()
    by_hand = []
    for way in (_scale_l2, _scale_l2_sorted):
        out = way(delta, -x - 1, 2 - x, 0.5)  # the box is far: but a scaling of the whole
        by_hand.append(torch.autograd.grad(out.square().sum() + out[:, 0].sum(), delta)[0])
    torch.testing.assert_close(by_hand[1], by_hand[0], rtol=1e-3, atol=1e-5)
