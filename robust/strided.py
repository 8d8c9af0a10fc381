"""Input gradients of strided convolutions on a CPU, several times faster where the input has few channels.

oneDNN's backward pass of a strided convolution is slow for the one or three channels of a first layer, where
it can take most of an attack's time. The same sum is a plain convolution of the output's gradient with
stride x stride times as many channels, one group for each phase of the input grid, followed by a pixel shuffle
(Shi et al. 2016, arXiv 1609.05158, section 3, read backwards). The forward pass stays what it was, bit for bit.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

_FEW_CHANNELS: Final = 16  # measured: with 64, oneDNN's own backward pass wins


def quicken(model: nn.Module) -> list[nn.Conv2d]:
    """Give the model's eligible convolutions the faster gradient.

    Returns:
        the modules that were changed, for `restore`.
    """
    changed = [module for module in model.modules() if type(module) is nn.Conv2d and _eligible(module)]
    for conv in changed:
        stride, padding = conv.stride[0], conv.padding[0]
        conv._conv_forward = partial(_forward, stride=stride, padding=padding)  # type: ignore[arg-type, method-assign]
    return changed


def restore(changed: list[nn.Conv2d]) -> None:
    """Take back what `quicken` did."""
    for conv in changed:
        conv.__dict__.pop("_conv_forward", None)


def _eligible(module: nn.Conv2d) -> bool:
    return (
        "_conv_forward" not in vars(module)
        and module.in_channels <= _FEW_CHANNELS
        and module.groups == 1
        and module.stride[0] == module.stride[1] > 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.padding[0] == module.padding[1]
        and module.kernel_size[0] == module.kernel_size[1] >= module.stride[0]
    )


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int, padding: int) -> Tensor:
    if x.dim() != 4 or weight.requires_grad or not (x.requires_grad and torch.is_grad_enabled()):
        return F.conv2d(x, weight, bias, stride, padding)
    out: Tensor = _StridedConv.apply(x, weight, bias, stride, padding)
    return out


class _StridedConv(torch.autograd.Function):
    generate_vmap_rule = True  # models may use torch.func: vmap over samples, a gradient within forward

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(weight)
        ctx.side = x.shape[2:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        return _input_gradient(gradient, weight, ctx.stride, ctx.padding, ctx.side), None, None, None, None


def _input_gradient(gradient: Tensor, weight: Tensor, stride: int, padding: int, side: torch.Size) -> Tensor:
    """Row s*q + r of the padded input is reached from the outputs q, q - 1, ... through every s-th row of the
    kernel from r on: for each r a plain convolution.
    """
    out_channels, in_channels, kernel, _ = weight.shape
    reach = -(-kernel // stride)
    missing = reach * stride - kernel
    phases = F.pad(weight, (0, missing, 0, missing)).view(
        out_channels, in_channels, reach, stride, reach, stride
    )
    phases = phases.permute(1, 3, 5, 0, 2, 4).flip(4, 5).reshape(-1, out_channels, reach, reach)
    padded = F.pixel_shuffle(F.conv2d(gradient, phases, padding=reach - 1), stride)
    below, right = (max(0, padding + want - have) for want, have in zip(side, padded.shape[2:], strict=True))
    if below or right:  # rows that no output looks at
        padded = F.pad(padded, (0, right, 0, below))
    return padded[..., padding : padding + side[0], padding : padding + side[1]]
