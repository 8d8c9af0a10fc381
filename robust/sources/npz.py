"""Samples from npz files: headers before arrays, arrays in parts, nothing pickled."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robust.errors import DataError
from robust.files import why
from robust.sources.limits import DATA_BYTES, ENTRY_BYTES, check_size, require_file
from robust.sources.samples import Samples, coded
from robust.sources.spool import Spool, Stored

_CHANNELS: Final = (1, 3)
_PART: Final = 1 << 22
Array = npt.NDArray[Any]


def read_npz(path: Path, group: str | None = None) -> Samples:
    """Arrays x and y of an npz file, and groups where it has them; x becomes (N, C, H, W).

    Groups, whole numbers or text, are in the array `group`, which must then be there; None: in groups, if any.

    Sizes are read from the headers and checked before anything is allocated; x is read in parts.

    Raises:
        DataError: no such file, truncated or no npz, pickled objects in it, x or y missing, over the size
            limit, or a layout that cannot be told.
    """
    require_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {Path(name).stem: name for name in archive.namelist() if name.endswith(".npy")}
            wanted = ["x", "y", *([group] if group else [])]
            if not set(wanted) <= set(entries):
                found = ", ".join(sorted(entries)) or "none"
                raise DataError(f"data {path}: expected arrays {' and '.join(wanted)}, found {found}")
            x = _images(archive, entries["x"], path)
            y = _whole(archive, entries["y"], path)
            groups, names = _groups(archive, entries.get(group or "groups"), path)
    except zipfile.BadZipFile as e:
        raise DataError(_no_npz(path, e)) from e
    except (zlib.error, EOFError, NotImplementedError, RuntimeError) as e:
        raise DataError(f"data {path}: truncated or damaged npz ({e}); write or download it again") from e
    except OSError as e:
        raise DataError(f"data {path}: cannot be read ({why(e)})") from e
    return Samples(
        x.rows, y, torch.arange(len(x.rows)), str(path), groups=groups, group_names=names,
        pages=x.pages, x_sha256=x.sha256,
    )  # fmt: skip


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @property
    def bytes(self) -> int:
        size = self.dtype.itemsize
        for side in self.shape:
            size *= side
        return size


def _no_npz(path: Path, error: Exception) -> str:
    with path.open("rb") as stream:
        single = stream.read(6) == b"\x93NUMPY"
    if single:
        return f"data {path}: a single array, not an npz; save with np.savez(file, x=x, y=y)"
    return f"data {path}: truncated or damaged npz, or none ({error}); write or download it again"


def _header(stream: IO[bytes], name: str, path: Path) -> _Header:
    """What an array's header declares: plain numbers only, of a size that is allowed."""
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read[version](stream)
    except Exception as e:  # numpy's parser of headers raises the tokenizer's errors, among others
        raise DataError(f"data {path}: array {name} is truncated or damaged, or no plain array ({e})") from e
    if dtype.hasobject:
        raise DataError(
            f"data {path}: not an npz of plain numeric arrays ({name} holds objects); pickled objects are "
            "never loaded"
        )
    if any(side < 0 for side in shape) or dtype.itemsize == 0 or dtype.fields is not None:
        raise DataError(f"data {path}: array {name} has no plain numbers (shape {shape}, type {dtype})")
    header = _Header(tuple(int(side) for side in shape), dtype, bool(fortran))
    check_size(f"data {path}: array {name}", header.bytes, DATA_BYTES, DataError)
    return header


def _whole(archive: zipfile.ZipFile, name: str, path: Path) -> Tensor:
    """A small array of numbers at once."""
    return to_tensor(Path(name).stem, _array(archive, name, path))


def _groups(
    archive: zipfile.ZipFile, name: str | None, path: Path
) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """An array of group labels, as numbers with their names."""
    if name is None:
        return None, None
    try:
        labels = _array(archive, name, path).tolist()
    except ValueError as e:  # code points that no text has
        raise DataError(f"data {path}: array {name} holds no text ({e})") from e
    return coded(labels if isinstance(labels, list) else [labels], f"data {path}: array {name}")


def _array(archive: zipfile.ZipFile, name: str, path: Path) -> Array:
    """A small array at once."""
    with archive.open(name) as stream:
        header = _header(stream, name, path)
        check_size(f"data {path}: array {name}", header.bytes, ENTRY_BYTES, DataError)
        flat = np.frombuffer(_exactly(stream, header.bytes, name, path), header.dtype)
        _end(stream, name, path)
    return flat.reshape(header.shape, order="F" if header.fortran else "C")


def _images(archive: zipfile.ZipFile, name: str, path: Path) -> Stored:
    """The array x, part by part."""
    with archive.open(name) as stream:
        header = _header(stream, name, path)
        if len(header.shape) not in (2, 3, 4) or header.fortran:
            if header.bytes > ENTRY_BYTES:
                raise DataError(
                    f"data {path}: expected x as (N, D), (N, H, W), (N, H, W, C) or (N, C, H, W) in C order, got "
                    f"{header.shape}{' in Fortran order' if header.fortran else ''}"
                )
            flat = np.frombuffer(_exactly(stream, header.bytes, name, path), header.dtype)
            _end(stream, name, path)
            whole = to_tensor("x", flat.reshape(header.shape, order="F" if header.fortran else "C"))
            return _spooled([channels_first(whole, path)], path)
        rows, row = header.shape[0], header.bytes // max(1, header.shape[0])
        spool = Spool(f"data {path}", header.bytes)
        axis = _channel_axis(header.shape, path)
        for start in range(0, rows, step := max(1, _PART // max(1, row))):
            count = min(step, rows - start)
            flat = np.frombuffer(_exactly(stream, count * row, name, path), header.dtype)
            part = to_tensor("x", flat.reshape(count, *header.shape[1:]))
            spool.append(_narrow(_moved(part, axis)))
        _end(stream, name, path)
    return _finished(spool, header.shape, header.dtype)


def _spooled(parts: list[Tensor], path: Path) -> Stored:
    spool = Spool(f"data {path}")
    for part in parts:
        spool.append(_narrow(part))
    return spool.finish() if len(spool) else Stored(parts[0], "")


def _finished(spool: Spool, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Stored:
    if len(spool):
        return spool.finish()
    return Stored(to_tensor("x", np.empty(shape, dtype)), "")  # no samples: the checks say so


def _narrow(x: Tensor) -> Tensor:
    """Floats as float32, as they are to be used; other types stay for the checks to judge."""
    return x.to(torch.float32) if x.is_floating_point() else x


def _exactly(stream: IO[bytes], count: int, name: str, path: Path) -> bytearray:
    """So many bytes; allocated as they arrive, whatever a header declares."""
    found = bytearray()
    while len(found) < count:
        part = stream.read(min(_PART, count - len(found)))
        if not part:
            raise DataError(
                f"data {path}: truncated or damaged npz (array {name} ends after {len(found)} of {count} "
                "bytes); write or download it again"
            )
        found += part
    return found


def _end(stream: IO[bytes], name: str, path: Path) -> None:
    """Read to the end, where the archive's checksum is compared."""
    if stream.read(1):
        raise DataError(f"data {path}: damaged npz (array {name} is longer than it declares)")


def to_tensor(name: str, array: Any) -> Tensor:
    """A tensor on the CPU from a tensor or anything numpy takes, sharing memory where that is safe.

    Raises:
        DataError: ragged, sparse, a PIL image, or of a type that torch has not (strings, objects).
    """
    from PIL import Image

    if isinstance(array, Image.Image):
        raise DataError(f"{name}: expected a tensor, got a PIL image; add a transform such as ToTensor()")
    if isinstance(array, Tensor):
        if array.layout != torch.strided or array.is_meta:
            kind = (
                "on the device 'meta'; give one with values"
                if array.is_meta
                else "sparse; give its to_dense()"
            )
            raise DataError(f"{name}: expected a dense tensor or array, got a tensor that is {kind}")
        return array.detach().cpu()
    try:
        plain = np.asarray(array)
        if plain.size and isinstance(plain.flat[0], str | bytes):
            raise TypeError("text; np.unique(y, return_inverse=True)[1] numbers names from 0 in their order")
        native = np.ascontiguousarray(plain, dtype=plain.dtype.newbyteorder("=")).reshape(plain.shape)
        return torch.from_numpy(native if native.flags.writeable else native.copy())
    except (TypeError, ValueError) as e:
        raise DataError(
            f"{name}: expected a numeric tensor or array, got {type(array).__name__} ({e})"
        ) from e


def channels_first(x: Tensor, path: Path) -> Tensor:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) -> (N, C, H, W); C is the axis of 1 or 3. Rows of features, (N, D), stay."""
    return _moved(x, _channel_axis(tuple(x.shape), path))


def _channel_axis(shape: tuple[int, ...], path: Path) -> int | None:
    """1, as for features, or 3; None for gray images without such an axis."""
    if len(shape) == 3:
        return None
    if len(shape) == 2:
        return 1
    first, last = (shape[1] in _CHANNELS, shape[3] in _CHANNELS) if len(shape) == 4 else (False, False)
    if first == last:
        why = "axes 1 and 3 could both be channels" if first else "no axis of 1 or 3 channels"
        raise DataError(
            f"data {path}: expected x as (N, D), (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3, "
            f"got {shape}: {why}; pass the tensors themselves, or save x in a clear layout"
        )
    return 1 if first else 3


def _moved(x: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return x.unsqueeze(1)
    return x if axis == 1 else x.permute(0, 3, 1, 2).contiguous()
