"""Models that fail: their samples alone are errors, and what no gradient passes is told."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import evaluate
from torch import Tensor, nn
from wrapped import CORNER, Picky

from robust.errors import ModelError

Digits = tuple[Tensor, Tensor]
BRIGHT = 50  # none of those that are looked at before the attacks


@pytest.fixture
def one_bright(digits: Digits) -> Digits:
    """Digits of which one alone has a bright corner."""
    x, y = digits[0].clone(), digits[1]
    x[:, :, 0, 0] = 0
    x[BRIGHT, :, 0, 0] = CORNER
    return x, y


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_a_sample_that_crashes_the_model_is_an_error_alone(
    batch_size: int, net: nn.Module, one_bright: Digits
) -> None:
    x, y = one_bright
    others = torch.arange(len(x)) != BRIGHT
    without = evaluate(net, (x[others], y[others]), threat="linf:0.02", suite="pgd")
    report = evaluate(Picky(net), one_bright, threat="linf:0.02", suite="pgd", batch_size=batch_size)
    assert report.verdicts.status[BRIGHT] == "error"
    assert report.verdicts.status[others.numpy()].tolist() == without.verdicts.status.tolist()
    first = report.failures[0].splitlines()[0]
    assert "calibrated" in first
    assert "(wrapped.py, line " in first
    assert report.attacks[0]["errors"] == 1
    assert report.trust == "unreliable"


def test_a_model_that_fails_on_moved_samples_alone_is_told_by_its_attacks(
    net: nn.Module, digits: Digits
) -> None:
    class Exact(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if bool(((255 * x).round() - 255 * x).abs().max() > 1e-3):
                raise ValueError("no image of eight bits")
            out: Tensor = net(x)
            return out

    x = (255 * digits[0]).round() / 255
    report = evaluate(Exact(), (x, digits[1]), suite="pgd")
    assert report.statuses["survived"] == report.statuses["broken"] == 0
    assert report.statuses["error"] == report.clean_correct > 0
    assert "moved samples (model: fails" in report.findings[0]["message"]


def test_dead_gradients_ask_about_no_nan() -> None:
    class Ranged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            if not bool((x >= 0).all()):
                raise ValueError("below 0, or no number")
            out: Tensor = self.linear(x.flatten(1))
            return out * (x.flatten(1)[:, :1] < 0.7)  # the others have no gradient

    model, x = Ranged(), torch.rand(64, 1, 4, 4)
    report = evaluate(model, (x, model(x).argmax(1)), suite="pgd")
    assert "crash" not in {finding["check"] for finding in report.findings}


class NoWayBack(torch.autograd.Function):
    """The identity, which no gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise ValueError("not differentiable")


@pytest.mark.parametrize("options", [{}, {"batch_size": 16}, {"precision": "bfloat16"}])
def test_a_backward_pass_that_fails_is_told(options: dict[str, Any], net: nn.Module, digits: Digits) -> None:
    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = NoWayBack.apply(net(x))  # type: ignore[no-untyped-call]
            return out

    report = evaluate(Opaque(), digits, suite="pgd", **options)
    assert "detached-graph" in {finding["check"] for finding in report.findings}


@pytest.mark.parametrize("batch_size", [16, "auto"])
def test_a_forward_pass_that_no_gradient_survives_is_told(
    batch_size: int | str, net: nn.Module, digits: Digits
) -> None:
    class Leaves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = net(torch.from_numpy(x.numpy()))
            return out

    report = evaluate(Leaves(), digits, suite="pgd", batch_size=batch_size)
    assert {finding["check"] for finding in report.findings} == {"detached-graph"}


def test_samples_without_numbers_are_not_counted_as_correct(
    tmp_path: Path, net: nn.Module, digits: Digits
) -> None:
    class Empty(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = net(x)
            return logits * torch.nan

    report = evaluate(Empty(), digits, suite="fgsm")
    assert report.clean_correct == 0
    assert report.statuses["error"] == report.n
    assert len(report.plot(tmp_path, samples=digits)) == 6


def test_a_label_that_the_model_does_not_know_is_told_wherever_it_stands(
    net: nn.Module, digits: Digits
) -> None:
    y = digits[1].clone()
    y[-1] = 10
    with pytest.raises(ModelError, match="labels go up to 10"):
        evaluate(net, (digits[0], y), suite="fgsm")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_in_another_dtype_is_told_what_to_give(
    dtype: torch.dtype, net: nn.Module, digits: Digits
) -> None:
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(
        ModelError, match=rf"parameters are {kind}, inputs are float32: give model\.float\(\)"
    ):
        evaluate(copy.deepcopy(net).to(dtype), digits, suite="fgsm")
