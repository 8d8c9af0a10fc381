"""Pictures of random pixels and their files, and data that must be refused."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from robust.errors import DataError
from robust.sources import as_samples

RNG = np.random.default_rng(7)
GRAY = RNG.integers(0, 256, (6, 9, 8), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 9, 8, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def png(array: np.ndarray, suffix: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, suffix)
    return buffer.getvalue()


def pair(n: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.linspace(0, 1, n * 4).reshape(n, 1, 2, 2), torch.arange(n)


def refused(data: object, *words: str, **options: object) -> None:
    with pytest.raises(DataError) as caught:
        as_samples(data, **options)
    for word in words:
        assert word in str(caught.value), f"{word!r} not in {caught.value}"
