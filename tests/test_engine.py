"""Faster copies of the model: equal where they are taken, refused where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from toy import ENOUGH

import robust
from robust import engine
from robust.audit import audit
from robust.losses import margin
from robust.oracle import Oracle
from robust.target import Target
from robust.threat import Threat

Digits = tuple[Tensor, Tensor]


class Residual(nn.Module):
    """Two convolutions with batch norm, added to the input, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.head((y + self.bn2(self.conv2(y))).flatten(1))
        return out


@pytest.fixture
def residual(digits: Digits) -> nn.Module:
    torch.manual_seed(0)
    model = Residual()
    for _ in range(5):  # statistics that folding must take up
        model(digits[0])
    return model.eval()


@pytest.mark.parametrize("change", ["folded", "channels_last", "folded, channels_last"])
def test_changed_copies_compute_the_same(residual: nn.Module, digits: Digits, change: str) -> None:
    x, y = digits
    with Target(residual, device="cpu") as target:
        twin = target.twin(engine._changes(residual, x)[change]())
        assert engine._same(engine._look(target, x, y), engine._look(twin, x, y))
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


def test_a_copy_with_other_gradients_is_refused(residual: nn.Module, digits: Digits) -> None:
    x, y = digits
    with Target(Straight(residual), device="cpu") as target:
        folded = target.twin(engine._changes(target.model, x)["folded"]())
        assert not engine._same(engine._look(target, x, y), engine._look(folded, x, y))


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
        engine._changes(model, digits[0])["folded"]()
    report = robust.evaluate(model, digits, threat="linf:0.1", suite="quick", device="cpu")
    assert "folded" not in report.engine


def test_the_judge_overrules_a_wrong_copy(net: nn.Module, digits: Digits) -> None:
    x, y = digits
    right = net(x).argmax(1) == y
    x, y = x[right], y[right]

    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net(x).roll(1, 1)

    threat = Threat("linf", "0.05")
    with Target(net, device="cpu") as target:
        oracle = Oracle(target.twin(Wrong()), x, y, torch.arange(len(x)), threat, judge=target)
        for _ in oracle.steps(1):
            oracle.logits(x)  # each misclassified by the copy, none by the model
        assert len(oracle) == len(x)
        assert not oracle.ledger.broken.any()
        assert oracle.ledger.forwards.tolist() == [2] * len(x)
        for _ in oracle.steps(5):
            gradient = oracle.gradient(oracle.x, margin).gradient
            oracle.logits(oracle.project(oracle.x - 0.05 * gradient.sign()))
        found = oracle.ledger.broken
        assert audit(target, oracle.ledger.x_adv[found], x[found], y[found], threat).valid.all()


def test_half_precision_never_gives_a_false_break(net: nn.Module, digits: Digits) -> None:
    options = {"threat": "linf:0.1", "suite": ENOUGH, "device": "cpu", "seed": 0}
    coarse = robust.evaluate(net, digits, precision="bfloat16", **options)  # type: ignore[arg-type]
    exact = robust.evaluate(net, digits, precision="float32", **options)  # type: ignore[arg-type]
    assert coarse.engine == "bfloat16"
    assert exact.engine == "plain"
    assert coarse.statuses["misclassified"] == exact.statuses["misclassified"]
    assert coarse.statuses["broken"] > 0.8 * exact.statuses["broken"] > 5
    assert all(entry["rejected"] == 0 for entry in coarse.attacks)
    assert coarse.trust == exact.trust == "trusted"


def test_memory_is_kept_once_and_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Libc:
        def mallopt(self, parameter: int, value: int) -> int:
            asked.append((parameter, value))
            return 1

    monkeypatch.setattr(engine.ctypes, "CDLL", lambda _: Libc())
    monkeypatch.setattr(engine.sys, "platform", "linux")
    engine._set_malloc_thresholds.cache_clear()
    engine.keep_freed_memory()
    engine.keep_freed_memory()
    assert sorted(parameter for parameter, _ in asked) == [-3, -1]
    monkeypatch.setattr(engine.ctypes, "CDLL", lambda _: object())  # a C library without mallopt
    engine._set_malloc_thresholds.cache_clear()
    engine.keep_freed_memory()
    assert len(asked) == 2


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_memory_that_has_gathered_is_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    held = engine._resident()
    assert held > 1 << 20
    assert engine.give_back(held + 1) <= held + 1
    trimmed = []
    library = type("Library", (), {"malloc_trim": lambda _, pad: trimmed.append(pad)})()
    monkeypatch.setattr(engine.ctypes, "CDLL", lambda _: library)
    engine.give_back(engine._resident())
    assert trimmed == []
    engine.give_back(0)
    assert trimmed == [0]
