"""The search's own copy of the model: rearranged to run faster, and checked to compute the same.

Searching may use whatever is quickest; judging stays with the user's module in float32 (`audit`). What
wins depends on the model and the machine, so it is measured, not believed.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import mmap
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from robust.losses import margin
from robust.target import Target

PLAIN: Final = "plain"
_WORTH: Final = 0.95  # a copy must take less than this share of the plain model's time
_ROWS_WORTH: Final = 64  # samples: looking for copies costs about two steps of as many
_PASS_WORTH: Final = 0.05  # seconds that a pass over all samples must take
_AGREE: Final = 1e-3  # of the logits' spread, and of the gradient's norm
_GATHERED: Final = 1 << 27
_PROBE_ROWS: Final = 8
_INSIDE: Final = 1e-6  # of the box


def fastest(target: Target, x: Tensor, y: Tensor, rows: int) -> tuple[Target, str]:
    """The target to search with, and what was done to it: "plain", "folded", "channels_last" or both.

    A copy is taken only where it is faster by measurement and gives the same logits and gradients as
    the model itself. The copy is in eval mode and frozen. Few samples, or a tiny model, are searched as they are:
    looking for copies would cost more than they save.

    Args:
        target: entered; deterministic and differentiable.
        x, y: a few samples and labels on its device, (N, ...) and (N,).
        rows: samples that are to be searched.
    """
    x, y = x[:_PROBE_ROWS], y[:_PROBE_ROWS]
    best, name = target, PLAIN
    if rows < _ROWS_WORTH:
        return best, name
    plain = _seconds(target, x, y)
    if rows * plain / len(x) < _PASS_WORTH:
        return best, name
    reference, least = _look(target, x, y), _WORTH * plain
    for label, change in _changes(target.model, x).items():
        try:
            twin = target.twin(change())
            same = _same(reference, _look(twin, x, y))
        except Exception:  # whatever a rearranged model fails on, the plain one remains
            continue
        if same and (seconds := _seconds(twin, x, y)) < least:
            best, name, least = twin, label, seconds
    return best, name


def half(target: Target) -> Target:
    """A copy that searches in bfloat16; its claims are confirmed in float32 by the oracle."""
    return target.twin(_Half(copy.deepcopy(target.model)))


def inward(target: Target) -> Target:
    """A copy that takes gradients a millionth of the box inside its faces; claims are confirmed at the point itself.

    A clamp to the box, as models often begin or end their preprocessing with, passes no gradient at the faces: every
    black or white pixel would stand still, though it can be moved.
    """
    twin = target.twin(_Inward(target.as_module().to(target.device), target.bounds))
    twin.normalize = twin._mean = twin._std = twin.size = None  # they come after: the module does it
    return twin


def off_faces(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The nearest point a millionth of the box inside it."""
    low, high = bounds
    return x.clamp(low + _INSIDE * (high - low), high - _INSIDE * (high - low))


def keep_freed_memory() -> None:
    """Tell glibc, once, to keep freed memory for the next pass instead of handing it back to the system.

    Every pass frees and asks for the same few megabytes; by default each return trip costs a page fault
    per 4 KiB. The process then keeps its peak memory until it ends. Nothing happens on other platforms.
    """
    if sys.platform == "linux":
        _set_malloc_thresholds()


@functools.cache
def _set_malloc_thresholds() -> None:
    trim, mmap, never = -1, -3, 2**31 - 1  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent in musl
    if mallopt is not None:
        mallopt(mmap, 2**30)
        mallopt(trim, never)


def give_back(floor: int) -> int:
    """Hand freed memory back to the system once over 128 MiB have gathered above `floor` bytes.

    `keep_freed_memory` never does; blocks of changing sizes then leave holes, and a long run would grow.

    Returns:
        the floor from now on: what the process held when memory was last handed back.
    """
    held = _resident()
    if held - floor < _GATHERED:
        return min(floor, held)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent in musl
    if trim is not None:
        trim(0)
    return _resident()


def _resident() -> int:
    """Bytes that this process holds in memory; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * mmap.PAGESIZE


class _Inward(nn.Module):
    """A model at the nearest point inside the box's faces, with the gradient there for the point itself."""

    def __init__(self, model: nn.Module, bounds: tuple[float, float]) -> None:
        super().__init__()
        self.model, self.bounds = model, bounds

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            shift = off_faces(x, self.bounds) - x
        out: Tensor = self.model(x + shift)
        return out


class _Half(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x.to(torch.bfloat16))
        return out


def _changes(model: nn.Module, x: Tensor) -> dict[str, Callable[[], nn.Module]]:
    """Copies of this model that are worth a try."""
    images = x.dim() == 4 and any(isinstance(m, nn.Conv2d) for m in model.modules())
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    folded = functools.cache(lambda: fuse(model))  # batch norms folded into the convolutions before them
    changes: dict[str, Callable[[], nn.Module]] = {}
    if norms:
        changes["folded"] = folded
    if images:
        changes["channels_last"] = lambda: _channels_last(model)
    if images and norms:
        changes["folded, channels_last"] = lambda: _channels_last(folded())
    return changes


def _channels_last(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


def _look(target: Target, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the margin's input gradient."""
    point = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = target.logits(point)
        (gradient,) = torch.autograd.grad(margin(logits, y).sum(), point)
    return logits.detach(), gradient


def _same(reference: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    spread = (reference[0].amax(1) - reference[0].amin(1)).clamp_min(1e-12)
    logits = bool(((other[0] - reference[0]).abs().amax(1) <= _AGREE * spread).all())
    moved = (other[1] - reference[1]).flatten(1).norm(dim=1)
    size = reference[1].flatten(1).norm(dim=1)
    return logits and float((moved <= _AGREE * size).float().mean()) > 0.8  # a ReLU may flip on a tie


def _seconds(target: Target, x: Tensor, y: Tensor) -> float:
    """Of a forward and input-gradient pass, the best of three."""
    seconds = []
    for _ in range(3):
        target.synchronize()
        start = time.perf_counter()
        _look(target, x, y)
        target.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
