"""What passes cost, as it is measured, and the micro-batch that is chosen by it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robust.devices import synchronize
from robust.failures import out_of_memory

if TYPE_CHECKING:
    from robust.target import Target

_CANDIDATE_BATCHES = (16, 32, 64, 128, 256, 512, 1024, 2048)
_SLOW_ROW, _VERY_SLOW_ROW = 5e-4, 5e-3  # seconds
_SLOW_ROW_BATCH = 32  # enough for such rows,
_SLOW_ROW_SHARE = 8  # or one of so many parts of the samples
_PAYS, _AS_GOOD = 0.95, 1.02  # of the least cost of a row so far: what a larger batch gains, what it may lose
_BETWEEN = 3e-4  # seconds that an attack takes between two passes
_SHORT = 0.01  # seconds
_FEW = 256  # samples, for which a third look at each size would take as long as it could save
_FINE = 1e-5  # seconds


def pick_micro_batch(target: Target, rows: Callable[[int], Tensor], limit: int) -> int:
    """The batch size with the least measured time a sample, forward and input gradient.

    Args:
        target: what the passes are of.
        rows: gives that many samples on the device.
        limit: never more than this.

    Of sizes that are about as good the largest: what is left of a wave then fills fewer batches. Sizes grow while they
    pay (by 5 % at least; where passes are short, until two in turn did not) and memory lasts. Where a row costs
    about a millisecond, larger batches gain little and measuring them costs seconds: sizes grow with the samples.
    """
    best, least, vain = 1, float("inf"), 0
    sizes = [size for size in _CANDIDATE_BATCHES if size < limit]
    for size in [*sizes, min(limit, _CANDIDATE_BATCHES[-1])]:
        try:
            seconds = _cost(target, rows(size), thrice=limit > _FEW)
        except Exception as error:
            if not out_of_memory(error):
                raise
            break
        cost = (seconds + _BETWEEN) / size
        if cost <= _AS_GOOD * least:
            best = size
        vain = 0 if cost <= _PAYS * least else vain + 1
        least = min(least, cost)
        if vain and (vain == 2 or seconds > _SHORT):
            break
        if cost > _SLOW_ROW and size >= _enough(cost, limit):
            break
    return best


def _cost(target: Target, x: Tensor, *, thrice: bool) -> float:
    """Seconds for a forward and input-gradient pass, the best of two, or of three where told and where it is short."""
    seconds: list[float] = []
    while len(seconds) < 2 or (thrice and len(seconds) < 3 and seconds[-1] < _SHORT):
        seconds.append(timed(target.device, lambda: both_ways(target, x)))
    return min(seconds)


def _enough(cost: float, samples: int) -> int:
    """The largest batch to try where a row costs this much: measuring takes some hundredth of what so many samples take.

    Rows that cost far more are wide or deep, and hold much memory.
    """
    return _SLOW_ROW_BATCH if cost > _VERY_SLOW_ROW else max(_SLOW_ROW_BATCH, samples // _SLOW_ROW_SHARE)


def timed(device: torch.device, call: Callable[[], object]) -> float:
    """Seconds that a call takes on the device.

    Of the processor's time where one thread computes: on a busy machine, such as a CI runner, the wall clock counts what
    others do meanwhile, and the longer a call the more.
    """
    clock = time.process_time if device.type == "cpu" and _one_thread() else time.perf_counter
    synchronize(device)
    start = clock()
    call()
    synchronize(device)
    return clock() - start


def _one_thread() -> bool:
    """Whether one thread computes, and the processor's time is finely told (it is not on Windows)."""
    return torch.get_num_threads() == 1 and time.get_clock_info("process_time").resolution <= _FINE


def both_ways(target: Target, x: Tensor) -> None:
    """A pass to be timed: forward and backward, or forward alone where no gradient can be had."""
    point = x.detach().requires_grad_()
    try:
        logits = target.logits(point)
        if logits.requires_grad:
            torch.autograd.grad(logits.sum(), point, allow_unused=True)
    except Exception as error:
        if out_of_memory(error):
            raise
        with torch.no_grad():
            target.logits(x)
