"""Data by name, and whatever a caller hands over, as checked Samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from robust.default_device import books_on_the_cpu
from robust.errors import DataError, InputError
from robust.randomness import own_torch_randomness
from robust.sources.builtin_data import DATASETS
from robust.sources.datasets import read_hub_data, read_torchvision
from robust.sources.npz import read_npz, to_tensor
from robust.sources.preprocess import Preprocessing
from robust.sources.readers import read_folder, read_parquet
from robust.sources.samples import UNIT, Bounds, Samples, check_samples
from robust.sources.shards import read_shards
from robust.sources.spool import Spool

__all__ = ["DATASETS", "Samples", "as_samples", "check_samples", "load_data"]

FORMS = "FILE.npz, FILE.parquet, folder:DIR, builtin:NAME[:SPLIT], FILE.tar, torchvision:NAME[:SPLIT], hf:NAME[:SPLIT]"


@books_on_the_cpu
def as_samples(data: object, *, bounds: Bounds = UNIT, num_classes: int | None = None) -> Samples:
    """Whatever holds labelled samples, read and checked; what outgrows 16 MiB lies in a temporary file.

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


@books_on_the_cpu
def load_data(
    spec: str, *, bounds: Bounds = UNIT, fit: Preprocessing | None = None, groups: str | None = None
) -> Samples:
    """Samples from a data SPEC.

    Args:
        spec: FILE.npz, FILE.parquet, FILE.tar or NAME-{000..009}.tar (webdataset), folder:DIR,
            builtin:NAME[:SPLIT], torchvision:NAME[:SPLIT] or hf:NAME[:SPLIT].
        bounds: lowest and highest valid value of float inputs.
        fit: resize and crop images that are stored encoded, as a model declares it.
        groups: column (Parquet, hf), array (npz) or suffix (tar) of each sample's group; by default "group",
            in an npz "groups", where there is one.

    Raises:
        InputError: a SPEC of unknown form, or groups of one that has no columns.
        DataError: a file that is missing, damaged, hostile or holds something else, or samples that fail
            a check.
        MissingDependencyError: a package that the form needs cannot be imported.
    """
    return check_samples(_read(spec, fit, groups), bounds)


def check_groups(spec: str, groups: str | None) -> None:
    """Refuse groups, as of `load_data`, of a SPEC whose form has none.

    Raises:
        InputError: it has none.
    """
    scheme = spec.partition(":")[0]
    if scheme in ("builtin", "folder", "torchvision") and groups is not None:
        raise InputError(
            f"groups: {scheme}: data have no column {groups!r}; use FILE.parquet, FILE.npz, FILE.tar or hf:NAME"
        )


def data_form(spec: str) -> str:
    """What a data SPEC begins with, such as "folder", or the end of its file's name, such as ".npz".

    Raises:
        InputError: a SPEC of unknown form.
    """
    scheme, _, rest = spec.partition(":")
    if scheme in ("builtin", "torchvision", "hf"):
        return scheme
    if scheme == "folder" and rest:  # without a path it would be whatever lies where the process runs
        return scheme
    suffix = Path(spec).suffix.lower()
    if suffix in (".npz", ".parquet", ".tar"):
        return suffix
    raise InputError(
        f"data: expected one of {FORMS}, got {spec!r}; np.savez(FILE, x=x, y=y) makes an npz of anything else"
    )


def _read(spec: str, fit: Preprocessing | None = None, groups: str | None = None) -> Samples:
    check_groups(spec, groups)
    form, (_, _, rest) = data_form(spec), spec.partition(":")
    name, _, split = rest.partition(":")
    if form == "builtin":
        return DATASETS[name](split or "test")
    if form == "folder":
        return read_folder(Path(rest), fit)
    if form == "torchvision":
        return read_torchvision(name, split or "test", fit)
    if form == "hf":
        return read_hub_data(name, split or "test", fit, groups)
    if form == ".npz":
        return read_npz(Path(spec), groups)
    if form == ".parquet":
        return read_parquet(Path(spec), fit, groups)
    return read_shards(spec, fit, groups)


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
    with own_torch_randomness():
        return _spooled(_pair(batch, f"batch {i}") for i, batch in enumerate(loader))


def _from_items(dataset: Dataset[Any]) -> Samples:
    def items() -> Iterator[tuple[Tensor, Tensor]]:
        for i in range(len(dataset)):  # type: ignore[arg-type]
            x, y = _pair(dataset[i], f"item {i}")
            yield x.unsqueeze(0), y.unsqueeze(0)

    with own_torch_randomness():
        samples = _spooled(items())
    names = getattr(dataset, "classes", None)
    listed = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return replace(samples, class_names=tuple(names)) if listed and names else samples


def _spooled(pairs: Iterable[tuple[Tensor, Tensor]]) -> Samples:
    """Batches (n, ...), (n,) one after another, in the order in which they come."""
    spool, labels = Spool("x"), Spool("y")
    for x, y in pairs:
        if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
            raise DataError(
                f"x and y: expected as many inputs as labels, got x {tuple(x.shape)} and y {tuple(y.shape)}"
            )
        spool.append(x.to(torch.float32) if x.is_floating_point() else x.clone())
        labels.append(y)
    if not len(labels):
        raise DataError("data: expected at least one sample, got none")
    stored = spool.finish()
    return Samples(
        stored.rows,
        labels.finish().rows,
        torch.arange(len(stored.rows)),
        pages=stored.pages,
        x_sha256=stored.sha256,
    )


def _pair(item: object, where: str) -> tuple[Tensor, Tensor]:
    if isinstance(item, Mapping):
        keys = ", ".join(map(repr, item)) or "no keys"
        raise DataError(
            f"data {where}: expected (x, y), got a dict with {keys}; have the data set return (x, y)"
        )
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise DataError(f"data {where}: expected (x, y), got {type(item).__name__}")
    return to_tensor(f"x of {where}", item[0]), to_tensor(f"y of {where}", item[1])


def _in_order(x: Tensor, y: Tensor) -> Samples:
    return Samples(x, y, torch.arange(len(x) if x.ndim else 0))
