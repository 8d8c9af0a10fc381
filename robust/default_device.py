"""torch's default device, if a caller set one: it is for the caller's code. Ours keeps its books on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Final, ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")
_CALLERS: Final[ContextVar[torch.device | None]] = ContextVar("callers", default=None)


def books_on_the_cpu(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Have tensors for which `function` names no device on the CPU, but for the models that it asks (`callers_device`)."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if (given := torch.get_default_device()).type == "cpu":
            return function(*args, **kwargs)
        token = _CALLERS.set(given)
        try:
            with torch.device("cpu"):
                return function(*args, **kwargs)
        finally:
            _CALLERS.reset(token)

    return call


def callers_device() -> AbstractContextManager[object]:
    """To be in for a call of a model: tensors for which it names no device are where the caller wants them."""
    device = _CALLERS.get()
    return nullcontext() if device is None else torch.device(device)
