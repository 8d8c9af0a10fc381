"""Convolutions of a search on a CPU: the same sums, whichever way they are computed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from toy import output_and_slope

import robust
from robust import convolutions
from robust.oracle import Oracle
from robust.target import Target
from robust.threat import Threat

Digits = tuple[Tensor, Tensor]


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    height=st.integers(6, 15),
    width=st.integers(6, 15),
    channels=st.sampled_from([1, 3, 8, 24]),
    rows=st.integers(1, 40),
    bias=st.booleans(),
    searching=st.booleans(),
)
def test_output_and_gradient_are_the_models(
    kernel: int,
    stride: int,
    padding: int,
    height: int,
    width: int,
    channels: int,
    rows: int,
    bias: bool,
    searching: bool,
) -> None:
    torch.manual_seed(kernel)
    conv = nn.Conv2d(channels, 5, max(kernel, stride), stride=stride, padding=padding, bias=bias)
    conv.requires_grad_(False)
    x = torch.randn(rows, channels, height, width)
    want = output_and_slope(conv, x)
    assert convolutions.quicken(conv) == [conv]
    with convolutions.searching() if searching else torch.enable_grad():
        got = output_and_slope(conv, x)
        answer = conv(x)
    assert torch.allclose(got[0], want[0], rtol=1e-4, atol=1e-4)
    assert torch.allclose(got[1], want[1], rtol=1e-4, atol=1e-4)
    assert torch.allclose(answer, want[0], rtol=1e-4, atol=1e-4)
    if not searching:
        assert torch.equal(answer, want[0])
        assert torch.equal(got[0], want[0])


class Watched(nn.Module):
    """A convolution that notes in which way its outputs came about."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.seen = conv, list[str]()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        self.seen.append("" if out.grad_fn is None else out.grad_fn.name())
        return out.flatten(1)


@pytest.mark.parametrize(
    ("conv", "side", "rows", "searching", "way"),
    [
        (nn.Conv2d(1, 8, 3), 28, 5, True, "SlowConv2D"),
        (nn.Conv2d(1, 8, 3), 28, 5, False, "_Folded"),
        (nn.Conv2d(1, 8, 3), 28, 200, True, "_Folded"),
        (nn.Conv2d(1, 8, 3), 512, 20, True, "Convolution"),
        (nn.Conv2d(3, 8, 4, stride=2), 32, 200, True, "StridedConv"),
        (nn.Conv2d(3, 8, 3), 32, 200, True, "Convolution"),
        (nn.Conv2d(24, 8, 3), 14, 2, True, "SlowConv2D"),
        (nn.Conv2d(24, 8, 3), 14, 100, True, "Convolution"),
        (nn.Conv2d(24, 8, 4, stride=2), 14, 100, True, "Convolution"),
        (nn.Conv2d(3, 8, 7, stride=2), 224, 1, True, "StridedConv"),
    ],
)
def test_the_way_goes_by_shape_and_rows(
    conv: nn.Conv2d, side: int, rows: int, searching: bool, way: str
) -> None:
    net = Watched(conv)
    x = torch.rand(rows, conv.in_channels, side, side, requires_grad=True)
    with Target(net, device="cpu") as target, target.passing() if searching else torch.enable_grad():
        net(x)
    assert net.seen[0].removesuffix("0").removesuffix("Backward") == way


class Bfloat16(nn.Module):
    """A model that computes in a precision of its own choice."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: Tensor = self.net(x)
        return out.float()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("rows", [2, 300])
def test_a_models_own_precision_stays(stride: int, rows: int) -> None:
    torch.manual_seed(0)
    model = Bfloat16(nn.Conv2d(3, 8, 4, stride=stride).requires_grad_(False))
    x = torch.rand(rows, 3, 24, 24)
    want = output_and_slope(model, x)
    with Target(model, device="cpu") as target, target.passing():
        got = output_and_slope(model, x)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("conv", [nn.Conv2d(1, 4, 3), nn.Conv2d(3, 4, 4, stride=2), nn.Conv2d(24, 4, 3)])
@pytest.mark.parametrize("rows", [2, 60])
def test_second_derivatives_go_through(conv: nn.Conv2d, rows: int) -> None:
    conv.requires_grad_(False)
    x = torch.rand(rows, conv.in_channels, 30, 30, requires_grad=True)

    def curvature() -> Tensor:
        (slope,) = torch.autograd.grad(conv(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    want = curvature()
    with Target(conv, device="cpu") as target, target.passing():
        got = curvature()
    assert torch.allclose(got, want, rtol=1e-3, atol=1e-4)


def test_no_rows_are_no_trouble() -> None:
    conv = nn.Conv2d(1, 4, 3).requires_grad_(False)
    with Target(conv, device="cpu") as target, target.passing():
        out, slope = output_and_slope(conv, torch.rand(0, 1, 30, 30))
    assert out.shape == (0, 4, 28, 28)
    assert slope.shape == (0, 1, 30, 30)


def test_the_judges_answers_are_the_models_bit_for_bit_and_a_searchs_are_told_apart(digits: Digits) -> None:
    """What is asked outside of a search is what the user's own call gives, whatever a search did before."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
    net.requires_grad_(False)
    x, y = digits[0][:6], digits[1][:6]
    want = net(x)
    with Target(net, device="cpu") as target:
        asked = Oracle(target, x, y, torch.arange(6), Threat("linf", "0.1"))
        near = asked.logits(asked.x)
        asked.slope(asked.x, torch.zeros(6, 10))
        assert torch.equal(target.logits(x), want)
        with target.passing():
            pass
        assert torch.equal(target.logits(x), want)
    assert torch.allclose(near, want, atol=1e-5)


def test_verdicts_stay(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
    data = digits[0][:24], net(digits[0][:24]).argmax(1)
    reports = []
    for few in (convolutions._FEW, 0):
        monkeypatch.setattr(convolutions, "_FEW", few)
        reports.append(robust.evaluate(net, data, threat="linf:0.05", device="cpu"))
    assert list(reports[0].verdicts.status) == list(reports[1].verdicts.status)
    assert set(reports[0].verdicts.status) == {"broken", "survived"}


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv2d(1, 8, 3), (5, 1, 20, 20)),
        (nn.Conv2d(3, 8, 3, stride=2), (40, 3, 33, 65)),
        (nn.Conv2d(3, 8, 4, stride=2, padding=1), (40, 3, 64, 64)),
        (nn.Conv2d(16, 16, 3), (40, 16, 32, 32)),
    ],
)
def test_forward_mode_and_many_gradients_at_once_go_through(conv: nn.Conv2d, shape: tuple[int, ...]) -> None:
    """Models may ask for either within forward: their derivatives in a direction, their Jacobian."""
    x, direction = torch.rand(2, *shape).unbind()
    x.requires_grad_()
    with Target(conv, device="cpu"), forward_ad.dual_level():
        out = conv(forward_ad.make_dual(x, direction))
        tangent = forward_ad.unpack_dual(out).tangent
    assert torch.allclose(tangent, conv(direction) - conv(torch.zeros_like(direction)), atol=1e-5)
    with Target(conv, device="cpu"):
        out = conv(x)
        directions = torch.randn(3, *out.shape)
        (slopes,) = torch.autograd.grad(out, x, directions, is_grads_batched=True)
        singly = [torch.autograd.grad(conv(x), x, each)[0] for each in directions]
    assert torch.allclose(slopes, torch.stack(singly), atol=1e-5)
