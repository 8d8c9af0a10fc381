"""What passes cost, as it is measured: the clock, and the micro-batch that is chosen by it."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from robust import timing
from robust.target import Target


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
    monkeypatch.setattr(timing, "_cost", lambda target, x, *, thrice: seconds[len(x)])
    assert timing.pick_micro_batch(target, lambda size: torch.zeros(size, 1), 1000) == chosen


@pytest.mark.parametrize(("samples", "looks"), [(20, 2), (1000, 3)])
def test_few_samples_are_worth_two_looks_at_each_size(
    samples: int, looks: int, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(timing, "both_ways", lambda target, x: seen.append(len(x)))
    timing.pick_micro_batch(Target(net, device="cpu"), lambda size: torch.zeros(size, 1), samples)
    assert seen.count(16) == looks


@pytest.mark.parametrize(("threads", "clock"), [(1, "process_time"), (2, "perf_counter")])
def test_passes_of_one_thread_are_timed_without_what_others_do_meanwhile(
    threads: int, clock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"process_time": iter((0.0, 1.0)), "perf_counter": iter((0.0, 5.0))}
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for name, seconds in told.items():
        monkeypatch.setattr(time, name, seconds.__next__)
    assert (
        timing.timed(torch.device("cpu"), lambda: None) == {"process_time": 1.0, "perf_counter": 5.0}[clock]
    )
