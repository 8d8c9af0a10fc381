"""Reentrant checkpoints (Chen et al. 2016) while a model is under test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointFunction, checkpoint


@contextmanager
def differentiable_checkpoints() -> Iterator[None]:
    """Within it reentrant checkpoints recompute as the others do, which `torch.autograd.grad` can go through.

    To reentrant ones it is refused: they go backward for all parameters at once, as in training.
    """
    outermost = "apply" not in vars(CheckpointFunction)
    if outermost:
        CheckpointFunction.apply = staticmethod(_not_reentrant)
    try:
        yield
    finally:
        if outermost:
            del CheckpointFunction.apply


def _not_reentrant(function: Callable[..., Any], preserve_rng_state: bool, *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=preserve_rng_state)
