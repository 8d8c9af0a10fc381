"""On a GPU: half precision, recorded graphs, replays, and the verdicts of the CPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from wrapped import Residual

import robust
from robust import copies, engine
from robust.oracle import Oracle
from robust.passes import weigh
from robust.target import Target
from robust.threat import Threat

Digits = tuple[Tensor, Tensor]


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
