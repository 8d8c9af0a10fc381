"""Copies of a model that compute the same by other means: what `engine` chooses among."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from robust.target import Target

# Rows that graphs are recorded for; more run as they are: there a launch costs little beside the work.
_SIZES: Final = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_INSIDE: Final = 1e-6  # of the box


def folded(model: nn.Module) -> nn.Module:
    """With batch norms folded into the convolutions before them. Fails on what torch.fx cannot trace."""
    out: nn.Module = fuse(model)
    return out


def channels_last(model: nn.Module) -> nn.Module:
    """With convolutions that keep channels innermost in memory."""
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


class Cast(nn.Module):
    """A copy of a model in another floating-point type, for inputs as before."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = copy.deepcopy(model).to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x.to(self.dtype))
        return out


class Inward(nn.Module):
    """A model at the nearest point inside the box's faces, with the gradient there for the point itself."""

    def __init__(self, model: nn.Module, bounds: tuple[float, float]) -> None:
        super().__init__()
        self.model, self.bounds = model, bounds

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            shift = off_faces(x, self.bounds) - x
        out: Tensor = self.model(x + shift)
        return out


def off_faces(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The nearest point a millionth of the box inside it."""
    low, high = bounds
    return x.clamp(low + _INSIDE * (high - low), high - _INSIDE * (high - low))


class Graphed(nn.Module):
    """A frozen model replayed as recorded CUDA graphs, forward and backward, for batches of up to 256.

    A small batch's passes cost hundreds of launches and little else; a replay is one. Batches are filled up to the
    next recorded size. All share their memory: a pass goes backward once, and before the next one begins. Recording
    fails on models that ask the device for values on their way.

    Args:
        model: in eval mode, frozen, on the device.
        like: a sample that inputs are like, (1, ...).
    """

    def __init__(self, model: nn.Module, like: Tensor) -> None:
        super().__init__()
        self.model = model
        self.latest = 0  # number of the pass that may go backward
        self._like = torch.zeros_like(like[:1])
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._recorded: dict[int, Callable[[Tensor], Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        size = next((size for size in _SIZES if size >= len(x)), None)
        if size is None or x.shape[1:] != self._like.shape[1:] or not len(x):
            out: Tensor = self.model(x)
            return out
        replay = self._recorded.get(size) or self._record(size)
        self.latest += 1
        filled = torch.cat([_Once.apply(x, self), self._like.expand(size - len(x), *x.shape[1:])])
        return replay(filled)[: len(x)].clone()  # the next replay answers in the same memory

    def _record(self, size: int) -> Callable[[Tensor], Tensor]:
        sample = self._like.repeat(size, *([1] * (self._like.dim() - 1))).requires_grad_()
        with torch.cuda.device(sample.device), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of streams that differ: recording takes one of its own
            recorded: Any = torch.cuda.make_graphed_callables(self.model.__call__, (sample,), pool=self._pool)
        self._recorded[size] = recorded
        return self._recorded[size]


class _Once(torch.autograd.Function):
    """The input itself; its gradient in memory of its own, once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, of: Graphed) -> Tensor:
        ctx.of, ctx.number = of, of.latest
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        if ctx.of.latest != ctx.number:
            raise RuntimeError("a recorded pass went backward twice, or after another pass began")
        ctx.of.latest += 1
        return gradient[0].clone(), None


def around(target: Target, module: nn.Module) -> Target:
    """A twin of a target around a module that contains what the target has before its model."""
    twin = target.twin(module)
    twin.normalize = twin._mean = twin._std = twin.size = None
    return twin
