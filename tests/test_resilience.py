"""Nothing that was computed is lost, and what surrounds an evaluation does not change it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import robust
from robust import engine, run_checks
from robust import run as run_module
from robust.attacks import FGSM, PGD
from robust.audit import Audit, audit, audit_twice
from robust.errors import ModelError, StoreError
from robust.evaluation import Interrupted
from robust.report import Report
from robust.run import Progress, Run
from robust.target import Target
from robust.threat import Threat

Digits = tuple[Tensor, Tensor]
_CORNER = 0.9375
BRIGHT = 50  # none of those that are looked at before the attacks


def evaluate(model: nn.Module, data: Digits, **options: Any) -> Report:
    return robust.evaluate(model, data, **{"threat": "linf:0.1", "device": "cpu", **options})


class Picky(nn.Module):
    """Fails on batches in which a bright corner has changed, or on more rows than it has room for."""

    def __init__(self, net: nn.Module, room: int = 1000) -> None:
        super().__init__()
        self.net, self.room = net, room

    def forward(self, x: Tensor) -> Tensor:
        corner = x[:, 0, 0, 0]
        if bool(((corner > 0.9) & (corner != _CORNER)).any()):
            raise ValueError("a corner that was not calibrated for")
        if len(x) > self.room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        out: Tensor = self.net(x)
        return out


@pytest.fixture
def one_bright(digits: Digits) -> Digits:
    """Digits of which one alone has a bright corner."""
    x, y = digits[0].clone(), digits[1]
    x[:, :, 0, 0] = 0
    x[BRIGHT, :, 0, 0] = _CORNER
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
    assert "(test_resilience.py, line " in first
    assert report.attacks[0]["errors"] == 1
    assert report.trust == "unreliable"


@pytest.mark.parametrize("room", [40, 20, 1])
@pytest.mark.parametrize("batch_size", [64, "auto"])
def test_short_memory_costs_time_alone(
    room: int, batch_size: int | str, net: nn.Module, digits: Digits
) -> None:
    plain = evaluate(net, digits, suite="pgd")
    report = evaluate(Picky(net, room=room), digits, suite="pgd", batch_size=batch_size)
    assert report.statuses == plain.statuses
    assert report.failures == []


def test_short_memory_in_a_check_makes_it_in_smaller_batches(
    net: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def hungry(subject: robust.diagnose.Subject) -> None:
        sizes.append(subject.micro_batch)
        if subject.micro_batch > 10:
            raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(robust.diagnose, "BRIEF", (hungry,))
    report = evaluate(net, digits, suite="pgd", batch_size=32)
    assert sizes == [32, 16, 8]
    assert report.failures == []


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


def test_short_memory_while_copies_are_timed_leaves_the_model_as_it_is(
    net: nn.Module, digits: Digits
) -> None:
    with Target(Picky(net, room=2), device="cpu") as target:
        assert engine.fastest(target, *digits, rows=10_000) == (target, engine.PLAIN)


def test_examples_that_cannot_be_written_are_an_error_of_the_report(
    net: nn.Module, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: No space left on device")

    report = evaluate(net, digits, suite="quick", keep_examples=True)
    evaluate(net, (digits[0][:5], digits[1][:5]), suite="fgsm").save(tmp_path / "out")
    monkeypatch.setattr("robust.report.save_file", full)
    with pytest.raises(StoreError, match="No space left"):
        report.save(tmp_path / "out")
    assert Report.load(tmp_path / "out").n == 5  # the one that was there
    assert len(list((tmp_path / "out").iterdir())) == 2


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


def test_ctrl_c_in_the_checks_keeps_the_verdicts(
    net: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = evaluate(net, digits)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def stop_at_checks(now: Progress) -> None:
        if now.stage == "checks":
            raise KeyboardInterrupt

    def cut(**options: Any) -> Report:
        with pytest.raises(Interrupted) as caught:
            evaluate(net, digits, **options)
        return caught.value.report

    in_probes = cut(progress=stop_at_checks)
    monkeypatch.setattr(run_checks, "_search_blindly", stop)
    for report in (in_probes, cut()):
        assert report.verdicts.status.tolist() == plain.verdicts.status.tolist()
        assert report.trust == "unreliable"
        assert "interrupted" in {finding["check"] for finding in report.findings}


def test_short_memory_while_claims_are_judged_counts_nothing_twice(
    net: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = evaluate(net, digits, suite=PGD(steps=3), batch_size=16)
    asked: list[int] = []

    def short_once(*args: Any) -> tuple[Audit, Tensor]:
        asked.append(1)
        if len(asked) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return audit_twice(*args)

    monkeypatch.setattr(run_module, "audit_twice", short_once)
    report = evaluate(net, digits, suite=PGD(steps=3), batch_size=16)
    assert len(asked) > 2
    counts = ("broke", "survived", "rejected", "errors", "forwards", "backwards")
    for entry, wanted in zip(report.attacks, plain.attacks, strict=True):
        assert [entry[key] for key in counts] == [wanted[key] for key in counts]
    assert report.verdicts.forwards.tolist() == plain.verdicts.forwards.tolist()
    assert report.checks["forwards"] > plain.checks["forwards"]


@pytest.mark.parametrize("place", ["_chosen", "load", "_watch", "_judge"])
def test_ctrl_c_around_an_attack_keeps_the_verdicts(
    place: str, net: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = [FGSM(), PGD(steps=3)]
    plain = evaluate(net, digits, suite=suite)
    original = getattr(Run, place)

    def stop_in_the_second(self: Run, *args: Any, **options: Any) -> object:
        if len(self.entries) == 1:
            raise KeyboardInterrupt
        return original(self, *args, **options)

    monkeypatch.setattr(Run, place, stop_in_the_second)
    with pytest.raises(Interrupted) as caught:
        evaluate(net, digits, suite=suite)
    report = caught.value.report
    assert report.attacks[0]["broke"] == plain.attacks[0]["broke"]
    first = (plain.verdicts.attack == "fgsm").to_numpy()
    assert first.any()
    assert report.verdicts[first].status.tolist() == plain.verdicts[first].status.tolist()
    assert report.statuses["survived"] == 0
    assert "interrupted" in {finding["check"] for finding in report.findings}
    for entry in report.attacks:
        assert entry["attacked"] == entry["broke"] + entry["survived"] + entry["errors"]
    spent = sum(entry["forwards"] for entry in report.attacks) + report.checks["forwards"]
    assert spent >= report.verdicts.forwards.sum() - report.n


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


def test_a_batch_larger_than_what_was_looked_at_is_held_against_it(net: nn.Module, digits: Digits) -> None:
    class Mixes(nn.Module):
        """Of more than forty rows each sees the mean of all."""

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = net(x)
            return logits + logits.mean(0) if len(x) > 40 else logits

    found = {f["check"] for f in evaluate(Mixes(), digits, suite="pgd", batch_size=64).findings}
    assert "batch-dependent" in found
    assert evaluate(Mixes(), digits, suite="pgd", batch_size=40).findings == []


@pytest.mark.parametrize("attack", ["fmn", "fab", "ddn"])
def test_minimum_norm_searches_alone_get_no_second_opinion(
    attack: str, net: nn.Module, digits: Digits
) -> None:
    """They raise no margin inside the threat, so that random search seems to come nearer."""
    report = evaluate(net, digits, threat="l2:0.3", suite=attack)
    assert report.checks["asked"] == 0
    assert "black-box-wins" not in {finding["check"] for finding in report.findings}


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


class Rounds(nn.Module):
    """The boundary between the first two classes is at .5, and a hair beyond it in batches."""

    def forward(self, x: Tensor) -> Tensor:
        lead = x.flatten(1)[:, 0] - 0.5 - (1e-6 if len(x) > 1 else 0)
        return torch.stack([-lead, lead, torch.full_like(lead, -1.0)], 1)


def test_what_rounding_denies_is_asked_about_once_more() -> None:
    x, y = torch.full((4, 1, 1, 1), 0.1), torch.zeros(4, dtype=torch.int64)
    claimed = torch.tensor([0.6, 0.5 + 5e-7, 0.5, 0.3]).view(4, 1, 1, 1)
    threat = Threat("linf", "0.5")
    with Target(Rounds(), device="cpu") as target:
        once = audit(target, claimed, x, y, threat)
        twice, points = audit_twice(target, claimed, x, y, threat)
    assert once.valid.tolist() == [True, False, False, False]
    assert twice.valid.tolist() == [True, True, True, False]
    assert torch.equal(points[:2], claimed[:2])
    assert float(points[2]) == pytest.approx(0.5004)  # a thousandth farther
    assert twice.distance[2] == pytest.approx(0.4004)


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


def test_a_report_saved_over_another_leaves_no_examples_of_it(
    tmp_path: Path, net: nn.Module, digits: Digits
) -> None:
    evaluate(net, digits, suite="fgsm", keep_examples=True).save(tmp_path)
    assert Report.load(tmp_path).examples is not None
    few = evaluate(net, (digits[0][:5], digits[1][:5]), suite="fgsm")
    few.save(tmp_path)
    assert Report.load(tmp_path).examples is None


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_report_cut_off_over_another_is_no_mixture_of_the_two(
    after: int, tmp_path: Path, net: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(net, digits, suite="fgsm", keep_examples=True).save(tmp_path)
    other = evaluate(net, digits, suite="quick", keep_examples=True)
    whole, calls = Path.replace, []

    def cut(self: Path, target: Path) -> Path:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(target)
        return whole(self, target)

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        other.save(tmp_path)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="cannot read"):
        Report.load(tmp_path)
    assert not list(tmp_path.glob(".*"))
    assert Report.load(other.save(tmp_path)).suite == "quick"


def test_others_may_read_a_report_as_the_umask_says(tmp_path: Path, net: nn.Module, digits: Digits) -> None:
    evaluate(net, digits, suite="fgsm", keep_examples=True).save(tmp_path / "out")
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in [tmp_path / "plain", *(tmp_path / "out").iterdir()]}
    assert len(modes) == 1
    assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("report.json", "[]", "list"),
        ("report.json", "null", "NoneType"),
        ("examples.safetensors", "x" * 20, "cannot read"),
    ],
)
def test_a_damaged_report_is_told_in_one_line(
    file: str, text: str, said: str, tmp_path: Path, net: nn.Module, digits: Digits
) -> None:
    evaluate(net, digits, suite="fgsm", keep_examples=True).save(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(StoreError, match=said):
        Report.load(tmp_path)


def test_a_folder_may_be_named_by_a_threat(
    net: nn.Module, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = evaluate(net, digits, suite="quick")
    monkeypatch.chdir(tmp_path)
    assert Report.load(report.save("run-linf:0.1")).statuses == report.statuses


def test_examples_of_another_run_are_refused(tmp_path: Path, net: nn.Module, digits: Digits) -> None:
    evaluate(net, digits, suite="fgsm", keep_examples=True).save(tmp_path)
    kept = (tmp_path / "examples.safetensors").read_bytes()
    evaluate(net, (digits[0][:2], digits[1][:2]), suite="fgsm").save(tmp_path)
    (tmp_path / "examples.safetensors").write_bytes(kept)
    with pytest.raises(StoreError, match="another run"):
        Report.load(tmp_path)


def test_a_curve_of_a_suite_that_searches_at_eps_alone_has_a_minimum_norm_attack_too(
    net: nn.Module, digits: Digits
) -> None:
    curve = evaluate(net, digits, minimize=True).curve([0.02, 0.05]).robust_accuracy
    for eps, found in zip(("0.02", "0.05"), curve, strict=True):
        direct = evaluate(net, digits, threat=f"linf:{eps}").robust_accuracy
        assert abs(found - direct) < 0.04


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
