"""Content hashes of tensors, the same on every device."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

_CHUNK = 1 << 22  # values; bounds the memory that hashing a large or remote tensor takes


class Hash(Protocol):
    """What hashlib's objects offer."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take in more bytes."""


def add_tensor(digest: Hash, name: str, tensor: Tensor) -> None:
    """Feed name, dtype, shape and bytes of a tensor into `digest`."""
    digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    flat = tensor.detach().reshape(-1)
    for start in range(0, len(flat), _CHUNK):
        digest.update(flat[start : start + _CHUNK].cpu().contiguous().view(torch.uint8).numpy().data)
