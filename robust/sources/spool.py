"""Rows that arrive one part at a time: hashed as they come, and on disk once they outgrow memory."""

from __future__ import annotations

import hashlib
import math
import mmap
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Final

import torch
from torch import Tensor

from robust.errors import DataError
from robust.files import why
from robust.sources.limits import DATA_BYTES, check_size

IN_MEMORY: Final = 1 << 24  # bytes that a set of samples may hold in memory: 16 MiB
_PARTS: Final = 256
_PART: Final = 1 << 22  # bytes handled at a time


class Pages:
    """A file mapped into memory, whose pages can be given back after use."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """The content; writing to it does not reach the file."""
        return torch.frombuffer(self._map, dtype=dtype, count=math.prod(shape)).reshape(shape)

    def release(self) -> None:
        """Let the system take back the memory of what was read; it is read again when it is asked for."""
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Stored:
    """What a Spool took in.

    Args:
        rows: (N, ...), in memory or mapped from an unnamed temporary file.
        sha256: of the rows' bytes.
        pages: of the file; None for rows in memory.
    """

    rows: Tensor
    sha256: str
    pages: Pages | None = None


class Spool:
    """Takes rows of one shape and type; holds them in memory, or in a temporary file once they outgrow it.

    The file has no name: it is gone when the last reference to its rows is, however the program ends. It
    lies where the variable TMPDIR says.

    Args:
        name: of what is taken in, for errors.
        expected: bytes that will come, where known: checked against the limit and the free disk space.
    """

    def __init__(self, name: str, expected: int = 0) -> None:
        self._name = name
        self._parts: list[Tensor] = []
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._bytes, self._count = 0, 0
        self._shape: tuple[int, ...] = ()
        self._dtype = torch.uint8
        self._check_room(expected)

    def __len__(self) -> int:
        return self._count

    def append(self, rows: Tensor) -> None:
        """Take in rows (n, ...) on the CPU.

        Raises:
            DataError: another shape or type than before, no room on the disk, or over the size limit.
        """
        rows = rows.detach().contiguous()
        if not self._count:
            self._shape, self._dtype = tuple(rows.shape[1:]), rows.dtype
        if rows.dtype != self._dtype:
            raise DataError(
                f"{self._name}: expected one type in every sample, got {self._dtype}, {rows.dtype}; convert them first"
            )
        if tuple(rows.shape[1:]) != self._shape:
            raise DataError(
                f"{self._name}: expected the same shape in every sample, got {self._shape}, "
                f"{tuple(rows.shape[1:])}; resize them first"
            )
        size = rows.numel() * rows.element_size()
        check_size(self._name, self._bytes + size, DATA_BYTES, DataError)
        self._count += len(rows)
        self._bytes += size
        raw = rows.flatten().view(torch.uint8).numpy().data
        self._digest.update(raw)
        if self._file is None and self._bytes <= IN_MEMORY:
            self._parts.append(rows)
            if len(self._parts) == _PARTS:  # many small tensors cost far more than their bytes
                self._parts = [torch.cat(self._parts)]
            return
        self._write(raw)

    def finish(self) -> Stored:
        """Everything that was taken in; the spool is empty afterwards.

        Raises:
            DataError: nothing was.
        """
        if not self._count:
            raise DataError(f"{self._name}: expected at least one sample, got none")
        if self._file is None:
            parts, self._parts = self._parts, []
            return Stored(parts[0] if len(parts) == 1 else torch.cat(parts), self._digest.hexdigest())
        self._file.flush()
        with self._file as stream:
            pages = Pages(stream)
        return Stored(pages.tensor(self._dtype, (self._count, *self._shape)), self._digest.hexdigest(), pages)

    def _write(self, raw: memoryview) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="robust-")  # noqa: SIM115 - closed by finish
                for part in self._parts:
                    self._file.write(part.flatten().view(torch.uint8).numpy().data)
                self._parts = []
            self._file.write(raw)
        except OSError as e:
            raise _no_room(self._name, self._bytes, e) from e

    def _check_room(self, expected: int) -> None:
        check_size(self._name, expected, DATA_BYTES, DataError)
        if expected > IN_MEMORY and expected > (free := shutil.disk_usage(tempfile.gettempdir()).free):
            raise DataError(
                f"{self._name}: needs {expected >> 20} MiB on disk, {tempfile.gettempdir()} has {free >> 20} MiB; "
                "set the variable TMPDIR to a folder with more room"
            )


class Kept:
    """Rows that are kept under numbers, the last that came under each; on disk once they outgrow memory.

    Args:
        name: of what is kept, for errors.
    """

    def __init__(self, name: str) -> None:
        self._numbers: list[Tensor] = []
        self._spool = Spool(name)
        self._name = name

    def add(self, numbers: Tensor, rows: Tensor) -> None:
        """Keep rows (n, ...) under numbers (n,), in place of those that were kept under them before."""
        if len(numbers):
            self._numbers.append(numbers)
            self._spool.append(rows)

    def finish(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The numbers in ascending order, and their rows (N, *shape)."""
        if not self._numbers:
            return torch.empty(0, dtype=torch.int64), torch.empty((0, *shape))
        numbers, order = torch.cat(self._numbers).sort(stable=True)
        last = numbers.diff(append=numbers.new_full((1,), -1)) != 0
        stored = self._spool.finish()
        return numbers[last], gathered(stored.rows, order[last], stored.pages, self._name).rows


class Slots:
    """A float32 row each for some of `count` numbers, which may be written again; on disk where all would outgrow memory.

    Args:
        name: of what is kept, for errors.
        count: numbers are below it.
        shape: of a row.
    """

    def __init__(self, name: str, count: int, shape: tuple[int, ...]) -> None:
        self._name, self._shape = name, shape
        self._bytes = 4 * math.prod(shape)
        self.filled = torch.zeros(count, dtype=torch.bool)  # (count,): which have a row
        self._rows: Tensor | None = None
        self._file: IO[bytes] | None = None
        if count * self._bytes <= IN_MEMORY:
            self._rows = torch.empty(count, *shape)

    def put(self, numbers: Tensor, rows: Tensor) -> None:
        """Write rows (n, *shape) under numbers (n,).

        Raises:
            DataError: no room on the disk.
        """
        self.filled[numbers] = True
        if self._rows is not None:
            self._rows[numbers] = rows
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="robust-")  # noqa: SIM115 - closed with the slots
                weakref.finalize(self, _close, self._file)
            for number, row in zip(numbers.tolist(), rows.contiguous(), strict=True):
                self._file.seek(number * self._bytes)
                self._file.write(row.numpy().data)
            self._file.flush()
        except OSError as e:
            raise _no_room(self._name, int(self.filled.sum()) * self._bytes, e) from e

    def take(self, numbers: Tensor) -> Tensor:
        """The rows under numbers (n,), all of them filled: (n, *shape)."""
        if self._rows is not None:
            return self._rows[numbers]
        rows = torch.empty(len(numbers), *self._shape)
        for number, row in zip(numbers.tolist(), rows, strict=True):
            assert self._file is not None
            self._file.seek(number * self._bytes)
            row.view(-1).copy_(torch.frombuffer(bytearray(self._file.read(self._bytes)), dtype=torch.float32))
        return rows


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):  # what would not go onto a full disk
        file.close()


def _no_room(name: str, size: int, error: OSError) -> DataError:
    return DataError(
        f"{name}: {size >> 20} MiB do not fit into {tempfile.gettempdir()} ({why(error)}); set the "
        "variable TMPDIR to a folder with more room, or use --limit"
    )


def in_parts(rows: Tensor) -> Iterable[slice]:
    """Slices of some 4 MiB of rows each."""
    step = max(1, _PART // max(1, _row_bytes(rows)))
    return (slice(start, start + step) for start in range(0, len(rows), step))


def gathered(rows: Tensor, index: Tensor, pages: Pages | None, name: str) -> Stored:
    """rows[index] as a spool of its own: what outgrows memory is never there as a whole."""
    spool = Spool(name, len(index) * _row_bytes(rows))
    for part in index.split(max(1, _PART // max(1, _row_bytes(rows)))):
        spool.append(rows[part])
        if pages is not None:
            pages.release()
    return spool.finish()


def _row_bytes(rows: Tensor) -> int:
    return rows[:1].numel() * rows.element_size()
