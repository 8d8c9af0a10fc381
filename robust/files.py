"""Files that are written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from uuid import uuid4

from robust.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what will be at `path` once the block has ended well; missing folders are made.

    A reader sees the file that was there, or the new one. Others may read it as the umask says, also where a library
    makes files for their owner alone.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def given_path(argument: str, what: str, path: object) -> Path:
    """The path that an argument names, as a Path.

    Args:
        what: that it is to be the path of.

    Raises:
        InputError: it is no path.
    """
    if not isinstance(path, str | PathLike):
        raise InputError(f"{argument}: expected the path of {what}, got {path!r}")
    return Path(path)


def why(error: Exception) -> str:
    """Why a file cannot be read or written, in the system's words where it has some."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def why_unwritten(error: Exception, otherwise: str = "") -> str:
    """Why a file cannot be written, and what to do: of what has its place, move it away; else `otherwise`, if anything."""
    in_the_way = isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError)
    remedy = "move away what is in the way" if in_the_way else otherwise
    return f"{why(error)}; {remedy}" if remedy else why(error)
