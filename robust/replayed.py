"""Functions of many small operations, which a GPU does in one go once they are recorded."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Final

import torch
from torch import Tensor

from robust.recording import recording, recording_aside, with_room

_SIZES: Final = (16, 64, 256)  # rows that are recorded for; fewer are filled up
_MOST: Final = 1 << 20  # values of a tensor, beyond which an operation costs more than its launch
_KEPT: Final = 32  # recordings of a thread, the latest used


class Replayed:
    """A function of rows that on a GPU, where they are few and small, is run as one recorded CUDA graph.

    On a CPU, within another recording, with gradients or where recording fails it is the function itself.

    Args:
        function: of tensors, (N, ...) each, which it leaves as they are, and after them of numbers, each in place of
            which it also takes one a row, (N,); what it gives for a row depends on that row alone. Gives one tensor, (N, ...). It asks
            the device for no values. Options are given by name, and are hashable.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        functools.update_wrapper(self, function)

    def __call__(self, *values: Any, **options: Hashable) -> Tensor:
        recorded = self._recorded(values, options) if values[0].is_cuda else None
        return self._function(*values, **options) if recorded is None else recorded(values)

    def _recorded(self, values: tuple[Any, ...], options: dict[str, Hashable]) -> _Recording | None:
        first = values[0]
        if _THREAD.recording or torch.cuda.is_current_stream_capturing():
            return None
        rows = len(first)
        size = next((size for size in _SIZES if size >= rows > 0), None)
        if size is None or size * first[0].numel() > _MOST or _needs_gradients(values):
            return None
        kinds = tuple(
            (value.shape[1:], value.dtype) if isinstance(value, Tensor) else None for value in values
        )
        stream = torch.cuda.current_stream(first.device)
        where = first.device, stream.cuda_stream
        key = self._function, size, kinds, tuple(sorted(options.items())), where
        kept = _THREAD.kept
        if key not in kept:
            kept[key] = _record(self._function, size, values, options, where)
        kept.move_to_end(key)
        if len(kept) > _KEPT:
            kept.popitem(last=False)
        found: _Recording | None = kept[key]
        return found


class _Thread(threading.local):
    """What a thread has recorded: graphs answer in memory of their own, one at a time."""

    def __init__(self) -> None:
        self.kept: OrderedDict[Hashable, _Recording | None] = OrderedDict()
        self.pools: dict[Hashable, Any] = {}  # by device and stream
        self.recording = False


_THREAD: Final = _Thread()


class _Recording:
    """A function recorded with `size` rows; called with as many or fewer."""

    def __init__(self, function: Callable[..., Tensor], given: list[Tensor], pool: Any) -> None:
        self._given, self._graph = given, torch.cuda.CUDAGraph()
        with recording_aside():
            function(*given)  # what is loaded at a first call cannot be recorded
            with recording(self._graph, pool, alone=True):
                self._answer = function(*given)

    def __call__(self, values: tuple[Any, ...]) -> Tensor:
        rows = len(values[0])
        with torch.no_grad():
            for kept, value in zip(self._given, values, strict=True):
                if isinstance(value, Tensor):
                    kept[:rows].copy_(value)
                else:
                    kept.fill_(value)
            self._graph.replay()
            return self._answer[:rows].clone()


def _record(
    function: Callable[..., Tensor],
    size: int,
    values: tuple[Any, ...],
    options: dict[str, Hashable],
    where: Hashable,
) -> _Recording | None:
    """The recording; None where that fails, for good."""
    first = values[0]

    def record() -> _Recording:
        given = [_alike(value, first, size) for value in values]
        pool = _THREAD.pools.setdefault(where, torch.cuda.graph_pool_handle())
        return _Recording(functools.partial(function, **options), given, pool)

    _THREAD.recording = True
    try:
        with torch.cuda.device(first.device), torch.no_grad():
            return with_room(record)
    except Exception:
        _THREAD.pools.pop(where, None)  # a pool ends with the last of its recordings
        return None
    finally:
        _THREAD.recording = False


def _alike(value: Tensor | float, first: Tensor, size: int) -> Tensor:
    """Room for `size` rows of a value, filled with the first of its own; a number becomes one a row."""
    if not isinstance(value, Tensor):
        return first.new_full((size,), value)
    return value[:1].expand(size, *value.shape[1:]).clone(memory_format=torch.contiguous_format)


def _needs_gradients(values: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in values)
