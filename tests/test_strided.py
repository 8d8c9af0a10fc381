"""The quick input gradient of strided convolutions: the same sum as autograd's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toy import output_and_slope

from robust import convolutions
from robust.target import Target


@settings(max_examples=60, deadline=None)
@given(
    stride=st.integers(2, 5),
    extra=st.integers(0, 5),
    padding=st.integers(0, 4),
    height=st.integers(10, 21),
    width=st.integers(10, 21),
    channels=st.sampled_from([1, 3, 4]),
    bias=st.booleans(),
)
def test_gradient_is_autograds(
    stride: int, extra: int, padding: int, height: int, width: int, channels: int, bias: bool
) -> None:
    generator = torch.Generator().manual_seed(stride * 100 + extra)
    conv = nn.Conv2d(channels, 5, stride + extra, stride=stride, padding=padding, bias=bias).double()
    conv.requires_grad_(False)
    x = torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)
    want = output_and_slope(conv, x)
    changed = convolutions.quicken(conv)
    assert changed == [conv]
    got = output_and_slope(conv, x)
    convolutions.restore(changed)
    assert torch.equal(got[0], want[0])
    assert torch.allclose(got[1], want[1], rtol=1e-10, atol=1e-10)
    assert got[1].is_contiguous()
    assert "_conv_forward" not in vars(conv)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, 1, stride=2),
        nn.Conv2d(4, 4, 3, stride=2, groups=2),
        nn.Conv2d(3, 4, 3, stride=2, dilation=2),
        nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 4, 3, stride=(1, 2)),
        nn.Conv2d(3, 4, (3, 4), stride=2),
        nn.ConvTranspose2d(3, 4, 3, stride=2),
    ],
)
def test_other_convolutions_are_left_alone(conv: nn.Module) -> None:
    assert convolutions.quicken(conv) == []


def test_weights_that_are_trained_get_their_gradient() -> None:
    conv = nn.Conv2d(1, 2, 4, stride=2)
    convolutions.quicken(conv)
    conv(torch.rand(1, 1, 8, 8, requires_grad=True)).sum().backward()
    assert conv.weight.grad is not None
    assert float(conv.weight.grad.abs().sum()) > 0


def test_second_derivatives_go_through() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 4, stride=2, padding=1), nn.Tanh(), nn.Flatten()).double()
    net.requires_grad_(False)
    convolutions.quicken(net)
    x = torch.rand(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(net, x)


def test_a_target_lends_it_to_its_model_only_while_in_use() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 4, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    net(torch.rand(1, 1, 8, 8))
    x = torch.rand(5, 1, 8, 8)
    plain = copy.deepcopy(net)
    with Target(net, device="cpu") as target:
        assert "_conv_forward" in vars(net[0])
        with Target(net, device="cpu"):
            pass
        assert "_conv_forward" in vars(net[0])
        twin = target.twin(copy.deepcopy(net))
        ours = output_and_slope(net, x), output_and_slope(twin.model, x)
    assert "_conv_forward" not in vars(net[0])
    want = output_and_slope(plain.requires_grad_(False), x)
    for out, gradient in ours:
        assert torch.equal(out, want[0])
        assert torch.allclose(gradient, want[1], atol=1e-5)


FUNCTIONAL: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "a sample without a batch": lambda conv, x: torch.stack([conv(row) for row in x]),
    "vmap": lambda conv, x: torch.vmap(lambda row: conv(row[None])[0])(x),
    "a gradient within forward": lambda conv, x: conv(
        x - torch.func.grad(lambda q: conv(q).square().sum())(x)
    ),
}


@pytest.mark.parametrize("use", FUNCTIONAL)
def test_models_may_call_their_convolutions_in_any_way(use: str) -> None:
    conv = nn.Conv2d(1, 3, 4, stride=2, padding=1).double().requires_grad_(False)
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    want = output_and_slope(lambda x: FUNCTIONAL[use](conv, x), x)
    convolutions.quicken(conv)
    got = output_and_slope(lambda x: FUNCTIONAL[use](conv, x), x)
    assert torch.allclose(got[0], want[0])
    assert torch.allclose(got[1], want[1])


def test_weights_that_change_in_use_change_the_gradient() -> None:
    """In place, by another dtype, or in a copy of the model that is already in use."""
    conv = nn.Conv2d(3, 8, 4, stride=2, padding=1)
    x = torch.rand(2, 3, 12, 12)

    def slope(model: nn.Module, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(model(x).square().sum(), x)
        return found

    with Target(conv, device="cpu"):
        before = slope(conv, x)
        twin = copy.deepcopy(conv).to(torch.float64)
        assert torch.allclose(slope(twin, x.double()).float(), before, atol=1e-5)
        with torch.no_grad():
            conv.weight.mul_(2)
            conv.bias.mul_(2)  # type: ignore[union-attr]
        assert torch.allclose(slope(conv, x), 4 * before, atol=1e-4)
        conv.to(torch.float64)
        assert torch.allclose(slope(conv, x.double()).float(), 4 * before, atol=1e-4)
