"""What a caller set for all of torch: it changes no verdict, and it is theirs again afterwards."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor, nn

import robust
from robust import engine, passes
from robust.copies import around
from robust.target import Target

Digits = tuple[Tensor, Tensor]


def test_a_default_device_is_for_the_model_alone(net: nn.Module, digits: Digits) -> None:
    seen: set[str] = set()

    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.add(torch.get_default_device().type)
            out: Tensor = net(x)
            return out

    plain = robust.evaluate(net, digits, threat="linf:0.1", suite="quick", device="cpu")
    torch.set_default_device("meta")
    try:
        report = robust.evaluate(Asking(), digits, threat="linf:0.1", suite="quick", device="cpu")
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)
    assert seen == {"meta"}
    assert report.statuses == plain.statuses


@pytest.mark.parametrize(
    "setting",
    [
        "",
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.cudnn.allow_tf32 = False",
        "torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
        "torch.backends.cudnn.fp32_precision = 'tf32'",
        "torch.backends.fp32_precision = 'tf32'",
    ],
)
def test_tf32_is_off_whoever_turned_it_on_and_comes_back(setting: str) -> None:
    code = f"""
        import torch
        from robust.tf32 import without_tf32
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        if not hasattr(cudnn, "conv"):
            raise SystemExit(0)
        def read(of):
            try: return of()
            except RuntimeError: return "refused"
        def state():
            return [read(of) for of in (
                lambda: cudnn.allow_tf32, lambda: matmul.allow_tf32, torch.get_float32_matmul_precision,
                lambda: cudnn.conv.fp32_precision, lambda: cudnn.rnn.fp32_precision, lambda: matmul.fp32_precision,
                lambda: cudnn.fp32_precision, lambda: torch.backends.fp32_precision)]
        {setting}
        before = state()
        set_back = without_tf32()
        assert cudnn.conv.fp32_precision == cudnn.rnn.fp32_precision == matmul.fp32_precision == "ieee"
        assert not cudnn.allow_tf32 and not matmul.allow_tf32
        set_back()
        assert state() == before, (before, state())
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_gradients_just_inside_the_box_are_so_for_recorded_models_too() -> None:
    class Blocked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.linear(torch.where((x > 0) & (x < 1), x, x.detach()))
            return out

    target = Target(Blocked(), device="cpu")
    x, y = torch.tensor([[0.0, 1, 0, 1]]), torch.tensor([0])
    with target:
        recorded = around(target, target.as_module())
        recorded._retraceable = target
        for searched in (target, recorded):
            _, found = passes.jacobian(engine.inward(searched), x, y, 2)
            assert found.gradients.abs().sum() > 0
