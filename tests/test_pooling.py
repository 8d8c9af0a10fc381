"""Max pooling while a model is under test on a CPU: the same digits, sooner."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F  # noqa: N812 - its usual name
from toy import output_and_slope

from robust.pooling import quick_pooling
from robust.target import Target

OWN = F.max_pool2d


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@settings(max_examples=80, deadline=None)
@given(
    size=st.integers(1, 4),
    stride=st.none() | st.integers(1, 4),
    height=st.integers(4, 33),
    width=st.integers(4, 33),
    rows=st.integers(0, 60),
    levels=st.sampled_from([0, 2, 5]),
    ceil=st.booleans(),
    seed=st.integers(0, 9),
)
def test_outputs_and_gradients_are_the_same_digits(
    size: int, stride: int | None, height: int, width: int, rows: int, levels: int, ceil: bool, seed: int
) -> None:
    """Ties too, of which the first value in reading order gets the gradient."""
    torch.manual_seed(seed)
    pool = nn.MaxPool2d(size, stride, ceil_mode=ceil)
    x = torch.randn(rows, 24, height, width)
    if levels:
        x = (x * levels).round() / levels
    want = output_and_slope(pool, x)
    with quick_pooling():
        got = output_and_slope(pool, x)
        answer = pool(x)
    assert same(got, want)
    assert torch.equal(answer, want[0])


class Watched(nn.Module):
    """Pools as it is told, and notes how the output came about."""

    def __init__(self, *given: object, **named: object) -> None:
        super().__init__()
        self.given, self.named, self.way = given, named, ""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.max_pool2d(x, *self.given, **self.named)  # type: ignore[arg-type]
        self.way = "" if out.grad_fn is None else out.grad_fn.name()
        return out.flatten(1)


@pytest.mark.parametrize(
    ("net", "rows", "sliced"),
    [
        (Watched(2), 40, True),
        (Watched((2, 2), stride=[2, 2]), 40, True),
        (Watched(3, 3), 40, True),
        (Watched(kernel_size=2), 40, True),
        (Watched(2), 1, False),
        (Watched(2, 1), 40, False),
        (Watched(2, (2, 1)), 40, False),
        (Watched((2, 1)), 40, False),
        (Watched(2, padding=1), 40, False),
        (Watched(2, dilation=2), 40, False),
        (Watched(8), 40, False),
    ],
)
def test_the_way_goes_by_windows_and_size(net: Watched, rows: int, sliced: bool) -> None:
    x = torch.rand(rows, 8, 24, 24, requires_grad=True)
    with Target(net, device="cpu"):
        net(x)
    assert net.way.startswith("_MaxPool") is sliced


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(24, 40, 24),
        torch.rand(40, 8, 24, 24, dtype=torch.float64),
        torch.rand(40, 8, 24, 24).to(memory_format=torch.channels_last),
        torch.rand(40, 8, 24, 24).bfloat16(),
    ],
)
def test_other_inputs_go_to_torch(x: Tensor) -> None:
    want = F.max_pool2d(x, 2)
    with quick_pooling():
        got = F.max_pool2d(x, 2)
        indices = F.max_pool2d(x, 2, return_indices=True)[1]
    assert torch.equal(got, want)
    assert got.dtype == want.dtype
    assert (
        got.is_contiguous(memory_format=torch.channels_last)
        == want.is_contiguous(memory_format=torch.channels_last)
        or x.dim() == 3
    )
    assert indices.dtype == torch.int64


def test_steps_that_differ_by_side_are_kept() -> None:
    """As nets that read text have them: they keep the width."""
    x = torch.rand(40, 8, 24, 24)
    for size, step in ((2, (2, 1)), ((2, 2), (1, 2)), (3, (3, 2))):
        want = output_and_slope(nn.MaxPool2d(size, step), x)
        with quick_pooling():
            assert same(output_and_slope(nn.MaxPool2d(size, step), x), want)


@pytest.mark.parametrize(
    "given",
    [(2, 0), (2, -1), (2, True), ((2, 2, 2),), (2, (2, 2, 2)), (2, 2, (0, 0, 0)), (2, 2, 0, (1, 1, 1))],
)
def test_what_torch_refuses_is_refused_in_its_words(given: tuple[Any, ...]) -> None:
    x = torch.rand(40, 8, 24, 24)
    with pytest.raises((RuntimeError, TypeError)) as want:
        F.max_pool2d(x, *given)
    with quick_pooling(), pytest.raises(want.type) as got:
        F.max_pool2d(x, *given)
    assert str(got.value) == str(want.value)


def test_mkldnn_tensors_go_to_torch() -> None:
    x = torch.rand(40, 8, 24, 24)
    with quick_pooling():
        got = F.max_pool2d(x.to_mkldnn(), 2)
    assert torch.equal(got.to_dense(), OWN(x, 2))


def test_what_is_not_a_number_stays_so() -> None:
    x = torch.rand(40, 8, 24, 24)
    x[3, 2, 5, 7], x[4, 0, 0, 0] = torch.nan, -torch.inf
    with quick_pooling():
        got = F.max_pool2d(x, 2)
    assert bool(got[3, 2, 2, 3].isnan())
    assert torch.equal(got.nan_to_num(9.0), OWN(x, 2).nan_to_num(9.0))


def test_second_derivatives_and_torch_func_go_through() -> None:
    x = torch.rand(40, 8, 24, 24, requires_grad=True)

    def curvature() -> Tensor:
        (slope,) = torch.autograd.grad(F.max_pool2d(x, 2).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    def by_func() -> Tensor:
        return torch.func.grad(lambda z: F.max_pool2d(z, 2).pow(3).sum())(x.detach())

    want, func = curvature(), by_func()
    with quick_pooling():
        assert torch.allclose(curvature(), want)
        assert torch.equal(by_func(), func)


def test_forward_mode_goes_through() -> None:
    x, direction = torch.rand(2, 40, 8, 24, 24).unbind()
    want = torch.func.jvp(lambda z: F.max_pool2d(z, 2), (x,), (direction,))[1]
    with quick_pooling(), forward_ad.dual_level():
        out = F.max_pool2d(forward_ad.make_dual(x, direction), 2)
        assert torch.equal(forward_ad.unpack_dual(out).tangent, want)


def test_many_gradients_at_once() -> None:
    x = torch.rand(40, 8, 24, 23, requires_grad=True)  # a column is in no window
    directions = torch.randn(3, 40, 8, 12, 11)

    def slopes() -> Tensor:
        return torch.autograd.grad(F.max_pool2d(x, 2), x, directions, is_grads_batched=True)[0]

    want = slopes()
    with quick_pooling():
        assert torch.equal(slopes(), want)


def test_models_are_scripted_as_they_are() -> None:
    """As in a thread beside, or by a model that is built when it is first called."""
    x = torch.rand(40, 8, 24, 24)
    with quick_pooling():
        scripted = torch.jit.script(nn.Sequential(nn.MaxPool2d(2)))
    assert torch.equal(scripted(x), OWN(x, 2))


def test_what_others_put_in_its_place_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a smooth surrogate: the model under test is the one with it."""
    x = torch.rand(40, 8, 24, 24)
    monkeypatch.setattr(F, "max_pool2d", lambda z, size, *_, **__: F.avg_pool2d(z, size))
    with Target(nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), device="cpu") as target:
        assert torch.equal(target.logits(x), F.avg_pool2d(x, 2).flatten(1))


def test_what_others_put_in_its_place_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "max_pool2d", OWN)  # puts it back afterwards
    with quick_pooling():
        F.max_pool2d = F.avg_pool2d
    assert F.max_pool2d is F.avg_pool2d


def test_models_are_traced_as_they_are() -> None:
    pool, x = nn.MaxPool2d(2), torch.rand(40, 8, 24, 24)
    with quick_pooling():
        traced = torch.jit.trace(pool, x)
    assert "max_pool2d" in str(traced.graph)
    assert torch.equal(traced(x), pool(x))


def test_torchs_own_function_is_back_when_the_last_has_left() -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with Target(nn.MaxPool2d(2), device="cpu"):
            inside.set()
            leave.wait()

    with Target(nn.MaxPool2d(2), device="cpu"):
        assert F.max_pool2d is not OWN
        thread = threading.Thread(target=other)
        thread.start()
        inside.wait()
        with Target(nn.MaxPool2d(2), device="cpu"):
            pass
        assert F.max_pool2d is not OWN
    assert F.max_pool2d is not OWN
    leave.set()
    thread.join()
    assert F.max_pool2d is OWN
