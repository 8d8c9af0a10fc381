"""Input gradients of strided convolutions on a CPU, several times faster where the input has few channels.

oneDNN's backward pass of a strided convolution is slow for the one or three channels of a first layer, where
it can take most of an attack's time. The same sum is a plain convolution of the output's gradient with
stride x stride times as many channels, one group for each phase of the input grid, followed by a pixel shuffle
(Shi et al. 2016, arXiv 1609.05158, section 3, read backwards). The forward pass stays what it was, bit for bit.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name


class Phases:
    """A kernel's phases, a plain kernel each, made once for as long as the weights stay what they are."""

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self._of: tuple[Tensor, object, Tensor] | None = None

    def __deepcopy__(self, _: object) -> Phases:
        return Phases(self.stride)  # a copied model gets weights of its own

    def __call__(self, weight: Tensor) -> Tensor:
        state = weight._version, weight.dtype, weight.device
        if self._of is None or self._of[0] is not weight or self._of[1] != state:
            self._of = weight, state, self._made(weight.detach())
        return self._of[2]

    def _made(self, weight: Tensor) -> Tensor:
        """For every place in the stride x stride grid, the rows and columns of the kernel that it meets."""
        out_channels, in_channels, kernel, _ = weight.shape
        reach = -(-kernel // self.stride)
        missing = reach * self.stride - kernel
        phases = F.pad(weight, (0, missing, 0, missing)).view(
            out_channels, in_channels, reach, self.stride, reach, self.stride
        )
        return phases.permute(1, 3, 5, 0, 2, 4).flip(4, 5).reshape(-1, out_channels, reach, reach)


class StridedConv(torch.autograd.Function):
    """A strided convolution, (N, C, H, W) -> (N, K, H', W'), whose input gradient is found by phases."""

    generate_vmap_rule = True  # models may use torch.func: vmap over samples, a gradient within forward

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, phases: Tensor, stride: int, padding: int
    ) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, _, phases, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(phases)
        ctx.side = x.shape[2:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (phases,) = ctx.saved_tensors
        found = _input_gradient(gradient, phases, ctx.stride, ctx.padding, ctx.side)
        return found, None, None, None, None, None


# torch asks for it at every call, which takes as long as a small convolution where it has to be worked out.
StridedConv.forward.__signature__ = inspect.signature(StridedConv.forward)  # type: ignore[attr-defined]


def _input_gradient(gradient: Tensor, phases: Tensor, stride: int, padding: int, side: torch.Size) -> Tensor:
    """Row s*q + r of the padded input is reached from the outputs q, q - 1, ... through every s-th row of the
    kernel from r on: for each r a plain convolution.
    """
    padded = _woven(F.conv2d(gradient, phases, padding=phases.shape[2] - 1), stride)
    below, right = (max(0, padding + want - have) for want, have in zip(side, padded.shape[2:], strict=True))
    if below or right:  # rows that no output looks at
        padded = F.pad(padded, (0, right, 0, below))
    # Whole rows again: the activation below takes four times as long over a window of a larger tensor.
    return padded.narrow(2, padding, side[0]).narrow(3, padding, side[1]).contiguous()


def _woven(phases: Tensor, stride: int) -> Tensor:
    """As a pixel shuffle, at half its time: (N, C stride^2, H, W) -> (N, C, stride H, stride W)."""
    n, _, height, width = phases.shape
    rows = phases.view(n, -1, stride, stride, height, width).unbind(2)
    lines = torch.stack([torch.stack(row.unbind(2), -1) for row in rows], 3)
    return lines.view(n, -1, stride * height, stride * width)
