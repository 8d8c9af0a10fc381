"""Data by name, and whatever a caller hands over, as checked Samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from robust.errors import DataError, InputError, UnsupportedError
from robust.sources.builtin_data import DATASETS
from robust.sources.readers import read_folder, read_npz, read_parquet, to_tensor
from robust.sources.samples import UNIT, Bounds, Samples, check_samples

__all__ = ["DATASETS", "Samples", "as_samples", "check_samples", "load_data"]

FORMS = "FILE.npz, FILE.parquet, folder:DIR, builtin:NAME[:SPLIT]"


def as_samples(data: object, *, bounds: Bounds = UNIT, num_classes: int | None = None) -> Samples:
    """Whatever holds labelled samples, read into memory (on the CPU) and checked.

    Args:
        data: Samples, an (x, y) pair of tensors or arrays, a map-style Dataset of (x, y) items, a
            DataLoader of (x, y) batches (ids count in the order in which it yields them), or a data SPEC.
        bounds: lowest and highest valid value of a float x; uint8 means value / 255 and needs (0, 1).
        num_classes: number of classes, if known: labels must lie below it.

    Returns:
        Samples with x (N, ...) uint8 or float32 and y (N,) int64. Nothing handed in is modified, and
        torch's global random state stays where it was.

    Raises:
        DataError: nothing of the above, or samples that fail a check (see check_samples).
        InputError: a SPEC of unknown form.
    """
    if isinstance(data, str):
        return check_samples(_read(data), bounds, num_classes)
    return check_samples(_collect(data), bounds, num_classes)


def load_data(spec: str, *, bounds: Bounds = UNIT) -> Samples:
    """Samples from a data SPEC: FILE.npz, FILE.parquet, folder:DIR or builtin:NAME[:SPLIT].

    Raises:
        InputError: a SPEC of unknown form.
        DataError: a file that is missing, damaged or holds something else, or samples that fail a check.
    """
    return as_samples(spec, bounds=bounds)


def _read(spec: str) -> Samples:
    scheme, _, rest = spec.partition(":")
    if scheme == "builtin":
        name, _, split = rest.partition(":")
        return DATASETS[name](split or "test")
    if scheme == "folder":
        return read_folder(Path(rest))
    if scheme in ("torchvision", "hf"):
        raise UnsupportedError(f"data {spec!r}: {scheme}: is not offered in this version; use {FORMS}")
    reader = {".npz": read_npz, ".parquet": read_parquet}.get(Path(spec).suffix.lower())
    if reader is None:
        raise InputError(f"data: expected one of {FORMS}, got {spec!r}")
    return reader(Path(spec))


def _collect(data: object) -> Samples:
    if isinstance(data, Samples):
        return data
    if isinstance(data, DataLoader):
        return _from_batches(data)
    if isinstance(data, (tuple, list)) and len(data) == 2:
        return _in_order(to_tensor("x", data[0]), to_tensor("y", data[1]))
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset) and hasattr(data, "__len__"):
        return _from_items(data)
    raise DataError(
        "data: expected (x, y), Samples, a map-style Dataset, a DataLoader or a spec "
        f"({FORMS}), got {type(data).__name__}; wrap an iterable data set in a DataLoader"
    )


def _from_batches(loader: DataLoader[Any]) -> Samples:
    # Iterating a DataLoader draws from torch's global generator, which is the caller's.
    with torch.random.fork_rng(devices=[]):
        pairs = [_pair(batch, f"batch {i}") for i, batch in enumerate(loader)]
    return _in_order(
        _join(torch.cat, [x for x, _ in pairs], "x"), _join(torch.cat, [y for _, y in pairs], "y")
    )


def _from_items(dataset: Dataset[Any]) -> Samples:
    with torch.random.fork_rng(devices=[]):
        pairs = [_pair(dataset[i], f"item {i}") for i in range(len(dataset))]  # type: ignore[arg-type]
    return _in_order(
        _join(torch.stack, [x for x, _ in pairs], "x"), _join(torch.stack, [y for _, y in pairs], "y")
    )


def _pair(item: object, where: str) -> tuple[Tensor, Tensor]:
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise DataError(f"data {where}: expected (x, y), got {type(item).__name__}")
    return to_tensor(f"x of {where}", item[0]), to_tensor(f"y of {where}", item[1])


def _join(join: Any, parts: list[Tensor], name: str) -> Tensor:
    if not parts:
        raise DataError("data: expected at least one sample, got none")
    if len(dtypes := {str(part.dtype) for part in parts}) > 1:
        raise DataError(f"{name}: expected one type in every sample, got {', '.join(sorted(dtypes))}")
    try:
        joined: Tensor = join(parts)
    except RuntimeError as e:
        raise DataError(f"{name}: expected the same shape in every sample ({e}); resize them first") from e
    return joined


def _in_order(x: Tensor, y: Tensor) -> Samples:
    return Samples(x, y, torch.arange(len(x) if x.ndim else 0))
