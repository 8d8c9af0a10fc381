"""Whether there is a file, and how much it may ask for: checked before anything is allocated."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from robust.errors import DataError, InputError

GIB: Final = 1 << 30
MODEL_BYTES: Final = 64 * GIB
DATA_BYTES: Final = 256 * GIB
IMAGE_PIXELS: Final = 1 << 26  # of one image: 67 million, 8192 x 8192
ENTRY_BYTES: Final = 1 << 30  # of one file in an archive, or one cell of a table
LIMIT_VARIABLE: Final = "ROBUST_MAX_GIB"


def require_file(path: Path) -> None:
    """Raise DataError unless this is a file."""
    if not path.is_file():
        raise DataError(f"data {path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")


def check_size(what: str, size: int, limit: int, error: type[InputError]) -> None:
    """Refuse a size (in bytes) over the limit, which ROBUST_MAX_GIB lowers or raises.

    Raises:
        error: too large, or the variable is not a positive number.
    """
    allowed = _allowed(limit)
    if size > allowed:
        raise error(
            f"{what}: asks for {size / GIB:.3g} GiB, over the limit of {allowed / GIB:.3g} GiB; refused before "
            f"anything was allocated; where this is right, set {LIMIT_VARIABLE} to more"
        )


def _allowed(limit: int) -> int:
    text = os.environ.get(LIMIT_VARIABLE)
    if text is None:
        return limit
    try:
        gib = float(text)
    except ValueError:
        gib = 0.0
    if not 0 < gib < 1 << 30:
        raise InputError(f"{LIMIT_VARIABLE}: expected a positive number of GiB, got {text!r}")
    return int(gib * GIB)
