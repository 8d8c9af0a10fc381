"""Everything stays on the device it is put on: attacks, suites and diagnostics on a GPU that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pretended_gpu import DEVICE, DeviceError, pretended_gpu
from torch import Tensor, nn

import robust
from robust.replayed import Replayed

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU is here")


@pytest.fixture
def gpu() -> Iterator[None]:
    with pretended_gpu():
        yield


@pytest.mark.usefixtures("gpu")
def test_tensors_of_two_devices_do_not_meet() -> None:
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    assert there.device == DEVICE
    assert (there + 1).device == DEVICE
    assert (there.cpu() + here).tolist() == [2, 2, 2]
    assert there[torch.tensor([0, 2])].device == DEVICE
    for meet in (
        lambda: here + there,
        lambda: here[there.long()],
        lambda: torch.where(there > 0, here, there),
        lambda: nn.Linear(3, 2)(there),
        there.numpy,
    ):
        with pytest.raises(DeviceError):
            meet()


@pytest.mark.usefixtures("gpu")
def test_what_is_to_be_recorded_asks_for_no_value() -> None:
    at = torch.ones(3, device="cuda")
    assert Replayed(lambda x: x.sum(0, keepdim=True))(at).device == DEVICE
    with pytest.raises(DeviceError, match="recorded"):
        Replayed(lambda x: x * float(x.sum()))(at)


def test_gradients_of_a_module_that_was_moved(net: nn.Module) -> None:
    with pretended_gpu():
        x = torch.rand(2, 1, 8, 8).to("cuda").requires_grad_()
        (gradient,) = torch.autograd.grad(net.to("cuda")(x).sum(), x)
        assert gradient.device == DEVICE
        assert float(gradient.abs().sum()) > 0
        assert next(net.cpu().parameters()).device.type == "cpu"


class Noisy(nn.Module):
    """The net behind noise of its own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x + 0.02 * torch.randn_like(x))
        return out


THREATS = ["linf:0.1", "l2:0.6", "l1:3", "l0:6", "spatial:20,0.1", "corruptions:1-3", "patch:3x3"]
RUNS = [
    *(pytest.param({"threat": threat}, id=threat) for threat in THREATS),
    pytest.param({"threat": "linf:0.1", "suite": "quick", "diagnose": "full"}, id="all checks"),
    pytest.param({"threat": "l2:0.6", "suite": "fmn", "minimize": True}, id="minimum norm"),
]


@pytest.mark.parametrize("options", RUNS)
def test_verdicts_and_trust_are_those_of_the_cpu(
    options: dict[str, Any], net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    few = digits[0][:16], digits[1][:16]
    cpu = robust.evaluate(net, few, device="cpu", **options)
    with pretended_gpu():
        gpu = robust.evaluate(net, few, device="cuda", **options)
    assert int((cpu.verdicts.status != gpu.verdicts.status).sum()) <= 1
    assert [finding["check"] for finding in gpu.findings] == [finding["check"] for finding in cpu.findings]
    assert not gpu.failures


def test_a_randomised_model_is_attacked_in_expectation(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    few = digits[0][:4], digits[1][:4]
    with pretended_gpu():
        gpu = robust.evaluate(Noisy(net), few, threat="linf:0.1", device="cuda", eot=2)
    assert not gpu.failures
    assert "crash" not in {finding["check"] for finding in gpu.findings}
