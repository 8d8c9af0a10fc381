"""A small model to load, loads that must be refused, and what tells that a pickle was run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torch import nn

from robust.errors import ModelError


def small() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).eval()


def refused(call: object, *words: str, error: type[Exception] = ModelError) -> None:
    with pytest.raises(error) as caught:
        call()  # type: ignore[operator]
    for word in words:
        assert word in str(caught.value), f"{word!r} not in {caught.value}"


class Bomb:
    """Makes a folder when it is unpickled the ordinary way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)
