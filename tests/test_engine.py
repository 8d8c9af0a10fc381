"""Faster copies of the model: equal where they are taken, refused where they are not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from toy import ENOUGH

import robust
from robust import copies, engine, memory
from robust.audit import audit
from robust.losses import margin
from robust.oracle import Oracle
from robust.passes import weigh
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

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Libc())
    monkeypatch.setattr(memory.sys, "platform", "linux")
    memory._set_malloc_thresholds.cache_clear()
    memory.keep_freed_memory()
    memory.keep_freed_memory()
    assert sorted(parameter for parameter, _ in asked) == [-3, -1]
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())  # a C library without mallopt
    memory._set_malloc_thresholds.cache_clear()
    memory.keep_freed_memory()
    assert len(asked) == 2


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_memory_that_has_gathered_is_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    held = memory._resident()
    assert held > 1 << 20
    assert memory.give_back(held + 1) <= held + 1
    trimmed = []
    library = type("Library", (), {"malloc_trim": lambda _, pad: trimmed.append(pad)})()
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: library)
    memory.give_back(memory._resident())
    assert trimmed == []
    memory.give_back(0)
    assert trimmed == [0]


@pytest.fixture
def smooth(residual: nn.Module) -> nn.Module:
    """Without kinks, at which a gradient may be one or the other."""

    class Smooth(Residual):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(self.bn1(self.conv1(x)))
            out: Tensor = self.head((y + self.bn2(self.conv2(y))).flatten(1))
            return out

    model = Smooth().eval()
    model.load_state_dict(residual.state_dict())
    return model


@pytest.fixture
def anything_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_PASS_WORTH", {"cpu": 0.0, "cuda": 0.0})
    monkeypatch.setattr(engine, "_WORTH", 100.0)


@pytest.mark.gpu
@pytest.mark.usefixtures("anything_pays")
def test_a_gpu_searches_in_half_precision_and_graphs(smooth: nn.Module, digits: Digits) -> None:
    x, y = (t.to("cuda") for t in digits)
    with Target(smooth, device="cuda", normalize=(0.1, 0.3)) as target:
        twin, name = engine.fastest(target, x, y, 1000)
        assert "float16" in name
        assert name.endswith("graphs")
        assert 0 < twin.blur < 0.02
        for rows in (1, 7, 24, 25, 200, 300):
            part = (torch.arange(rows, device="cuda") % len(x)).flip(0)
            seen, exact = (engine._look(t, x[part], y[part]) for t in (twin, target))
            logits, gradients = engine._apart(exact, seen)
            assert logits < 0.005
            assert gradients < 0.02


@pytest.mark.gpu
def test_a_replay_answers_in_memory_of_its_own_and_goes_back_once(smooth: nn.Module, digits: Digits) -> None:
    x, y = (t.to("cuda") for t in digits)
    with Target(smooth, device="cuda") as target:
        twin = copies.around(target, copies.Graphed(target.as_module(), x))
        seen = engine._look(twin, x[:5], y[:5])
        kept = [t.clone() for t in seen]
        engine._look(twin, x[5:10], y[5:10])
        exact = engine._look(target, x[:5], y[:5])
        for replayed, copied, plain in zip(seen, kept, exact, strict=True):
            assert torch.equal(replayed, copied)
            torch.testing.assert_close(replayed, plain, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(twin.logits(x[:7]), target.logits(x[:7]), rtol=1e-4, atol=1e-5)
        few = x[:5].clone().requires_grad_()
        first = twin.logits(few).sum()
        torch.autograd.grad(first, few, retain_graph=True)
        with pytest.raises(RuntimeError, match="twice"):
            torch.autograd.grad(first, few)


@pytest.mark.gpu
@pytest.mark.usefixtures("anything_pays")
def test_a_slope_is_one_replay_and_the_same(smooth: nn.Module, digits: Digits) -> None:
    x, y = (t.to("cuda") for t in digits)
    weights = torch.randn(len(x), 10, device="cuda")
    with Target(smooth, device="cuda", normalize=(0.1, 0.3)) as target:
        twin = engine.fastest(target, x, y, 1000)[0]
        assert twin.replay is not None
        kept = []
        for rows in (3, 8, 30, 5):
            part = torch.arange(rows, device="cuda") % len(x)
            seen = twin.replay(x[part], weights[part])
            assert seen is not None
            kept.append((part, seen))
            twin.logits(x[:4])  # answers in the memory that replays share
        for part, (gradient, value, logits) in kept:
            plain = weigh(target, x[part], weights[part])
            assert engine._close(*engine._apart((plain.logits, plain.gradient), (logits, gradient)))
            torch.testing.assert_close(value, (logits * weights[part]).sum(1))
        assert twin.replay(x[:1].repeat(300, 1, 1, 1), weights[:1].repeat(300, 1)) is None


@pytest.mark.gpu
def test_the_first_backward_pass_of_a_process_warns_of_nothing() -> None:
    code = (
        "import torch, robust\n"
        "net = torch.nn.Linear(784, 10)\n"
        "with robust.Target(net, device='cuda') as target:\n"
        "    x = torch.rand(4, 784, device='cuda', requires_grad=True)\n"
        "    torch.autograd.grad(target.logits(x).sum(), x)\n"
    )
    subprocess.run([sys.executable, "-W", "error:Attempting to run cuBLAS", "-c", code], check=True)


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


@pytest.mark.gpu
def test_a_judge_is_replayed_and_exact(smooth: nn.Module, digits: Digits) -> None:
    x = digits[0].to("cuda")
    with Target(smooth, device="cuda", normalize=(0.1, 0.3)) as target, torch.no_grad():
        judge = engine.recorded(target, x)
        assert judge is not target
        for rows in (1, 9, 100, 300):
            part = torch.arange(rows, device="cuda") % len(x)
            torch.testing.assert_close(judge.logits(x[part]), target.logits(x[part]), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_large_batches_are_filled_up_to_sizes_that_come_again(smooth: nn.Module, digits: Digits) -> None:
    x = digits[0].to("cuda")
    seen: list[int] = []
    with Target(smooth, device="cuda") as target:
        target.model.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
        twin = copies.around(target, copies.Graphed(target.as_module(), x))
        for rows in (257, 300, 320, 321):
            many = x[torch.arange(rows, device="cuda") % len(x)].requires_grad_()
            logits = twin.logits(many)
            assert logits.shape == (rows, 10)
            (gradient,) = torch.autograd.grad(logits.sum(), many)
            assert gradient.shape == many.shape
    assert seen == [320, 320, 320, 384]


@pytest.mark.gpu
@pytest.mark.usefixtures("anything_pays")
def test_what_goes_back_several_times_is_not_replayed(smooth: nn.Module, digits: Digits) -> None:
    x, y = (t.to("cuda") for t in digits)
    jacobians = []
    with Target(smooth, device="cuda") as target:
        for on in (engine.fastest(target, x, y, 1000)[0], target):
            oracle = Oracle(on, x, y, torch.arange(len(x), device="cuda"), Threat("l2", "1"), judge=target)
            jacobians.append(oracle.jacobian(x, 9).gradients.sum(1).flatten(1))  # whatever their order
    assert float(torch.cosine_similarity(*jacobians).min()) > 0.99


@pytest.mark.gpu
@pytest.mark.usefixtures("anything_pays")
def test_what_cannot_be_recorded_is_run(residual: nn.Module, digits: Digits) -> None:
    class Asking(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 if x.sum().item() > -1 else 2)

    model = Asking().eval()
    model.load_state_dict(residual.state_dict())
    with Target(model, device="cuda") as target:
        x, y = (t.to("cuda") for t in digits)
        twin, name = engine.fastest(target, x, y, 1000)
        assert "graphs" not in name
        assert twin.logits(x).isfinite().all()
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        assert torch.rand(3, device="cuda").shape == (3,)  # the generator is not held to be recorded


@pytest.mark.gpu
def test_a_gpu_computes_in_float32_and_its_settings_come_back(net: nn.Module) -> None:
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        with Target(net, device="cuda"):
            assert not any(backend.allow_tf32 for backend in backends)
            with Target(net, device="cuda", tf32=True):
                assert not any(backend.allow_tf32 for backend in backends)
        assert all(backend.allow_tf32 for backend in backends)
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


@pytest.mark.gpu
@pytest.mark.usefixtures("anything_pays")
@pytest.mark.parametrize("threat", ["linf:0.1", "l2:0.7"])
def test_a_gpu_comes_to_the_verdicts_of_the_cpu(net: nn.Module, digits: Digits, threat: str) -> None:
    x, y = (torch.cat([t] * 3) for t in digits)
    cpu = robust.evaluate(net, (x, y), threat=threat, device="cpu")
    cuda = robust.evaluate(net, (x, y), threat=threat, device="cuda")
    differ = int((cpu.verdicts.status != cuda.verdicts.status).sum())
    print(f"{threat}: {differ} of {len(x)} verdicts differ; {cuda.engine}")
    assert "graphs" in cuda.engine
    assert differ <= len(x) // 25
    assert cuda.findings == []


def test_what_a_blurred_copy_may_be_wrong_about_is_for_the_judge_to_say(
    net: nn.Module, digits: Digits
) -> None:
    """A copy a little too confident sees no break where the model does; with its blur known, the judge is asked."""
    x, y = digits
    x, y = x[net(x).argmax(1) == y], y[net(x).argmax(1) == y]
    threat = Threat("linf", "0.1")

    class Shy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = net(x)
            return logits + 0.01 * (logits.amax(1) - logits.amin(1))[:, None] * nn.functional.one_hot(y, 10)

    with Target(net, device="cpu") as target:
        near = _at_the_boundary(target, x, y, threat)
        found = {}
        for blur in (0.0, 0.02):
            copy = target.twin(Shy())
            copy.blur = blur
            oracle = Oracle(copy, x, y, torch.arange(len(x)), threat, judge=target)
            oracle.logits(near)
            found[blur] = oracle.ledger.broken
        wrong = target.logits(near).argmax(1) != y
    assert int(found[0.0].sum()) < int(wrong.sum())
    assert torch.equal(found[0.02], wrong)


def _at_the_boundary(target: Target, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """Points a hair over the decision boundary, where the ball reaches it: between a break and x."""
    oracle = Oracle(target, x, y, torch.arange(len(x)), threat)
    for _ in oracle.steps(1):
        gradient = oracle.gradient(x, margin).gradient
        far = threat.project(x + gradient.sign(), x)
    low, high = torch.zeros(len(x), 1, 1, 1), torch.ones(len(x), 1, 1, 1)
    for _ in range(12):
        middle = (low + high) / 2
        wrong = (target.logits(x + middle * (far - x)).argmax(1) != y).view(-1, 1, 1, 1)
        low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
    return x + high * (far - x)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({16: 1e-3, 32: 2.5e-3, 64: 2.6e-3, 128: 9e-3, 256: 20e-3}, 64),  # one that did not pay says little
        ({16: 1e-3, 32: 2.5e-3, 64: 5.5e-3, 128: 1e-4}, 16),  # two end the search
        ({16: 7e-3, 32: 15e-3, 64: 1e-4}, 16),  # where passes are long, one does
        ({16: 7e-3, 32: 14e-3, 64: 1e-4}, 32),  # of two as good the larger
        (
            {16: 30e-3, 32: 50e-3, 64: 90e-3, 128: 170e-3, 256: 1e-4},
            128,
        ),  # of slow rows no more than an eighth
        ({16: 300e-3, 32: 500e-3, 64: 1e-4}, 32),  # where a row takes very long, no more than 32 are tried
        (
            {16: 1e-4, 32: 2e-4, 64: 4e-4, 128: 8e-4, 256: 16e-4, 512: 32e-4, 1000: 60e-4},
            1000,
        ),  # what is between passes counts
    ],
)
def test_the_micro_batch_is_the_cheapest_by_measurement(
    seconds: dict[int, float], chosen: int, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(net, device="cpu")
    monkeypatch.setattr(target, "_cost", lambda x: seconds[len(x)])
    assert target.pick_micro_batch(lambda size: torch.zeros(size, 1), 1000) == chosen


@pytest.mark.parametrize(("threads", "clock"), [(1, "process_time"), (2, "perf_counter")])
def test_passes_of_one_thread_are_timed_without_what_others_do_meanwhile(
    threads: int, clock: str, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"process_time": iter((0.0, 1.0)), "perf_counter": iter((0.0, 5.0))}
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for name, seconds in told.items():
        monkeypatch.setattr(time, name, seconds.__next__)
    assert Target(net, device="cpu").timed(lambda: None) == {"process_time": 1.0, "perf_counter": 5.0}[clock]
