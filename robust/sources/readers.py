"""Samples from files: npz, Parquet, and folders of images."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from robust.errors import DataError
from robust.sources.samples import Samples

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
_CHANNELS = (1, 3)
_GRAY, _DEEP = ("1", "L", "LA"), ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
Array = npt.NDArray[Any]


def to_tensor(name: str, array: Any) -> Tensor:
    """A tensor on the CPU from a tensor or anything numpy takes, sharing memory where that is safe.

    Raises:
        DataError: ragged, a PIL image, or of a type that torch has not (strings, objects).
    """
    if isinstance(array, Image.Image):
        raise DataError(f"{name}: expected a tensor, got a PIL image; add a transform such as ToTensor()")
    if isinstance(array, Tensor):
        return array.detach().cpu()
    try:
        plain = np.asarray(array)
        native = np.ascontiguousarray(plain, dtype=plain.dtype.newbyteorder("=")).reshape(plain.shape)
        return torch.from_numpy(native if native.flags.writeable else native.copy())
    except (TypeError, ValueError) as e:
        raise DataError(
            f"{name}: expected a numeric tensor or array, got {type(array).__name__} ({e})"
        ) from e


def read_npz(path: Path) -> Samples:
    """Arrays x and y of an npz file; x becomes (N, C, H, W).

    Raises:
        DataError: no such file, truncated or no npz, pickled objects in it, x or y missing, or a
            layout that cannot be told.
    """
    _require_file(path)
    try:
        with path.open("rb") as stream:  # np.load leaves a path that it cannot read open
            x, y = _npz_arrays(np.load(stream, allow_pickle=False), path)
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError) as e:
        raise DataError(f"data {path}: truncated or damaged npz ({e}); write or download it again") from e
    except ValueError as e:
        raise DataError(
            f"data {path}: not an npz of plain numeric arrays ({e}); pickled objects are never loaded"
        ) from e
    except OSError as e:
        raise DataError(f"data {path}: cannot be read ({e})") from e
    return _samples(_channels_first(to_tensor("x", x), path), to_tensor("y", y), str(path))


def read_parquet(path: Path) -> Samples:
    """Columns image (encoded bytes, or a struct with a field bytes) and label of a Parquet file.

    Raises:
        DataError: no such file, no Parquet, a column missing or of another type, an image that cannot
            be decoded or differs in size.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _require_file(path)
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            missing = [name for name in ("image", "label") if name not in names]
            if missing:
                raise DataError(
                    f"data {path}: expected columns image and label, {' and '.join(missing)} missing; "
                    f"the columns are {', '.join(names) or 'none'}"
                )
            table = file.read(columns=["image", "label"])
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"data {path}: truncated, damaged or no Parquet file ({e})") from e
    label = table.column("label")
    if not pa.types.is_integer(label.type) or label.null_count:
        raise DataError(
            f"data {path}: expected column label of integers without nulls, got {label.type} "
            f"with {label.null_count} nulls"
        )
    images = [_cell_bytes(cell, row, path) for row, cell in enumerate(table.column("image").to_pylist())]
    decoded = ((f"row {row} of {path}", BytesIO(raw)) for row, raw in enumerate(images))
    return _samples(_decode(decoded, path), to_tensor("label", label.to_numpy()), str(path))


def read_folder(path: Path) -> Samples:
    """A folder with a sub-folder of images per class; the sorted folder names are labels 0, 1, ...

    Raises:
        DataError: no such folder, no class folders, a class without images, an image that cannot be
            decoded or differs in size.
    """
    if not path.is_dir():
        raise DataError(f"data folder {path}: no such folder")
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
    x = _decode(((str(file), file) for file in files), path)
    names = tuple(folder.name for folder in classes)
    y = torch.tensor(labels, dtype=torch.int64)
    return Samples(x, y, torch.arange(len(y)), f"folder:{path}", names)


def _npz_arrays(archive: object, path: Path) -> tuple[Array, Array]:
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"data {path}: a single array, not an npz; save with np.savez(file, x=x, y=y)")
    with archive:
        if not {"x", "y"} <= set(archive.files):
            found = ", ".join(sorted(archive.files)) or "none"
            raise DataError(f"data {path}: expected arrays x and y, found {found}")
        return archive["x"], archive["y"]


def _samples(x: Tensor, y: Tensor, spec: str) -> Samples:
    return Samples(x, y, torch.arange(len(x)), spec)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"data {path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")


def _channels_first(x: Tensor, path: Path) -> Tensor:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) -> (N, C, H, W); C is the axis of 1 or 3."""
    if x.ndim == 3:
        return x.unsqueeze(1)
    first, last = (x.shape[1] in _CHANNELS, x.shape[3] in _CHANNELS) if x.ndim == 4 else (False, False)
    if first == last:
        why = "axes 1 and 3 could both be channels" if first else "no axis of 1 or 3 channels"
        raise DataError(
            f"data {path}: expected x as (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3, "
            f"got {tuple(x.shape)}: {why}; pass the tensors themselves, or save x in a clear layout"
        )
    return x if first else x.permute(0, 3, 1, 2).contiguous()


def _cell_bytes(cell: Any, row: int, path: Path) -> bytes:
    raw = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(raw, bytes):
        raise DataError(
            f"data {path}: row {row}: expected column image to hold encoded image bytes, "
            f"got {type(raw).__name__}"
        )
    return raw


def _decode(images: Iterable[tuple[str, Path | BytesIO]], path: Path) -> Tensor:
    """Named image files -> (N, 1, H, W) uint8, or (N, 3, H, W) if any of them has colour."""
    arrays: list[Array] = []
    for name, source in images:
        array = _decode_one(name, source)
        if arrays and array.shape[:2] != arrays[0].shape[:2]:
            (h, w), (h0, w0) = array.shape[:2], arrays[0].shape[:2]
            raise DataError(
                f"image {name}: expected all images of one size, got {w}x{h} after {w0}x{h0}; "
                "resize them first"
            )
        arrays.append(array)
    if not arrays:
        raise DataError(f"data {path}: expected at least one sample, got none")
    channels = max(array.shape[2] for array in arrays)
    stacked = np.stack([np.broadcast_to(array, (*array.shape[:2], channels)) for array in arrays])
    return torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)))


def _decode_one(name: str, source: Path | BytesIO) -> Array:
    """One image -> (H, W, 1) or (H, W, 3) uint8; transparency is dropped."""
    try:
        with Image.open(source) as image:
            if image.mode in _DEEP:
                raise DataError(f"image {name}: expected 8 bits a channel, got mode {image.mode}; convert it")
            if image.mode in _GRAY:
                return np.asarray(image.convert("L"))[:, :, None]
            # Palettes with transparency convert to RGB by way of RGBA only.
            return np.asarray((image.convert("RGBA") if image.mode == "P" else image).convert("RGB"))
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise DataError(f"image {name}: cannot be decoded ({e})") from e
