"""Copies of a model that compute the same by other means: what `engine` chooses among."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        self._slopes: dict[tuple[int, int], _Slope] = {}

    def forward(self, x: Tensor) -> Tensor:
        size = self._size(x)
        if size is None:
            out: Tensor = self.model(x)
            return out
        replay = self._recorded.get(size) or self._record(size)
        self.latest += 1
        rows = _Once.apply(x, self) if x.requires_grad else x
        if size > len(x):
            rows = torch.cat([rows, self._like.expand(size - len(x), *x.shape[1:])])
        return replay(rows)[: len(x)].clone()  # the next replay answers in the same memory

    def slope(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Forward and backward in one replay: gradient of the logits' sum with these weights (N, C), that sum, the logits.

        None for a batch that is not recorded.
        """
        size = self._size(x)
        if size is None:
            return None
        of = size, weights.shape[1]
        if of not in self._slopes:
            self._slopes[of] = _Slope(self.model, self._samples(size), of[1], self._pool)
        self.latest += 1
        return self._slopes[of](x, weights)

    def _size(self, x: Tensor) -> int | None:
        """The recorded size that these rows go into."""
        if not len(x) or x.shape[1:] != self._like.shape[1:]:
            return None
        return next((size for size in _SIZES if size >= len(x)), None)

    def _samples(self, size: int) -> Tensor:
        return self._like.repeat(size, *([1] * (self._like.dim() - 1)))

    def _record(self, size: int) -> Callable[[Tensor], Tensor]:
        sample = self._samples(size).requires_grad_()
        with _recording(sample):
            recorded: Any = torch.cuda.make_graphed_callables(self.model.__call__, (sample,), pool=self._pool)
        self._recorded[size] = recorded
        return self._recorded[size]


class _Slope:
    """A recorded pass forward and backward of `size` rows; see `Graphed.slope`.

    Args:
        model: frozen, on the device.
        x: what to record with, (size, ...).
        classes: logits that the model gives.
        pool: memory that recordings share.
    """

    def __init__(self, model: nn.Module, x: Tensor, classes: int, pool: Any) -> None:
        self._model, self._x = model, x.requires_grad_()
        self._weights = x.new_zeros(len(x), classes)
        self._graph = torch.cuda.CUDAGraph()
        with _recording(x):
            warm = torch.cuda.Stream()
            warm.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(warm):
                for _ in range(2):
                    self._pass()
            torch.cuda.current_stream().wait_stream(warm)
            with torch.cuda.graph(self._graph, pool=pool):
                self._out = self._pass()

    def __call__(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = len(x)
        with torch.no_grad():
            self._x[:rows].copy_(x)
            self._weights[:rows].copy_(weights)
            self._graph.replay()
            gradient, value, logits = (part[:rows].clone() for part in self._out)
        return gradient, value, logits

    def _pass(self) -> tuple[Tensor, Tensor, Tensor]:
        logits = self._model(self._x).float()
        value = (logits * self._weights).sum(1)
        (gradient,) = torch.autograd.grad(value.sum(), self._x)
        return gradient, value.detach(), logits.detach()


@contextmanager
def _recording(like: Tensor) -> Iterator[None]:
    """To record passes with gradients on the device of this tensor."""
    with torch.cuda.device(like.device), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of streams that differ: recording takes one of its own
        yield


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
