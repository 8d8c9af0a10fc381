"""Which device a text means, and what has to be done to one."""

from __future__ import annotations

import functools

import torch

from robust.errors import InputError


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that is meant by "auto" (CUDA where there is one), or any torch device.

    Raises:
        InputError: another text, or CUDA where there is none.
    """
    if device == "auto":
        return (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device: expected 'auto', 'cpu' or 'cuda[:N]', got {device!r}") from error
    if resolved.type not in ("cpu", "cuda"):
        raise InputError(
            f"device: expected 'auto', 'cpu' or 'cuda[:N]', got {device!r}; others are not supported"
        )
    if resolved.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(
                f"device: {device!r} asked for, but this torch sees no CUDA device; use 'cpu' or 'auto'"
            )
        if str(resolved) == "cuda":
            resolved = torch.device("cuda", torch.cuda.current_device())
    return resolved


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@functools.cache
def wake_autograd(device: torch.device) -> None:
    """Have autograd's thread for a GPU begin with a plain operation: after cuBLAS torch warns that there was no context."""
    with torch.enable_grad():
        x = torch.zeros(1, device=device, requires_grad=True)
        torch.autograd.grad(x.square().sum(), x)
