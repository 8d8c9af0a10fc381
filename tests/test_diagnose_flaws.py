"""The zoo: every planted flaw trips its named check in any evaluation, honest models trip none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from toy import ENOUGH
from wrapped import Wrap, same, winners

import robust
from robust.attacks import FGSM
from robust.diagnose.preflight import preflight
from robust.oracle import Oracle
from robust.report import Report
from robust.sources import load_data
from robust.target import Target
from robust.transforms import JPEG


def batch_statistics(x: Tensor) -> Tensor:
    return (x - x.mean(0, keepdim=True)) / (x.std(0, keepdim=True, correction=0) + 0.1)


def descend(x: Tensor) -> Tensor:
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(point.square().sum(), point)
    return x - 0.01 * gradient


def by_mode(x: Tensor) -> Tensor:
    return x if torch.is_grad_enabled() else (x * 3).round() / 3


FLAWS: dict[str, tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "noise at inference": ("randomized", lambda x: x + 0.05 * torch.randn_like(x), same),
    "dropout at inference": ("randomized", lambda x: nn.functional.dropout(x, 0.2, training=True), same),
    "batch statistics": ("batch-dependent", batch_statistics, same),
    "softmax": ("probabilities", same, lambda z: z.softmax(1)),
    "detached": ("detached-graph", same, lambda z: z.detach()),
    "bit depth": ("zero-gradient", lambda x: (x * 7).round() / 7, same),
    "logits x 1e3": ("logit-scale", same, lambda z: z * 1e3),
    "logits x 1e6": ("logit-scale", same, lambda z: z * 1e6),
    "optimises at inference": ("dynamic-defense", descend, same),
    "deployed with quantised inputs": ("gradient-model", by_mode, same),
    "k winners take all": ("unstable-loss", winners, same),
    "JPEG": ("detached-graph", lambda x: JPEG(quality=75)(x), same),
    "bit depth, searched in the whole box": ("unbounded", lambda x: (x * 7).round() / 7, same),
}


def test_watching_autograd_in_two_threads_leaves_it_as_it_was(digits: tuple[Tensor, Tensor]) -> None:
    """The second would begin while the first is in its model, and end after it."""
    inside, second = threading.Event(), threading.Event()

    def first_pass(x: Tensor) -> Tensor:
        inside.set()
        second.wait(0.2)
        return x

    def second_pass(x: Tensor) -> Tensor:
        if not second.is_set():
            second.set()
            time.sleep(0.2)
        return x

    def watch(before: Callable[[Tensor], Tensor]) -> None:
        model = Wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), before, same)
        with Target(model, device="cpu") as target:
            preflight(target, *digits)

    grad, backward = torch.autograd.grad, torch.autograd.backward
    threads = [threading.Thread(target=watch, args=(before,)) for before in (first_pass, second_pass)]
    try:
        threads[0].start()
        inside.wait(10)
        threads[1].start()
        for thread in threads:
            thread.join()
        assert (torch.autograd.grad, torch.autograd.backward) == (grad, backward)
    finally:
        torch.autograd.grad, torch.autograd.backward = grad, backward


def look(model: nn.Module, digits: tuple[Tensor, Tensor]) -> Report:
    return robust.evaluate(model, digits, threat="linf:0.05", suite=ENOUGH, device="cpu")


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_planted_flaw_trips_its_check(flaw: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    check, before, after = FLAWS[flaw]
    with torch.random.fork_rng():
        report = look(Wrap(net, before, after).eval(), digits)
    assert check in {finding["check"] for finding in report.findings}
    assert report.trust != "trusted"


class Adapting(nn.Module):
    """A net that moves a little towards what it is asked, as adaptation at test time does."""

    def __init__(self, net: nn.Module, rate: float) -> None:
        super().__init__()
        self.net, self.rate = net, rate
        self.register_buffer("centre", torch.zeros(1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.centre, Tensor)
        self.centre.add_(self.rate * (x.detach().mean(0) - self.centre))
        out: Tensor = self.net(x - self.centre)
        return out


def test_a_model_that_changes_while_it_is_attacked_is_told(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    report = robust.evaluate(Adapting(net, 1e-5).eval(), digits, threat="linf:0.05", device="cpu")
    assert [finding["check"] for finding in report.findings] == ["stateful"]
    assert report.trust == "unreliable"


@dataclass(frozen=True)
class Spoiling(FGSM):
    """Writes into the model's weights, through a reference of its own."""

    weight: ClassVar[Tensor]

    def run(self, oracle: Oracle) -> Tensor:
        self.weight.mul_(-1)
        return super().run(oracle)


def test_an_attack_that_writes_into_the_weights_is_told(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    Spoiling.weight = next(iter(net.parameters())).data
    report = robust.evaluate(net, digits, threat="linf:0.05", suite=[Spoiling()], device="cpu")
    assert "stateful" in {finding["check"] for finding in report.findings}
    assert report.trust == "unreliable"


def distilled(teacher: nn.Module, temperature: float) -> nn.Module:
    """A student of a small net's soft labels at that temperature, deployed at 1 (Papernot et al. 2016)."""
    x = load_data("builtin:digits:train").rows(slice(None))
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(student.parameters(), 5e-3)
    with torch.no_grad():
        soft = teacher(x).softmax(1)
    for _ in range(150):
        for rows in torch.randperm(len(x)).split(256):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(student(x[rows]) / temperature, soft[rows])
            loss.backward()
            optimizer.step()
    return student.eval()


def test_defensive_distillation_at_a_high_temperature_is_told(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = distilled(net, 100.0)
    suite = [{"name": "pgd", "steps": 10}, {"name": "pgd", "steps": 10, "loss": "margin"}]
    report = robust.evaluate(student, digits, threat="linf:0.15", suite=suite, cascade=False, device="cpu")
    assert report.clean_accuracy > 0.9
    assert {"loss-gap", "logit-scale"} <= {finding["check"] for finding in report.findings}
    assert report.trust != "trusted"


HONEST: dict[str, Callable[[nn.Module], nn.Module]] = {
    "trained": lambda net: net,
    "untrained": lambda _: nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.GELU(), nn.Linear(20, 10)),
    "linear": lambda _: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    "small logits": lambda net: Wrap(net, same, lambda z: z / 50),
    "log-softmax": lambda net: Wrap(net, same, lambda z: z.log_softmax(1)),
    "smooth input": lambda net: Wrap(net, lambda x: nn.functional.avg_pool2d(x, 3, 1, 1), same),
}


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_model_trips_none(kind: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        report = look(HONEST[kind](net).eval(), digits)
    assert report.findings == []
    assert report.trust == "trusted"


@pytest.mark.parametrize("draws", [None, 4])
def test_what_one_evaluation_finds_of_the_outputs_the_next_one_finds_again(
    draws: int | None, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    target = Target(Wrap(net, same, lambda logits: logits.softmax(1)).eval(), device="cpu")
    threats = ("linf:0.1", "linf:0.1", "l2:0.5")
    reports = [robust.evaluate(target, digits, threat=threat, suite="fgsm", eot=draws) for threat in threats]
    assert all("probabilities" in {f["check"] for f in report.findings} for report in reports)
    assert reports[0].findings == reports[1].findings
    declared = Target(target.model, device="cpu", probabilities=True)
    quiet = robust.evaluate(declared, digits, threat="linf:0.1", suite="fgsm")
    assert "probabilities" not in {f["check"] for f in quiet.findings}


def test_without_gradients_nothing_is_claimed(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    report = look(Wrap(net, same, lambda z: z.detach()).eval(), digits)
    assert report.trust == "unreliable"
    assert all(entry["attacked"] == 0 for entry in report.attacks)
    blind = robust.evaluate(
        Wrap(net, same, lambda z: z.detach()).eval(), digits, threat="linf:0.15",
        suite=[{"name": "square", "queries": 200}], device="cpu",
    )  # fmt: skip
    assert blind.statuses["broken"] > 3
    assert "black-box-alone" not in {finding["check"] for finding in blind.findings}  # there is no other way


def test_where_gradients_lead_nowhere_nobody_is_told_to_use_them(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    rounded = Wrap(net, lambda x: (x * 4).round() / 4).eval()
    report = robust.evaluate(
        rounded, digits, threat="linf:0.02", suite=[{"name": "square", "queries": 100}], device="cpu"
    )
    assert report.statuses["survived"] > 5
    assert report.trust == "unreliable"
    assert "black-box-alone" not in {finding["check"] for finding in report.findings}


def test_probabilities_are_attacked_on_their_logarithm(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    plain = look(net, digits)
    soft = look(Wrap(net, same, lambda z: z.softmax(1)).eval(), digits)
    assert abs(plain.statuses["survived"] - soft.statuses["survived"]) <= 1


def test_the_same_attack_with_another_loss_exposes_masking(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    suite = [{"name": "pgd", "steps": 10}, {"name": "pgd", "steps": 10, "loss": "margin"}]
    report = robust.evaluate(
        Wrap(net, same, lambda z: z * 1e6).eval(),
        digits,
        threat="linf:0.15",
        suite=suite,
        cascade=False,
        device="cpu",
    )
    assert {"loss-gap", "logit-scale"} <= {finding["check"] for finding in report.findings}


def test_a_batch_larger_than_what_was_looked_at_is_held_against_it(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    class Mixes(nn.Module):
        """Of more than forty rows each sees the mean of all."""

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = net(x)
            return logits + logits.mean(0) if len(x) > 40 else logits

    large, small = (
        robust.evaluate(Mixes(), digits, threat="linf:0.1", suite="pgd", batch_size=rows, device="cpu")
        for rows in (64, 40)
    )
    assert "batch-dependent" in {finding["check"] for finding in large.findings}
    assert small.findings == []
