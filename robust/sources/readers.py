"""Samples from Parquet files and folders of images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from robust.errors import DataError, RobustError
from robust.sources.images import IMAGE_SUFFIXES, Encoded, decode
from robust.sources.limits import DATA_BYTES, ENTRY_BYTES, check_size, require_file
from robust.sources.preprocess import Preprocessing
from robust.sources.samples import Samples, coded

_ROWS: Final = 64  # of a Parquet file, read at a time


def read_parquet(path: Path, fit: Preprocessing | None = None, group: str | None = None) -> Samples:
    """Columns image (encoded bytes, or a struct with a field bytes) and label of a Parquet file.

    Groups, integers or text, are in the column `group`, which must then be there; None: in a column group,
    if any. Class names come from the metadata that the Hugging Face library `datasets` leaves. The file is
    read a few rows at a time.

    Raises:
        DataError: no such file, no Parquet, a column missing or of another type, over the size limit, an
            image that cannot be decoded or differs in size.
    """
    import pyarrow.parquet as pq

    require_file(path)
    columns: dict[str, list[Any]] = {}
    try:
        with pq.ParquetFile(path) as file:
            names = _columns(file, path, group)
            columns = {name: [] for name in names if name != "image"}
            stored = decode(_cells(file, names, columns, path), f"data {path}", fit)
            class_names = _class_names(file.schema_arrow.metadata)
    except RobustError:
        raise
    except Exception as e:  # pyarrow's own, and those of decoding what a damaged footer says
        raise DataError(f"data {path}: truncated, damaged or no Parquet file ({e})") from e
    labels = torch.tensor(columns["label"], dtype=torch.int64)
    column = group or "group"
    groups, group_names = (
        coded(columns[column], f"data {path}: column {column}") if column in columns else (None, None)
    )
    return Samples(
        stored.rows, labels, torch.arange(len(labels)), str(path), class_names, groups, group_names,
        pages=stored.pages, x_sha256=stored.sha256,
    )  # fmt: skip


def read_folder(path: Path, fit: Preprocessing | None = None) -> Samples:
    """A folder with a sub-folder of images per class; the sorted folder names are labels 0, 1, ...

    Raises:
        DataError: no such folder, no class folders, a class without images, a link that leads out of the
            folder, an image that cannot be decoded or differs in size.
    """
    if not path.is_dir():
        raise DataError(f"data folder {path}: no such folder")
    home = path.resolve()
    classes = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise DataError(f"data folder {path}: expected a sub-folder of images per class, found none")
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(classes):
        images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not images:
            raise DataError(
                f"data folder {path}: class {folder.name!r} has no images ({', '.join(IMAGE_SUFFIXES)})"
            )
        files += images
        labels += [label] * len(images)
    stored = decode((_image(file, home) for file in files), f"data folder {path}", fit)
    names = tuple(folder.name for folder in classes)
    y = torch.tensor(labels, dtype=torch.int64)
    return Samples(
        stored.rows,
        y,
        torch.arange(len(y)),
        f"folder:{path}",
        names,
        pages=stored.pages,
        x_sha256=stored.sha256,
    )


def _image(file: Path, home: Path) -> Encoded:
    if not file.resolve().is_relative_to(home):
        raise DataError(f"image {file}: a link to {file.resolve()}, outside of {home}; refused")
    check_size(f"image {file}", file.stat().st_size, ENTRY_BYTES, DataError)
    return Encoded(str(file), file)


def _columns(file: Any, path: Path, group: str | None) -> list[str]:
    """The columns to read, after their types and the declared sizes are checked."""
    import pyarrow as pa

    schema = file.schema_arrow
    wanted = ["image", "label", *([group] if group else [])]
    if missing := [name for name in wanted if name not in schema.names]:
        raise DataError(
            f"data {path}: expected columns {' and '.join(wanted)}, {' and '.join(missing)} missing; "
            f"the columns are {', '.join(schema.names) or 'none'}"
        )
    if not pa.types.is_integer(schema.field("label").type):
        raise DataError(f"data {path}: expected column label of integers, got {schema.field('label').type}")
    column = group or "group"
    grouped = column in schema.names and _names_groups(schema.field(column).type)
    if group and not grouped:
        raise DataError(
            f"data {path}: expected column {group} of integers or text, got {schema.field(group).type}"
        )
    sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
    for size in (sum(max(0, size) for size in sizes), -min(sizes, default=0)):
        check_size(f"data {path}", size, DATA_BYTES, DataError)
    return list(dict.fromkeys(["image", "label", *([column] if grouped else [])]))


def _names_groups(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _cells(file: Any, names: list[str], columns: dict[str, list[Any]], path: Path) -> Iterator[Encoded]:
    """The images, row by row; integers and text go to their columns."""
    row = 0
    for batch in file.iter_batches(batch_size=_ROWS, columns=names):
        for name, numbers in columns.items():
            column = batch.column(name)
            if column.null_count:
                raise DataError(
                    f"data {path}: expected column {name} without nulls, got {column.type} "
                    f"with {column.null_count} nulls"
                )
            numbers += column.to_pylist()
        for cell in batch.column("image"):
            yield Encoded(f"row {row} of {path}", _cell_bytes(cell.as_py(), row, path))
            row += 1


def _cell_bytes(cell: Any, row: int, path: Path) -> bytes:
    raw = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(raw, bytes):
        raise DataError(
            f"data {path}: row {row}: expected column image to hold encoded image bytes, "
            f"got {type(raw).__name__}"
        )
    return raw


def _class_names(metadata: dict[bytes, bytes] | None) -> tuple[str, ...] | None:
    """Names of the labels among the metadata, where there are any that can be read."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None
