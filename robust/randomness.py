"""The global generators, from which models, data sets and other libraries draw: lent to a thread at a time, and put back."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch

_LOCK: Final = threading.RLock()


@contextmanager
def own_torch_randomness(devices: Sequence[torch.device | int] = ()) -> Iterator[None]:
    """Whatever is drawn or seeded inside leaves torch's generators of the CPU and these devices as they were.

    There is one thread in at a time: else one would draw what another has seeded. Who draws without being in, such as a
    training of the caller's in a thread beside, still comes between.
    """
    with _LOCK, torch.random.fork_rng(devices):
        yield


@contextmanager
def own_randomness(devices: Sequence[torch.device | int] = ()) -> Iterator[None]:
    """As `own_torch_randomness`, for the generators of numpy and random too."""
    with own_torch_randomness(devices):
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - others' calls use it
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def reseed(seed: int, *, cuda: bool) -> None:
    """As torch.manual_seed for the CPU and, if told, all GPUs, and numpy's and random's.

    That one keeps a call and its stack for each kind of device that is not in use yet, for when it is.
    """
    torch.default_generator.manual_seed(seed)
    if cuda:
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
