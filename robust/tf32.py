"""TensorFloat-32, which rounds float32 products on a GPU to ten bits: judging does without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def without_tf32() -> Callable[[], None]:
    """Have a GPU compute in float32, whatever was asked of it and in which of torch's ways; returns what sets all back."""
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    flags = [(backend, _readable(backend, "allow_tf32")) for backend in (cudnn, matmul)]
    finer: list[Any] = [
        getattr(cudnn, "conv", None),
        getattr(cudnn, "rnn", None),
        matmul,
    ]  # of newer versions
    precisions = [(part, part.fp32_precision) for part in finer if hasattr(part, "fp32_precision")]
    overall = _readable(torch, "get_float32_matmul_precision")
    if overall is not None:
        torch.set_float32_matmul_precision("highest")
    for backend, _ in flags:
        backend.allow_tf32 = False
    for part, _ in precisions:
        part.fp32_precision = "ieee"  # "none" would inherit what is set for all

    def set_back() -> None:
        for backend, allowed in flags:
            if allowed is not None:
                backend.allow_tf32 = allowed
        if overall is not None:
            torch.set_float32_matmul_precision(overall)
        for part, precision in precisions:
            part.fp32_precision = precision

    return set_back


def _readable(place: Any, name: str) -> Any:
    """A setting, or what a getter gives; None where one of the other ways was used to set it, for then torch refuses."""
    try:
        value = getattr(place, name)
        return value() if callable(value) else value
    except RuntimeError:
        return None
