"""Convolutions on a CPU, each computed as is quickest for its shape and the rows at hand.

oneDNN rearranges a convolution's weights at every call, which for few rows takes longer than the convolution, and its
input gradient of few channels is slow. PyTorch's own (im2col and a matrix product; Chellapilla et al. 2006) does
neither, and is slow where a row's patches take much memory. What is chosen is a rule and no measurement, so that two
runs come to the same digits (benchmarks/convolutions.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F  # noqa: N812 - its usual name

from robust.strided import Phases, StridedConv

# What the patches of all rows cost, up to which PyTorch's own are quicker, and for the input gradient of images:
_FEW: Final = 300_000
_FEW_OF_IMAGES: Final = 1_100_000
_FEW_OF_GREY: Final = 10_000_000  # of one channel it is always quicker, but for the memory
_COLOURS: Final = 4  # channels that an image has at most
# A patch's value costs 1, or this where a stride has it read by itself; and in the product 1 for so many outputs.
_SCATTERED: Final = 5.0
_MULTIPLIED: Final = 25
_SEARCHING: ContextVar[bool] = ContextVar("searching", default=False)


@contextmanager
def searching() -> Iterator[None]:
    """Within it forward passes may come to other last digits than the model's own; else only input gradients do."""
    before = _SEARCHING.set(True)
    try:
        yield
    finally:
        _SEARCHING.reset(before)


def quicken(model: nn.Module) -> list[nn.Conv2d]:
    """Have the model's eligible convolutions computed the quickest way.

    Returns:
        the modules that were changed, for `restore`.
    """
    changed = [module for module in model.modules() if type(module) is nn.Conv2d and _eligible(module)]
    for conv in changed:
        conv._conv_forward = _Quickest(conv)  # type: ignore[assignment, method-assign]
    return changed


def restore(changed: list[nn.Conv2d]) -> None:
    """Take back what `quicken` did."""
    for conv in changed:
        conv.__dict__.pop("_conv_forward", None)


def _eligible(module: nn.Conv2d) -> bool:
    return (
        "_conv_forward" not in vars(module)
        and module.groups == 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.stride[0] == module.stride[1]
        and module.padding[0] == module.padding[1]
        and module.kernel_size[0] == module.kernel_size[1] >= module.stride[0]
    )


def _elsewhere() -> bool:
    """Whether it is others that say how to compute: no oneDNN, a precision of theirs, torch.func, forward mode."""
    return (
        not torch.backends.mkldnn.enabled
        or torch.is_autocast_enabled("cpu")
        or forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


class _Quickest:
    """A module's `_conv_forward`."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self._kernel, self._stride, self._padding = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
        self._of_image = conv.in_channels <= _COLOURS
        self._phases = Phases(self._stride) if self._stride > 1 and self._of_image else None
        self._most = _FEW_OF_IMAGES if self._of_image else _FEW
        if conv.in_channels == 1:
            self._most = _FEW_OF_GREY
        cost = (_SCATTERED if self._stride > 1 else 1) + conv.out_channels / _MULTIPLIED
        self._patch = conv.in_channels * self._kernel**2 * cost  # what one costs

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stride, padding = self._stride, self._padding
        if weight.requires_grad or x.dim() != 4 or not len(x) or _elsewhere():
            return F.conv2d(x, weight, bias, stride, padding)
        backward = x.requires_grad and torch.is_grad_enabled()
        if x.dtype is torch.float32 and x.is_contiguous() and weight.is_contiguous():
            patches = self._patches(x)
            if patches <= _FEW and _SEARCHING.get():
                kernel = [self._kernel, self._kernel]
                own: Tensor = torch.ops.aten.thnn_conv2d.default(
                    x, weight, kernel, bias, [stride, stride], [padding, padding]
                )
                return own
            if backward and patches <= self._most:
                out: Tensor = _Folded.apply(x, weight, bias, stride, padding)
                return out
        if backward and self._phases is not None:
            phased: Tensor = StridedConv.apply(x, weight, bias, self._phases(weight), stride, padding)
            return phased
        return F.conv2d(x, weight, bias, stride, padding)

    def _patches(self, x: Tensor) -> float:
        """What im2col and the product cost for all rows."""
        rows, _, *side = x.shape
        for length in side:
            rows *= (length + 2 * self._padding - self._kernel) // self._stride + 1
        return rows * self._patch


class _Folded(torch.autograd.Function):
    """A convolution as it is, its input gradient by a matrix product and col2im."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.stride, ctx.padding, ctx.side = stride, padding, x.shape[2:]
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        columns = torch.matmul(weight.flatten(1).t(), gradient.reshape(*gradient.shape[:2], -1))
        kernel = weight.shape[2:]
        found = F.fold(columns, ctx.side, kernel, stride=ctx.stride, padding=ctx.padding)
        return found, None, None, None, None
