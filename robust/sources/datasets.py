"""Data sets of other libraries that are on this machine already: torchvision and Hugging Face."""

from __future__ import annotations

import difflib
import inspect
import os
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import torch

from robust.errors import DataError, MissingDependencyError, UnknownNameError
from robust.sources.images import Encoded, decode, to_array
from robust.sources.preprocess import Preprocessing
from robust.sources.samples import Samples, coded
from robust.sources.spool import Spool

ROOT_VARIABLE: Final = "ROBUST_DATA_ROOT"
_IMAGE_COLUMNS: Final = ("image", "img")
_LABEL_COLUMNS: Final = ("label", "labels", "fine_label")


def read_torchvision(name: str, split: str, fit: Preprocessing | None = None) -> Samples:
    """A data set of torchvision.datasets under the folder that ROBUST_DATA_ROOT names (default: data).

    Nothing is downloaded. Some (CIFAR) are pickles, which torchvision loads after it has compared their
    checksums with those in its own code.

    Raises:
        MissingDependencyError: torchvision cannot be imported.
        UnknownNameError: no such data set.
        DataError: not in the folder, no such split, or no image classification.
    """
    library = _optional("torchvision", "torchvision.datasets", "torchvision")
    names = [n for n in library.__all__ if inspect.isclass(getattr(library, n, None))]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {len(names)} others"
        raise UnknownNameError(f"unknown torchvision data set {name!r}; {hint}")
    made, root = getattr(library, name), Path(os.environ.get(ROOT_VARIABLE, "data"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = made(**_arguments(made, root, split, name))
    except DataError:
        raise
    except Exception as e:  # missing files, unknown splits: each data set has words of its own
        raise DataError(
            f"data torchvision:{name}:{split}: cannot be read from {root} ({type(e).__name__}: "
            f"{str(e).strip().partition(chr(10))[0]}); nothing is downloaded: put it there, or set "
            f"{ROOT_VARIABLE} to its folder"
        ) from e
    return _from_pairs(dataset, f"torchvision:{name}:{split}", getattr(dataset, "classes", None), fit)


def read_hub_data(
    name: str, split: str, fit: Preprocessing | None = None, group: str | None = None
) -> Samples:
    """A data set of the Hugging Face library `datasets`: a folder of save_to_disk, or one in its cache.

    Nothing is downloaded. Columns image (or img) and label, class names with them. Groups, integers or text,
    are in the column `group`, which must then be there; None: in a column group, if any.

    Raises:
        MissingDependencyError: datasets cannot be imported.
        DataError: not on this machine, no such split, or no image classification.
    """
    library = _optional("datasets", "datasets", "hf")
    spec = f"hf:{name}:{split}"
    try:
        dataset = _local(library, name, split)
    except Exception as e:
        raise DataError(
            f"data {spec}: cannot be read ({type(e).__name__}: {str(e).strip().partition(chr(10))[0]}); nothing "
            "is downloaded: cache it first with datasets.load_dataset, or give a folder of save_to_disk: hf:./FOLDER"
        ) from e
    image = next((c for c in _IMAGE_COLUMNS if c in dataset.column_names), None)
    label = next((c for c in _LABEL_COLUMNS if c in dataset.column_names), None)
    if image is None or label is None or (group and group not in dataset.column_names):
        wanted = " and ".join(["image", "label", *([group] if group else [])])
        raise DataError(
            f"data {spec}: expected columns {wanted}, the columns are {', '.join(dataset.column_names)}"
        )
    column = group or "group"
    columns = list(dict.fromkeys([image, label, *([column] if column in dataset.column_names else [])]))
    raw = dataset.select_columns(columns).cast_column(image, library.Image(decode=False))
    numbers: dict[str, list[Any]] = {name: list(raw[name]) for name in columns[1:]}
    stored = decode(_cells(raw, image, spec), f"data {spec}", fit)
    groups, group_names = (
        coded(numbers[column], f"data {spec}: column {column}") if column in numbers else (None, None)
    )
    names = _names_of(dataset, label)
    return Samples(
        stored.rows,
        torch.tensor(_integers(numbers[label], label, spec)),
        torch.arange(len(stored.rows)),
        spec,
        names,
        groups,
        group_names or _names_of(dataset, column),
        pages=stored.pages,
        x_sha256=stored.sha256,
    )


def _names_of(dataset: Any, column: str) -> tuple[str, ...] | None:
    """Names of the numbers in a column, where it has a feature that says."""
    names = getattr(dataset.features.get(column), "names", None)
    return tuple(map(str, names)) if names else None


def _arguments(made: Any, root: Path, split: str, name: str) -> dict[str, Any]:
    """What the constructor takes: split= or train=, and never a download."""
    taken = inspect.signature(made).parameters
    arguments: dict[str, Any] = {"root": str(root)} if "root" in taken else {}
    if "download" in taken:
        arguments["download"] = False
    if "split" in taken:
        arguments["split"] = split
    elif "train" in taken:
        if split not in ("train", "test"):
            raise DataError(f"data torchvision:{name}: expected split test or train, got {split!r}")
        arguments["train"] = split == "train"
    return arguments


def _from_pairs(dataset: Any, spec: str, classes: Any, fit: Preprocessing | None) -> Samples:
    """(PIL image, label) items."""
    spool, labels = Spool(f"data {spec}"), []
    for i in range(len(dataset)):
        image, label = dataset[i][:2]
        if not hasattr(image, "convert") or not isinstance(label, int):
            raise DataError(
                f"data {spec}: expected items of an image and a class, got {type(image).__name__} and "
                f"{type(label).__name__} at {i}"
            )
        array = to_array(image, fit)
        spool.append(torch.from_numpy(array.transpose(2, 0, 1)[None].copy()))
        labels.append(label)
    stored = spool.finish()
    names = tuple(map(str, classes)) if isinstance(classes, (list, tuple)) and classes else None
    y = torch.tensor(labels, dtype=torch.int64)
    return Samples(
        stored.rows, y, torch.arange(len(y)), spec, names, pages=stored.pages, x_sha256=stored.sha256
    )


def _local(library: Any, name: str, split: str) -> Any:
    """A split of a saved folder or of the cache."""
    if (Path(name) / "dataset_dict.json").is_file():
        return library.load_from_disk(name)[split]
    if (Path(name) / "state.json").is_file():
        return library.load_from_disk(name)
    with _offline():
        return library.load_dataset(name, split=split)


class _offline:  # noqa: N801 - used like a function
    """Keep the library off the network for a while."""

    def __enter__(self) -> None:
        self._config: Any = import_module("datasets.config")
        self._hub: Any = import_module("huggingface_hub.constants")
        self._before = self._config.HF_HUB_OFFLINE, self._hub.HF_HUB_OFFLINE
        for module in (self._config, self._hub):
            setattr(module, "HF_HUB_OFFLINE", True)  # noqa: B010 - the type of a module has no such name

    def __exit__(self, *_: object) -> None:
        self._config.HF_HUB_OFFLINE, self._hub.HF_HUB_OFFLINE = self._before


def _cells(dataset: Any, column: str, spec: str) -> Iterator[Encoded]:
    for row, item in enumerate(dataset):
        cell = item[column] or {}
        if not isinstance(raw := cell.get("bytes"), bytes):
            path = Path(str(cell.get("path") or ""))
            if not path.is_file():
                raise DataError(f"data {spec}: row {row} has no image")
            yield Encoded(f"row {row} of {spec}", path)
        else:
            yield Encoded(f"row {row} of {spec}", raw)


def _integers(values: list[Any], column: str, spec: str) -> list[int]:
    odd = next((v for v in values if not isinstance(v, int) or isinstance(v, bool)), None)
    if odd is not None or not values:
        raise DataError(f"data {spec}: expected column {column} of integers, got {odd!r}")
    return values


def _optional(package: str, module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except Exception as e:  # torchvision next to a torch of another release raises RuntimeError
        advice = (
            f'"robust-harness[{extra}]"'
            if extra == "hf"
            else f"{package} in the release that fits torch {torch.__version__}"
        )
        raise MissingDependencyError(
            f"data of {package}: the package cannot be imported ({type(e).__name__}: {e}); pip install {advice}"
        ) from e
