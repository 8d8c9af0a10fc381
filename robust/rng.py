"""Random numbers that depend on what they are for, never on when they are drawn.

A draw is a hash of (seed, purpose, sample id, position), computed on the sample's device: the same
number whatever the batch, the order, the shard or the number of devices, and the global generators
stay untouched. The mixer is splitmix64 (Steele, Lea & Flood 2014), the idea of counter-based streams
Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3").
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust.errors import InputError

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's >> keeps the sign."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _MIX1
    z = (z ^ _shift_right(z, 27)) * _MIX2
    return z ^ _shift_right(z, 31)


def _unsigned(value: int) -> NDArray[np.uint64]:
    return np.array(value, dtype=np.int64).view(np.uint64)


_HOST_GOLDEN, _HOST_MIX1, _HOST_MIX2 = map(_unsigned, (_GOLDEN, _MIX1, _MIX2))
_30, _27, _31 = (np.uint64(bits) for bits in (30, 27, 31))


def _host_mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`_mix` in place."""
    z ^= z >> _30
    z *= _HOST_MIX1
    z ^= z >> _27
    z *= _HOST_MIX2
    z ^= z >> _31
    return z


def _key(seed: int, purpose: Sequence[str | int]) -> int:
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def checked_seed(seed: object) -> int:
    """A seed as generators and records take it: an integer of 64 bits, below 0 as well, NumPy's too.

    Raises:
        InputError: it is anything else.
    """
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or not -(2**63) <= seed < 2**63:
        raise InputError(f"seed: expected an integer of at most 64 bits such as 0, got {seed!r}")
    return int(seed)


def content_ids(x: Tensor) -> Tensor:
    """An id for each row from its values alone, the same on every device: (N, ...) float -> (N,) int64."""
    bits = (x.flatten(1).to(torch.float32) + 0.0).view(torch.int32).to(torch.int64)  # + 0.0: no negative zero
    place = torch.arange(1, bits.shape[1] + 1, device=x.device, dtype=torch.int64) * _GOLDEN
    return _mix(_mix(bits + place).sum(1))


class Streams:
    """One private stream per sample.

    Args:
        seed: the run's seed.
        ids: sample ids, (N,) int64; a sample keeps its stream wherever it stands in the batch.
        purpose: what the numbers are for, such as ("pgd", "start", 0). Another purpose, other numbers;
            the same purpose again, the same numbers again.
    """

    def __init__(self, seed: int, ids: Tensor, purpose: Sequence[str | int] = ()) -> None:
        self._seed, self._ids, self._purpose = seed, ids, tuple(purpose)

    @staticmethod
    def key(seed: int, purpose: Sequence[str | int]) -> int:
        """A 64-bit seed for a generator that is not ours."""
        return _key(seed, purpose)

    def child(self, *purpose: str | int) -> Streams:
        """Streams for a narrower purpose."""
        return Streams(self._seed, self._ids, (*self._purpose, *purpose))

    def _bits(self, shape: Sequence[int]) -> Tensor:
        if self._ids.device.type == "cpu":
            return self._host_bits(shape)
        rows = _mix(self._ids.to(torch.int64) * _GOLDEN + _key(self._seed, self._purpose))
        counter = torch.arange(1, math.prod(shape) + 1, device=rows.device, dtype=torch.int64) * _GOLDEN
        return _mix(rows[:, None] + counter[None, :]).view(len(rows), *shape)

    def _host_bits(self, shape: Sequence[int]) -> Tensor:
        """The same by NumPy, in a third of the time: small operations cost less there, and it shifts without sign."""
        ids = self._ids.to(torch.int64).numpy().view(np.uint64)
        rows = _host_mix(ids * _HOST_GOLDEN + _unsigned(_key(self._seed, self._purpose)))
        counter = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * _HOST_GOLDEN
        bits = _host_mix(rows[:, None] + counter)
        return torch.from_numpy(bits.view(np.int64)).view(len(rows), *shape)

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Float32 in [low, high): -> (N, *shape)."""
        unit = _shift_right(self._bits(shape), 40).to(torch.float32).mul_(2.0**-24)
        return unit.mul_(high - low).add_(low)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal, float32 (Box & Muller 1958): -> (N, *shape)."""
        count = math.prod(shape)
        bits = self._bits((-(-count // 2),))  # two numbers of each, for the time that they take
        radius = (_shift_right(bits, 40).to(torch.float32) + 1).mul_(2.0**-24).log_().mul_(-2).sqrt_()
        angle = (bits & 0xFFFFFF).to(torch.float32).mul_(2 * math.pi * 2.0**-24)
        both = torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], 1)
        return both[:, :count].reshape(len(both), *shape)

    def integers(self, shape: Sequence[int], low: int, high: int) -> Tensor:
        """int64 in [low, high): -> (N, *shape)."""
        span = high - low
        return low + ((_shift_right(self._bits(shape), 32) * span) >> 32)

    def permutation(self, size: int) -> Tensor:
        """A permutation of range(size) per sample: -> (N, size) int64."""
        return self._bits((size,)).argsort(1)
