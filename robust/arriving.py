"""Numbers on their way from a device to those who need not wait for what it does meanwhile."""

from __future__ import annotations

import torch
from torch import Tensor


class Arriving:
    """A number that a device is working out: `float` waits for it, and for nothing that was asked of the device since.

    Args:
        value: the number, ().
    """

    def __init__(self, value: Tensor) -> None:
        self._value, self._there = value, None
        if value.is_cuda:
            self._value = torch.empty((), dtype=value.dtype, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record(torch.cuda.current_stream(value.device))

    def __float__(self) -> float:
        if self._there is not None:
            self._there.synchronize()
        return float(self._value)
