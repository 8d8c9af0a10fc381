"""Max pooling on a CPU: the same outputs and input gradients as PyTorch's, several times sooner.

PyTorch goes through each window value by value. Maxima of rows and columns, taken one after the other over whole slices, use
the processor's vectors; a maximum is exact, so that nothing is rounded otherwise (benchmarks/convolutions.py).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch._jit_internal import boolean_dispatched as _DISPATCHED  # noqa: N812 - a constant: PyTorch's functions of two kinds
from torch.autograd import forward_ad
from torch.nn import functional as F  # noqa: N812 - its usual name

_LEAST: Final = 1 << 13  # values, from which on slices are quicker,
_LEAST_BACKWARD: Final = 1 << 16  # and with the way back
_LARGEST: Final = 3  # the side of windows: of larger ones there are few


@contextmanager
def quick_pooling() -> Iterator[None]:
    """Within it `torch.nn.functional.max_pool2d`, which modules call too, is computed by slices where these are quicker."""
    before = F.max_pool2d
    own = before in _DISPATCHED  # what others put there may mean something else
    if not own or getattr(before, "by_slices", False):
        yield
        return
    quick = F.max_pool2d = _quickest(before)
    try:
        yield
    finally:
        if F.max_pool2d is quick:
            F.max_pool2d = before


@functools.cache  # one function, whoever asks: a compiled model is compiled anew for each
def _quickest(own: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch's own function, and slices in its place where they come to the same sooner."""

    @functools.wraps(own)
    def max_pool2d(
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        size = _square(kernel_size)
        step = size if stride is None else _square(stride)
        others = _square(padding) == 0 and _square(dilation) == 1 and not ceil_mode and not return_indices
        if others and size and step and _by_slices(input, size, step):
            return _MaxPool.apply(input, size, step)
        return own(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)

    max_pool2d.by_slices = True  # type: ignore[attr-defined]
    _DISPATCHED[max_pool2d] = _DISPATCHED[own]  # what torch.jit.script makes of it
    return max_pool2d


def _square(given: Any) -> int | None:
    """The number that holds for both sides; None for two that differ, none, or what PyTorch refuses."""
    if isinstance(given, (tuple, list)) and 0 < len(given) <= 2 and all(part == given[0] for part in given):
        given = given[0]
    return given if type(given) is int else None


def _by_slices(x: Tensor, size: int, step: int) -> bool:
    if type(x) is not Tensor or _rewritten():
        return False
    if x.dim() != 4 or x.dtype is not torch.float32:
        return False
    if x.device.type != "cpu" or x.layout is not torch.strided:
        return False
    if not 1 < size <= _LARGEST or step < 1 or min(x.shape[2:]) < size:
        return False
    backward = x.requires_grad and torch.is_grad_enabled()
    if backward and step < size:  # where windows overlap, gradients are sums in another order
        return False
    return x.is_contiguous() and x.numel() >= (_LEAST_BACKWARD if backward else _LEAST)


def _rewritten() -> bool:
    """Whether others make something of what is called here: torch.func, forward mode, a compiler, a tracer."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
    )


class _MaxPool(torch.autograd.Function):
    """Maxima over columns, then over rows: of equal values the first in reading order gets the gradient, as in PyTorch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, step: int) -> Tensor:
        within_rows = _largest(_slices(x, -1, size, step))[-1]
        ctx.save_for_backward(x, within_rows)
        ctx.window = size, step
        return _largest(_slices(within_rows, -2, size, step))[-1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, within_rows = ctx.saved_tensors
        return _shared(_shared(gradient, within_rows, -2, *ctx.window), x, -1, *ctx.window), None, None


def _slices(x: Tensor, dim: int, size: int, step: int) -> list[Tensor]:
    """The first values of all windows along a dimension, the second ones, and so on."""
    windows = (x.shape[dim] - size) // step + 1
    last = step * (windows - 1) + 1
    if dim == -1:
        return [x[..., i : i + last : step] for i in range(size)]
    return [x[..., i : i + last : step, :] for i in range(size)]


def _largest(slices: list[Tensor]) -> list[Tensor]:
    """The largest so far, slice by slice."""
    return list(itertools.accumulate(slices, torch.maximum))


def _shared(gradient: Tensor, x: Tensor, dim: int, size: int, step: int) -> Tensor:
    """What of a gradient goes to each value of windows that do not overlap: all of it to the first of the largest."""
    covered = step == size and x.shape[dim] == gradient.shape[dim] * size
    # of the gradient's kind: torch.autograd.grad may bring many at once, as torch.vmap has them
    out = gradient.new_empty(x.shape) if covered else gradient.new_zeros(x.shape)
    slices = _slices(x, dim, size, step)
    before = _largest(slices[:-1])
    for i in reversed(range(1, size)):
        here = torch.ops.aten.threshold_backward(gradient, slices[i] - before[i - 1], 0.0)
        _slices(out, dim, size, step)[i].copy_(here)
        gradient = gradient - here
    _slices(out, dim, size, step)[0].copy_(gradient)
    return out
