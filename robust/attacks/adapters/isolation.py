"""What keeps other libraries' habits to themselves: global generators, warnings, progress bars."""

from __future__ import annotations

import contextlib
import io
import random
import warnings
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def private_randomness(seed: int) -> Iterator[None]:
    """The global generators, seeded for a library that knows no others, and put back after."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - libraries use the global one
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        try:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.default_generator.manual_seed(seed)
            if devices:  # else torch would keep the seed for when CUDA is in use, after this
                torch.cuda.manual_seed_all(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Libraries print, warn and draw progress bars between ours; standard output is for the result."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield
