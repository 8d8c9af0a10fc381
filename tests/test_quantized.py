"""Quantised torch models: answers of the deployed model, gradients of its float twin, transfer reported."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import robust
from robust.errors import UnsupportedError
from robust.quantized import Quantized, attackable, float_twin

quantization = pytest.importorskip("torch.ao.quantization", exc_type=Exception)
pytestmark = pytest.mark.skipif(
    "x86" not in torch.backends.quantized.supported_engines, reason="no int8 kernels for this processor"
)


def quantize(net: nn.Module, kind: str, x: Tensor) -> nn.Module:
    net = copy.deepcopy(net).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "dynamic":
            return quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
        if kind == "static":
            fused = quantization.fuse_modules(net, [["0", "1", "2"], ["5", "6"]])
            wrapped = quantization.QuantWrapper(fused)
            wrapped.qconfig = quantization.get_default_qconfig("x86")
            quantization.prepare(wrapped, inplace=True)(x)
            return quantization.convert(wrapped, inplace=True)
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        prepared = prepare_fx(net, quantization.get_default_qconfig_mapping("x86"), (x,))
        prepared(x)
        return convert_fx(prepared)


@pytest.mark.parametrize("kind", ["dynamic", "static", "traced"])
def test_the_deployed_model_answers_and_its_twin_differentiates(
    kind: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    deployed = quantize(net, kind, x)
    model = attackable(deployed)
    assert isinstance(model, Quantized)
    assert model.deployed is deployed
    point = x.clone().requires_grad_()
    assert torch.equal(model(point), deployed(x))
    assert not torch.equal(deployed(x), net(x))
    wanted = torch.autograd.grad(net(point).gather(1, y[:, None]).sum(), point)[0].flatten(1)
    got = torch.autograd.grad(model(point).gather(1, y[:, None]).sum(), point)[0].flatten(1)
    assert torch.cosine_similarity(got, wanted).median() > 0.98
    spread = net(x).amax() - net(x).amin()
    assert (float_twin(deployed)(x) - net(x)).abs().max() < 0.03 * spread


class Block(nn.Module):
    """A convolution, then one way of bringing what it gives together with its input."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(8 * 64 if kind == "cat" else 4 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        u = self.first(x).relu()
        v = self.second(u)
        joined = {
            "add": lambda: u + v,
            "add_relu": lambda: nn.functional.relu(u + v),
            "mul": lambda: u * torch.sigmoid(v),
            "matmul": lambda: torch.matmul(u, v),
            "scalar": lambda: u * 2.0 + v + 1.0,
            "cat": lambda: torch.cat([u, v], 1),
            "hardswish": lambda: nn.functional.hardswish(v),
            "layer_norm": lambda: nn.functional.layer_norm(v, v.shape[1:]),
        }[self.kind]()
        out: Tensor = self.head(joined.flatten(1))
        return out


@pytest.mark.parametrize(
    "kind", ["add", "add_relu", "mul", "matmul", "scalar", "cat", "hardswish", "layer_norm"]
)
def test_operators_between_quantised_values_have_float_counterparts(
    kind: str, digits: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(0)
    x, block = digits[0], Block(kind).eval()
    twin = float_twin(quantize(block, "traced", x))
    spread = block(x).amax() - block(x).amin()
    assert (twin(x) - block(x)).abs().max() < 0.05 * spread


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_evaluation_attacks_it_and_reports_the_transfer(
    kind: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    report = robust.evaluate(
        quantize(net, kind, digits[0]),
        digits,
        threat="linf:0.2",
        suite=["pgd", robust.attacks.Square(queries=100)],
        device="cpu",
    )
    whole = robust.evaluate(
        net, digits, threat="linf:0.2", suite=["pgd", robust.attacks.Square(queries=100)], device="cpu"
    )
    assert abs(report.statuses["broken"] - whole.statuses["broken"]) <= 3
    assert report.statuses["broken"] > 10
    assert report.checks["twin_examples"] >= 4
    assert report.checks["twin_examples_transferred"] > 0.5 * report.checks["twin_examples"]
    assert "twin_examples" not in whole.checks


class Other(nn.Module):
    """A twin that is no twin: its gradient points away from every class boundary of the deployed model."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flip(2, 3)).roll(1, 1)


def test_a_twin_whose_examples_do_not_transfer_is_found_out(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    model = Quantized(net, Other(copy.deepcopy(net)))
    x, y = digits
    report = robust.evaluate(model, (x, y), threat="linf:0.1", suite=["fgsm"], device="cpu")
    assert report.checks["twin_examples_transferred"] < 0.5 * report.checks["twin_examples"]
    assert "gradient-model" in {finding["check"] for finding in report.findings}
    assert report.trust == "unreliable"


def test_float_models_stay_as_they_are(net: nn.Module) -> None:
    assert attackable(net) is net


def test_a_layer_without_counterpart_is_named() -> None:
    layer = torch.ao.nn.quantized.dynamic.LSTM(4, 4)
    with pytest.raises(UnsupportedError, match="quantised layer LSTM"):
        attackable(nn.Sequential(layer))


class Applies(nn.Module):
    """Its last layer is a function of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.first(x.flatten(1)), self.head.weight, self.head.bias)


def test_an_operator_without_counterpart_is_named_and_a_target_does_without(
    digits: tuple[Tensor, Tensor],
) -> None:
    torch.manual_seed(0)
    deployed = quantize(Applies().eval(), "traced", digits[0])
    data = digits[0], deployed(digits[0]).argmax(1)
    with pytest.raises(UnsupportedError, match=r"quantized::linear; give robust\.Target\(model\)"):
        robust.evaluate(deployed, data, threat="linf:0.2")
    square = robust.attacks.Square(queries=100)
    report = robust.evaluate(robust.Target(deployed, device="cpu"), data, threat="linf:0.2", suite=square)
    assert report.statuses["broken"] > 10
