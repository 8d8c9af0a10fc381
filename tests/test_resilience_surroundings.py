"""What surrounds an evaluation does not change it, and is given back as it was: modes, dtypes, checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import evaluate
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robust.target import Target

Digits = tuple[Tensor, Tensor]
AROUND: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("around", AROUND)
def test_modes_around_the_caller_change_nothing(around: str, net: nn.Module, digits: Digits) -> None:
    plain = evaluate(net, digits, batch_size=64)
    with AROUND[around]():
        report = evaluate(net, digits, batch_size=64)
        assert torch.is_inference_mode_enabled() is (around == "inference_mode")
        assert torch.is_autocast_enabled("cpu") is (around == "autocast")
    assert report.verdicts.equals(plain.verdicts)
    assert report.trust == plain.trust


class Fuses(nn.Module):
    """Its logits have the other sign until eval() is called, whatever the flags say."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.factor = net, 1.0
        self.frozen = nn.Identity()

    def train(self, mode: bool = True) -> Fuses:
        self.factor = -1.0 if mode else 1.0
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(self.frozen(x))
        return self.factor * out


def test_a_model_in_training_is_asked_in_eval_mode_and_given_back_as_it_was(
    net: nn.Module, digits: Digits
) -> None:
    model = Fuses(net).train()
    model.frozen.eval()
    before = [module.training for module in model.modules()]
    assert evaluate(model, digits, suite="fgsm").statuses == evaluate(net, digits, suite="fgsm").statuses
    assert [module.training for module in model.modules()] == before
    assert model.factor == -1.0
    model.eval()


def test_a_model_that_cannot_be_entered_is_handed_back_with_all_that_was_around(net: nn.Module) -> None:
    class Stubborn(Fuses):
        def train(self, mode: bool = True) -> Fuses:
            if not mode:
                raise NotImplementedError("only trains")
            return super().train(mode)

    model = Stubborn(net)
    before = [module.training for module in model.modules()]
    target = Target(model, device="cpu")
    torch.set_default_dtype(torch.float64)
    try:
        for _ in range(2):
            with torch.no_grad():
                with pytest.raises(NotImplementedError), target:
                    pass
                assert not torch.is_grad_enabled()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert [module.training for module in model.modules()] == before


def test_a_frozen_script_is_attacked(net: nn.Module, digits: Digits) -> None:
    frozen = torch.jit.freeze(torch.jit.trace(net.eval(), digits[0][:2]))
    assert evaluate(frozen, digits, suite="fgsm").statuses == evaluate(net, digits, suite="fgsm").statuses


def test_the_default_dtype_changes_nothing(net: nn.Module, digits: Digits) -> None:
    plain = evaluate(net, digits, suite="pgd")
    torch.set_default_dtype(torch.float64)
    try:
        report = evaluate(net, digits, suite="pgd")
    finally:
        torch.set_default_dtype(torch.float32)
    assert report.statuses == plain.statuses
    assert report.failures == []


@pytest.mark.parametrize("batch_size", [16, "auto"])
@pytest.mark.parametrize("suite", ["pgd", [{"name": "square", "queries": 300}]], ids=["pgd", "square"])
def test_a_model_that_writes_into_its_input_changes_no_point(
    suite: Any, batch_size: int | str, net: nn.Module, digits: Digits
) -> None:
    class Normalizes(nn.Module):
        def __init__(self, aside: bool) -> None:
            super().__init__()
            self.aside, self.net = aside, net

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone() if self.aside else x
            out: Tensor = self.net(x.sub_(0.2).div_(0.9))
            return out

    report, plain = (
        evaluate(Normalizes(aside), digits, suite=suite, batch_size=batch_size) for aside in (False, True)
    )
    assert report.statuses == plain.statuses
    assert report.findings == plain.findings


def test_a_model_that_turns_gradients_on_for_itself_is_asked_without_them(
    net: nn.Module, digits: Digits
) -> None:
    class Descends(nn.Module):
        """Moves its input down an energy first, as models that optimise at inference do."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        @torch.enable_grad()
        def forward(self, x: Tensor) -> Tensor:
            point = x if x.requires_grad else x.clone().requires_grad_()
            energy = self.net(point).logsumexp(1).sum()
            (slope,) = torch.autograd.grad(energy, point, create_graph=True)
            out: Tensor = self.net(point + 0.01 * slope)
            return out

    with Target(Descends()) as target, torch.no_grad():
        assert not target.logits(digits[0]).requires_grad
    report = evaluate(Descends(), digits, suite="pgd")
    assert report.failures == []
    assert {finding["check"] for finding in report.findings} <= {"dynamic-defense", "short-search"}


class Recomputes(nn.Module):
    """Keeps nothing of its net's forward pass for the backward one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.net, x, use_reentrant=True)  # type: ignore[no-untyped-call]
        return out


@pytest.mark.parametrize("norm", ["linf:0.1", "l2:0.5"])
def test_reentrant_checkpoints_change_nothing(norm: str, net: nn.Module, digits: Digits) -> None:
    plain, report = (evaluate(of, digits, threat=norm, batch_size=64) for of in (net, Recomputes(net)))
    assert report.verdicts.equals(plain.verdicts)
    assert report.trust == "trusted"


def test_outside_an_evaluation_checkpoints_are_as_they_were(net: nn.Module, digits: Digits) -> None:
    model = Recomputes(net)
    with Target(model, device="cpu"), Target(model, device="cpu"):
        pass
    point = digits[0].clone().requires_grad_()
    with pytest.raises(RuntimeError, match="use_reentrant=True"):
        torch.autograd.grad(model(point).sum(), point)
