"""The global generators, from which models, data sets and other libraries draw: lent to a thread at a time, and put back."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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


class States:
    """The global generators' states now: torch's of the CPU and, if that is a GPU, the device, numpy's and random's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._torch, self._cuda = torch.get_rng_state(), self._of_device()
        self._python, self._numpy = random.getstate(), np.random.get_state()  # noqa: NPY002

    def _of_device(self) -> torch.Tensor | None:
        return torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None

    def moved(self) -> bool:
        """Whether somebody has drawn or seeded since."""
        now = States(self._device)
        same = torch.equal(now._torch, self._torch) and now._python == self._python
        if self._cuda is not None and now._cuda is not None:
            same = same and torch.equal(now._cuda, self._cuda)
        return not (same and all(map(np.array_equal, now._numpy, self._numpy)))

    def restore(self) -> None:
        """Have them as they were."""
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002


@dataclass
class _Spared:
    states: States
    owed: bool = False  # by somebody who ended earlier


_OPEN: Final[list[_Spared]] = []  # in the order in which they began


@contextmanager
def spared(device: torch.device, drawn: Callable[[], bool]) -> Iterator[None]:
    """The generators come back as they were at the start if, at the end, somebody is said to have drawn from them.

    Not otherwise: a thread beside may have, for its own ends. Of several that are open at once, in threads, whoever ends last
    puts back what the first found.
    """
    with _LOCK:
        mine = _Spared(States(device))
        _OPEN.append(mine)
    try:
        yield
    finally:
        with _LOCK:
            later = _OPEN[_OPEN.index(mine) + 1 :]
            _OPEN.remove(mine)
            if drawn() or mine.owed:
                if later:
                    later[0].states, later[0].owed = mine.states, True
                else:
                    mine.states.restore()


def reseed(seed: int, *, cuda: bool) -> None:
    """As torch.manual_seed for the CPU and, if told, all GPUs, and numpy's and random's.

    That one keeps a call and its stack for each kind of device that is not in use yet, for when it is.
    """
    torch.default_generator.manual_seed(seed)
    if cuda:
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
