"""What keeps other libraries' habits to themselves: global generators, warnings, progress bars."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

import torch

from robust.randomness import own_randomness, reseed


@contextlib.contextmanager
def private_randomness(seed: int) -> Iterator[None]:
    """The global generators, seeded for a library that knows no others, and put back after."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with own_randomness(devices):
        reseed(seed, cuda=bool(devices))
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Libraries print, warn and draw progress bars between ours; standard output is for the result."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield
