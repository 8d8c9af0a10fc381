"""Copies of a model that compute the same by other means: what `engine` chooses among."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from robust.passes import slope_of
from robust.recording import recording, recording_aside, with_room
from robust.target import Target

# Rows that graphs are recorded for; more run as they are: there a launch costs little beside the work.
_SIZES: Final = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# More are filled up to a multiple of this: cuDNN prepares for each size that it has not seen, at length.
_BEYOND: Final = 64
_INSIDE: Final = 1e-6  # of the box


def folded(model: nn.Module) -> nn.Module:
    """With batch norms folded into the convolutions before them. Fails on what torch.fx cannot trace."""
    # As it is imported, torch 2.13 warns of what it itself uses: an error where warnings are errors.
    with _quietly():
        from torch.fx.experimental.optimization import fuse
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

    A small batch's passes cost hundreds of launches and little else; a replay is one each way. Batches are filled up
    to the next recorded size, and larger ones to sizes that come again. All share their memory: a pass goes backward
    once, and before the next one begins. Recording fails on models that ask the device for values on their way.

    Args:
        model: in eval mode, frozen, on the device; each row's answer is its own.
        like: a sample that inputs are like, (1, ...).
        backward: passes go backward too.
    """

    def __init__(self, model: nn.Module, like: Tensor, *, backward: bool = True) -> None:
        super().__init__()
        self.model = model
        self._goes_back = backward
        self.latest = 0  # number of the pass that may go backward
        self._like = torch.zeros_like(like[:1])
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._recorded: dict[int, _Pass | None] = {}

    def forward(self, x: Tensor) -> Tensor:
        recorded = self._pass_of(x)
        if recorded is None:
            out: Tensor = self.model(self._filled(x))
            return out[: len(x)]
        if x.requires_grad and torch.is_grad_enabled():
            through: Tensor = _Once.apply(x, self, recorded)
            return through
        return recorded.forward(x)

    def slope(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Gradient of the logits' sum with these weights (N, C), that sum, and the logits, without autograd's way there.

        None for a batch that is not recorded.
        """
        recorded = self._pass_of(x)
        if recorded is None:
            return None
        with torch.no_grad():
            logits = recorded.forward(x)
            return *recorded.backward(weights), logits

    def _filled(self, x: Tensor) -> Tensor:
        """With rows of zeros up to a size that comes again."""
        missing = -len(x) % _BEYOND if x.shape[1:] == self._like.shape[1:] else 0
        return torch.cat([x, self._like.expand(missing, *x.shape[1:])]) if missing else x

    def _pass_of(self, x: Tensor) -> _Pass | None:
        """The one that these rows go into; a pass with it begins."""
        if not len(x) or x.shape[1:] != self._like.shape[1:]:
            return None
        size = next((size for size in _SIZES if size >= len(x)), None)
        if size is None:
            return None
        if size not in self._recorded:
            self._recorded[size] = self._record(size)
        self.latest += 1
        return self._recorded[size]

    def _record(self, size: int) -> _Pass | None:
        """A pass of so many rows; None where memory does not suffice to record one."""
        rows = self._like.repeat(size, *([1] * (self._like.dim() - 1)))
        try:
            return with_room(lambda: _Pass(self.model, rows, self._pool, backward=self._goes_back))
        except torch.OutOfMemoryError:
            return None


class _Pass:
    """A recorded pass of `size` rows: forward, and backward from there.

    Args:
        model: frozen, on the device.
        x: what to record with, (size, ...).
        pool: memory that recordings share: the next replay of any answers in the same place.
        backward: whether it goes backward.
    """

    def __init__(self, model: nn.Module, x: Tensor, pool: Any, *, backward: bool) -> None:
        self._x = x.requires_grad_(backward)
        self._there, self._back = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.device(x.device), torch.set_grad_enabled(backward), _quietly(), recording_aside():
            logits = model(x).float()  # what is chosen and loaded at a first pass cannot be recorded
            self._weights = torch.zeros_like(logits)
            if backward:
                slope_of(logits, self._weights, x)
            with recording(self._there, pool):
                logits = model(x).float()
            if backward:
                with recording(self._back, pool):
                    self._answer = slope_of(logits, self._weights, x)
        self._logits = logits.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (N, C)."""
        with torch.no_grad():
            self._x[: len(x)].copy_(x)
            self._there.replay()
            return self._logits[: len(x)].clone()

    def backward(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Of the rows that went forward just now the gradient of the logits' sum with these weights, (N, C), and that sum."""
        with torch.no_grad():
            self._weights[: len(weights)].copy_(weights)
            self._back.replay()
            gradient, value = (part[: len(weights)].clone() for part in self._answer)
        return gradient, value


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's warnings, as of streams that differ where recording takes one of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Once(torch.autograd.Function):
    """A recorded pass, which goes backward once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, of: Graphed, recorded: _Pass) -> Tensor:
        ctx.of, ctx.number, ctx.recorded = of, of.latest, recorded
        return recorded.forward(x)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None, None]:
        if ctx.of.latest != ctx.number:
            raise RuntimeError("a recorded pass went backward twice, or after another pass began")
        ctx.of.latest += 1
        return ctx.recorded.backward(gradient[0])[0], None, None


def around(target: Target, module: nn.Module) -> Target:
    """A twin of a target around a module that contains what the target has before its model."""
    twin = target.twin(module)
    twin.normalize = twin._mean = twin._std = twin.size = None
    return twin
