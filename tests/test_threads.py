"""Evaluations of one model in several threads at once: each as if it were alone, and the model is back when the last has ended."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import robust
from robust.attacks.adapters.isolation import private_randomness
from robust.run import Progress
from robust.sources import as_samples
from robust.target import Target


def _net() -> nn.Module:
    """In training mode, where its answers are others than in eval mode."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 4))
    for _ in range(5):
        net(torch.rand(64, 1, 4, 4))
    return net


def _data(net: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return x, copy.deepcopy(net).eval()(x).argmax(1)


@pytest.mark.parametrize("shared", [False, True], ids=["a target each", "one target"])
def test_who_ends_first_leaves_the_model_to_the_others(shared: bool) -> None:
    net = _net()
    data, before = _data(net), copy.deepcopy(net.state_dict())
    target = Target(net, device="cpu")
    alone = robust.evaluate(copy.deepcopy(net), data, threat="linf:0.1", suite="quick")
    inside, done = threading.Event(), threading.Event()

    def slow() -> robust.Report:
        def hold(step: Progress) -> None:
            inside.set()
            assert done.wait(60)

        model = target if shared else Target(net, device="cpu")
        return robust.evaluate(model, data, threat="linf:0.1", suite="quick", progress=hold)

    with ThreadPoolExecutor(1) as pool:
        with target:
            later = pool.submit(slow)
            assert inside.wait(60)
        try:
            assert not net.training
            assert not any(p.requires_grad for p in net.parameters())
        finally:
            done.set()
        report = later.result(60)
    assert report.verdicts.equals(alone.verdicts)
    assert report.findings == alone.findings
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert all(module.training for module in net.modules())
    assert all(p.requires_grad for p in net.parameters())


def test_one_within_another_puts_back_what_it_changed_itself() -> None:
    net = _net()
    with Target(net, device="cpu"):
        net.train()
        with Target(net, device="cpu"):
            assert not net.training
        assert net.training
    assert net.training


def test_a_model_ends_with_its_own_evaluation_whatever_others_go_on() -> None:
    net, other = _net(), _net()
    inside, done = threading.Event(), threading.Event()

    def slow() -> None:
        with Target(other, device="cpu"):
            inside.set()
            assert done.wait(60)

    with ThreadPoolExecutor(1) as pool:
        with Target(net, device="cpu"):
            later = pool.submit(slow)
            assert inside.wait(60)
        try:
            assert net.training
            assert not other.training
        finally:
            done.set()
        later.result(60)
    assert other.training


def test_settings_for_all_threads_come_back_with_the_last() -> None:
    net, other = _net(), _net()
    inside, done = threading.Event(), threading.Event()

    def slow() -> torch.dtype:
        with Target(other, device="cpu"):
            inside.set()
            assert done.wait(60)
            return torch.get_default_dtype()

    torch.set_default_dtype(torch.float64)
    try:
        with ThreadPoolExecutor(1) as pool:
            with Target(net, device="cpu"):
                later = pool.submit(slow)
                assert inside.wait(60)
            done.set()
            assert later.result(60) == torch.float32
        assert torch.get_default_dtype() == torch.float64
    finally:
        done.set()
        torch.set_default_dtype(torch.float32)


class _Meeting(nn.Module):
    """A model of random logits that draws before and, if it can, after somebody else has drawn."""

    def __init__(self, mine: threading.Event, others: threading.Event) -> None:
        super().__init__()
        self.mine, self.others = mine, others

    def forward(self, x: Tensor) -> Tensor:
        before = torch.randn(len(x), 3)
        self.mine.set()
        self.others.wait(0.3)
        return x.flatten(1)[:, :3] + before + torch.randn(len(x), 3)


class _Items(Dataset[tuple[Tensor, int]]):
    def __init__(self, model: _Meeting) -> None:
        self.model = model

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.model(torch.zeros(1, 3))[0].sigmoid(), 0


def _of_another_expectation(model: _Meeting) -> None:
    with robust.EOT(model, 2, device="cpu", seed=1) as target:
        target.logits(torch.zeros(1, 3))


def _of_another_library(model: _Meeting) -> None:
    with private_randomness(1):
        model(torch.zeros(1, 3))


@pytest.mark.parametrize(
    "other",
    [_of_another_expectation, _of_another_library, lambda model: as_samples(_Items(model))],
    ids=["expectation", "library", "data set"],
)
def test_an_expectation_is_the_same_whatever_another_thread_draws(
    other: Callable[[_Meeting], object],
) -> None:
    mine, others, over = threading.Event(), threading.Event(), threading.Event()
    x = torch.full((1, 3), 0.5)
    with robust.EOT(_Meeting(mine, others), 2, device="cpu") as target, torch.no_grad():
        alone = target.logits(x)
        mine.clear()
        with ThreadPoolExecutor(1) as pool:

            def when_the_first_is_in() -> None:
                assert mine.wait(60)
                other(_Meeting(others, over))

            later = pool.submit(when_the_first_is_in)
            together = target.logits(x)
            over.set()
            later.result(60)
    assert torch.equal(together, alone)
