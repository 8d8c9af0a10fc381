"""Faster copies of the model: equal where they are taken, refused where they are not."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from wrapped import Residual

import robust
from robust import engine
from robust.passes import weigh
from robust.target import Target

Digits = tuple[Tensor, Tensor]


@pytest.mark.parametrize("change", ["folded", "channels_last", "folded, channels_last"])
def test_changed_copies_compute_the_same(residual: nn.Module, digits: Digits, change: str) -> None:
    x, y = digits
    with Target(residual, device="cpu") as target:
        twin = target.twin(engine._changes(residual, x)[0][change]())
        assert engine._checked(twin, engine._look(target, x, y), x, y) is twin
        assert twin.blur == 0
        torch.testing.assert_close(twin.logits(x), target.logits(x), rtol=1e-4, atol=1e-4)
    assert ("folded" in change) == (not any(isinstance(m, nn.BatchNorm2d) for m in twin.model.modules()))
    assert any(isinstance(m, nn.BatchNorm2d) for m in residual.modules()), "the caller's model was changed"


class Straight(nn.Module):
    """Quantises under no_grad, which a trace of the module would lose."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            noise = (x * 16).round() / 16 - 0.9 * x
        out: Tensor = self.net(x + noise)
        return out


def test_warnings_of_torch_are_no_errors_where_warnings_are() -> None:
    """Torch 2.13 warns of a deprecated function that it itself calls when its folding is imported."""
    code = (
        "import torch, robust\n"
        "from torch import nn\n"
        "from robust.copies import folded\n"
        "net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()\n"
        "x = torch.rand(2, 1, 5, 5)\n"
        "assert torch.allclose(folded(net)(x), net(x), atol=1e-6)\n"
        "assert robust.evaluate\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_a_copy_with_other_gradients_is_refused(residual: nn.Module, digits: Digits) -> None:
    x, y = digits
    with Target(Straight(residual), device="cpu") as target:
        folded = target.twin(engine._changes(target.model, x)[0]["folded"]())
        assert engine._checked(folded, engine._look(target, x, y), x, y) is None


def test_a_copy_is_taken_only_where_it_is_faster(
    residual: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"plain": 1.0, "folded": 0.97}
    names = {id(residual): "plain"}
    monkeypatch.setattr(engine, "_seconds", lambda target, *_: times[names.get(id(target.model), "folded")])
    with Target(residual, device="cpu") as target:
        assert engine.fastest(target, *digits, 1000) == (target, "plain")
        times["folded"] = 0.5
        twin, name = engine.fastest(target, *digits, 1000)
    assert name == "folded"
    assert twin.model is not residual
    assert not any(p.requires_grad for p in twin.model.parameters())


def test_no_copy_is_looked_for_where_it_cannot_pay(
    residual: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_changes", lambda *_: pytest.fail("looked for"))
    with Target(residual, device="cpu") as target:
        monkeypatch.setattr(engine, "_seconds", lambda *_: 1.0)
        assert engine.fastest(target, *digits, 63) == (target, "plain")
        monkeypatch.setattr(engine, "_seconds", lambda *_: 1e-4)
        assert engine.fastest(target, *digits, 1000) == (target, "plain")


def test_what_cannot_be_traced_is_searched_as_it_is(digits: Digits) -> None:
    class Branching(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if bool(x.sum() > 0) else -x)

    model = Branching().eval()
    with pytest.raises(Exception, match="control flow"):
        engine._changes(model, digits[0])[0]["folded"]()
    report = robust.evaluate(model, digits, threat="linf:0.1", suite="quick", device="cpu")
    assert "folded" not in report.engine


def test_a_slope_is_replayed_where_there_is_a_recording(net: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:6], digits[1][:6]
    weights = torch.zeros(6, 10).scatter_(1, y[:, None], -1.0)
    asked = []

    def replay(points: Tensor, of: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        asked.append(len(points))
        return (torch.ones_like(points), torch.full((len(of),), 7.0), -of) if len(asked) == 1 else None

    with Target(net, device="cpu") as target:
        twin = target.twin(net)
        twin.replay = replay
        first, second = (weigh(twin, x, weights) for _ in range(2))
        plain = weigh(target, x, weights)
    assert asked == [6, 6]
    assert torch.equal(first.gradient, torch.ones_like(x))
    assert torch.equal(first.logits, -weights)
    for seen, expected in zip(second, plain, strict=True):  # what it does not take is run
        assert torch.equal(seen, expected)
    assert twin.twin(net).replay is None


def test_an_evaluation_imports_no_sympy() -> None:
    """It takes part of a second; torch imports it for gradients with a second argument."""
    code = (
        "import sys, torch, robust\n"
        "net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4))\n"
        "x = torch.rand(12, 1, 4, 4)\n"
        "robust.evaluate(net, (x, net(x).argmax(1)), threat='linf:0.1', device='cpu')\n"
        "assert 'sympy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
