"""A model's pass that fails: whether memory ran out, and what is told of the input."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import torch
from torch import Tensor, nn

from robust.errors import RobustError, origin

_NAMING: Final[ContextVar[bool]] = ContextVar("naming", default=False)
_NO_ROOM: Final = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_SHAPES: Final = re.compile(
    r"size|shape|dim|channel|height|width|element|feature|length|subscript|\bind(ex|ices)|out of (range|bounds)|\d-?D\b",
    re.IGNORECASE,
)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on whichever device: a smaller batch may do."""
    no_room = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return no_room or (isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_ROOM))


@contextmanager
def naming_failures(on: bool = True) -> Iterator[None]:
    """For the first passes: a model that fails on an input without gradients raises a ModelError which names it.

    Not for attacks (`on=False`): one that fails on some samples is an error of those, and the others go on.
    """
    before = _NAMING.set(on)
    try:
        yield
    finally:
        _NAMING.reset(before)


def named(error: Exception, x: Tensor, mean: Tensor | None, model: nn.Module) -> str | None:
    """What to say of a model that fails on x, (N, C, ...); None where the error is to be passed on as it is.

    Args:
        mean: that x was normalised with, where it was.
    """
    if torch.is_grad_enabled() or not to_be_named(error):
        return None
    return _described(error, x, mean, model)


def to_be_named(error: Exception) -> bool:
    """Whether this is one of the first passes, and the error one that another model or input may not have."""
    return _NAMING.get() and _of_the_input(error)


def _of_the_input(error: Exception) -> bool:
    """Whether another input may do: no error told already, nor one of the device."""
    lost = isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error)
    return not (lost or isinstance(error, RobustError) or out_of_memory(error) or "cuDNN error" in str(error))


def _described(error: Exception, x: Tensor, mean: Tensor | None, model: nn.Module) -> str:
    channels = x.shape[1]
    if mean is not None and mean.numel() not in (1, channels):
        return (
            f"normalize: expected one number, or one for each of the {channels} channels of the input, got "
            f"{mean.numel()}; the model fails on what comes of it"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    said = (
        lines[-1] if "in the TorchScript interpreter" in lines[0] else f"{type(error).__name__}: {lines[0]}"
    )
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()}
    if kinds - {"float32"}:
        advice = f"its parameters are {' and '.join(sorted(kinds))}, inputs are float32: give model.float()"
    elif "Expected more than 1 value per channel when training" in said:
        advice = (
            "its batch norm takes the batch's own statistics: give model.eval(), and let forward not train it"
        )
    elif (at := origin(error)) and at[1]:
        advice = f"raised in {at[0]}"
    elif complaint := _of_a_transform(model):
        advice = complaint
    elif _may_be_of_shapes(error, said):
        advice = "give data of the size that the model was made for"
    else:
        advice = f"the model raised it{f', at {at[0]}' if at else ''}: mend its forward"
    return f"model: fails on input {tuple(x.shape)} ({said}); {advice}"


def _may_be_of_shapes(error: Exception, said: str) -> bool:
    """Whether data of another size may do: an error of the kinds that tensors of wrong shapes raise, that speaks of some."""
    kinds = isinstance(error, RuntimeError | ValueError | IndexError | AssertionError)
    return (
        kinds and not isinstance(error, NotImplementedError | RecursionError) and bool(_SHAPES.search(said))
    )


def _of_a_transform(model: nn.Module) -> str | None:
    """What is odd about a transform in front of the model, or within it (`bpda.Substituted`); None for nothing."""
    complaints = (getattr(part, "complaint", None) for part in model.modules())
    return next((str(said) for said in complaints if said), None)
