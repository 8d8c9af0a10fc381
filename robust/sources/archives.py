"""Samples from archives: npz files and webdataset shards. Nothing is unpacked to disk by name."""

from __future__ import annotations

import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robust.errors import DataError
from robust.sources.images import IMAGE_SUFFIXES, Encoded, decode
from robust.sources.limits import DATA_BYTES, ENTRY_BYTES, check_size
from robust.sources.preprocess import Preprocessing
from robust.sources.samples import Samples, coded
from robust.sources.spool import Spool, Stored

_CHANNELS: Final = (1, 3)
_PART: Final = 1 << 22
_BRACES: Final = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SHARDS: Final = 100_000
_WHOLE: Final = re.compile(r"-?[0-9]{1,18}")
_EXTENDED_HEADER: Final = 1 << 20  # bytes; a name or a time takes a few hundred
_LABEL_BYTES: Final = 64
Array = npt.NDArray[Any]


# -- npz ----------------------------------------------------------------------------------------------


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
        raise DataError(f"data {path}: cannot be read ({e})") from e
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
        DataError: ragged, a PIL image, or of a type that torch has not (strings, objects).
    """
    from PIL import Image

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


def require_file(path: Path) -> None:
    """Raise DataError unless this is a file."""
    if not path.is_file():
        raise DataError(f"data {path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")


# -- webdataset ---------------------------------------------------------------------------------------


def shards(spec: str) -> list[Path]:
    """The files that FILE.tar or NAME-{000..009}.tar stands for.

    Raises:
        DataError: too many.
    """
    match = _BRACES.search(spec)
    if match is None:
        return [Path(spec)]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < _SHARDS:
        raise DataError(f"data {spec}: expected a range of 1 to {_SHARDS} shards, got {match[0]}")
    width = len(match[1])
    return [Path(f"{spec[: match.start()]}{i:0{width}}{spec[match.end() :]}") for i in range(first, last + 1)]


def read_shards(spec: str, fit: Preprocessing | None = None, group: str | None = None) -> Samples:
    """Samples of webdataset shards: for each key an image (KEY.png, .jpg...), its KEY.cls, maybe KEY.group.

    Members of one key stand side by side. Labels are whole numbers as text, groups any text. Ids count the
    samples in the order of the shards. With `group`, groups are in KEY.`group`, which all must have.

    Raises:
        DataError: no such file, no tar, members with paths that leave the archive, links, a sample
            without image or label, sizes over the limit, or an image that cannot be decoded.
    """
    files = shards(spec)
    for file in files:
        require_file(file)
    labels = _Labels(group or "group")
    stored = decode(_members(files, labels), f"data {spec}", fit)
    if (labels.groups or group) and len(labels.groups) != len(labels.y):
        raise DataError(
            f"data {spec}: {len(labels.groups)} of {len(labels.y)} samples have a group (KEY.{labels.group}); "
            "expected all"
        )
    groups, names = _numbered(labels.groups, spec) if labels.groups else (None, None)
    y = torch.tensor(labels.y, dtype=torch.int64)
    return Samples(
        stored.rows, y, torch.arange(len(y)), spec, groups=groups, group_names=names,
        pages=stored.pages, x_sha256=stored.sha256,
    )  # fmt: skip


def _numbered(texts: list[str], spec: str) -> tuple[Tensor, tuple[str, ...] | None]:
    whole = all(_WHOLE.fullmatch(text) for text in texts)
    return coded([int(text) for text in texts] if whole else texts, f"data {spec}: group")


@dataclass
class _Labels:
    """Labels and groups, in the order in which the images were handed out; groups are in members KEY.`group`."""

    group: str
    y: list[int] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)


class _Member(tarfile.TarInfo):
    """A header that refuses to read extended headers of absurd size into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        extended = (
            tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )  # fmt: skip
        if self.type in extended and self.size > _EXTENDED_HEADER:
            raise tarfile.HeaderError(f"extended header of {self.size} bytes")
        found: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return found


def _members(files: list[Path], labels: _Labels) -> Iterator[Encoded]:
    """The images of all shards; their labels are noted on the way."""
    for file in files:
        try:
            with tarfile.open(file, "r:", tarinfo=_Member) as archive:
                yield from _samples(archive, file, labels)
        except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, RecursionError) as e:
            if isinstance(e, DataError):
                raise
            raise DataError(f"data {file}: truncated, damaged or no tar archive ({e})") from e


def _samples(archive: tarfile.TarFile, file: Path, labels: _Labels) -> Iterator[Encoded]:
    key, parts = "", dict[str, bytes]()
    for member in archive:
        if member.isdir():
            continue
        name = _safe(member, file)
        folder, _, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        found = f"{folder}/{stem}"
        if found != key and parts:
            yield _sample(key, parts, file, labels)
            parts = {}
        key = found
        small = suffix in ("cls", labels.group)
        if f".{suffix.lower()}" in IMAGE_SUFFIXES or small:
            most = _LABEL_BYTES if small else ENTRY_BYTES
            check_size(f"data {file}: member {name}", member.size, most, DataError)
            content = archive.extractfile(member)
            raw = b"" if content is None else content.read()
            if len(raw) != member.size:
                raise DataError(f"data {file}: truncated in member {name}")
            parts[suffix if small else suffix.lower()] = raw
        archive.members.clear()  # type: ignore[attr-defined] # else it remembers every header of the archive
    if parts:
        yield _sample(key, parts, file, labels)


def _safe(member: tarfile.TarInfo, file: Path) -> str:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise DataError(f"data {file}: member {member.name!r} leads out of the archive; refused")
    if not member.isreg():
        raise DataError(f"data {file}: member {member.name!r} is a link or a device, not a file; refused")
    return member.name


def _sample(key: str, parts: dict[str, bytes], file: Path, labels: _Labels) -> Encoded:
    images = [suffix for suffix in parts if suffix not in ("cls", labels.group)]
    if len(images) != 1 or "cls" not in parts:
        found = ", ".join(sorted(parts))
        raise DataError(
            f"data {file}: sample {key.lstrip('/')}: expected one image and a label (KEY.png and KEY.cls), found {found}"
        )
    labels.y.append(_number(parts["cls"], key, file))
    if labels.group in parts:
        labels.groups.append(parts[labels.group].decode("utf-8", "replace").strip())
    return Encoded(f"{key.lstrip('/')} of {file}", parts[images[0]])


def _number(raw: bytes, key: str, file: Path) -> int:
    text = raw.decode("ascii", "replace").strip()
    if not _WHOLE.fullmatch(text):
        raise DataError(
            f"data {file}: sample {key.lstrip('/')}: expected a whole number as label, got {text[:40]!r}"
        )
    return int(text)
