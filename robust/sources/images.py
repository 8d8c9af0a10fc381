"""Encoded images to rows of a Spool: sizes are checked before anything is decoded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from robust.errors import DataError
from robust.sources.limits import IMAGE_PIXELS
from robust.sources.preprocess import Preprocessing
from robust.sources.spool import Spool, Stored

IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
# Readers for these suffixes and no other: some of PIL's start programs or follow paths found in the file.
_FORMATS: Final = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "PPM", "TIFF")
_GRAY: Final = ("1", "L", "LA")
_DEEP: Final = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Encoded:
    """An image file, or the bytes of one.

    Args:
        name: for errors.
        source: where its bytes are.
    """

    name: str
    source: Path | bytes


def decode(images: Iterable[Encoded], name: str, fit: Preprocessing | None = None) -> Stored:
    """Images -> (N, 1, H, W) uint8, or (N, 3, H, W) if any of them has colour.

    Args:
        images: in order.
        name: of the whole, for errors.
        fit: resize and crop to the size that a model takes; without it all must have one size.

    Raises:
        DataError: an image that cannot be decoded, of over 67 million pixels, deeper than 8 bits or of
            another size than the first; none at all.
    """
    spool = Spool(name)
    size: tuple[int, ...] | None = None
    gray = True
    for image in images:
        array = decode_one(image, fit)
        if size is not None and array.shape[:2] != size:
            (h, w), (h0, w0) = array.shape[:2], size
            raise DataError(
                f"image {image.name}: expected all images of one size, got {w}x{h} after {w0}x{h0}; "
                "resize them first, or name a model that declares its size"
            )
        size = array.shape[:2]
        if gray and array.shape[2] == 3:
            spool, gray = _coloured(spool, name), False
        spool.append(_row(array, 1 if gray else 3))
    return spool.finish()


def decode_one(image: Encoded, fit: Preprocessing | None = None) -> Array:
    """One image -> (H, W, 1) or (H, W, 3) uint8; transparency is dropped.

    Raises:
        DataError: as decode does.
    """
    source = BytesIO(image.source) if isinstance(image.source, bytes) else image.source
    try:
        with Image.open(source, formats=_FORMATS) as opened:
            if opened.width * opened.height > IMAGE_PIXELS:
                raise DataError(
                    f"image {image.name}: {opened.width}x{opened.height} is over {IMAGE_PIXELS:,} pixels; refused"
                )
            if opened.mode in _DEEP:
                raise DataError(
                    f"image {image.name}: expected 8 bits a channel, got mode {opened.mode}; convert it"
                )
            plain = _plain(opened)
            return _array(plain if fit is None else fit.fit(plain))
    except DataError:
        raise
    except Exception as e:  # decoders fail in as many ways as there are damaged files
        raise DataError(f"image {image.name}: cannot be decoded ({type(e).__name__}: {e})") from e


def to_array(image: Image.Image, fit: Preprocessing | None = None) -> Array:
    """An opened image as decode_one gives it."""
    plain = _plain(image)
    return _array(plain if fit is None else fit.fit(plain))


def _plain(image: Image.Image) -> Image.Image:
    """Gray or RGB of 8 bits."""
    if image.mode in _GRAY:
        return image.convert("L")
    # Palettes with transparency convert to RGB by way of RGBA only.
    return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def _array(image: Image.Image) -> Array:
    array: Array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def _row(array: Array, channels: int) -> torch.Tensor:
    wide = np.broadcast_to(array, (*array.shape[:2], channels))
    return torch.from_numpy(np.array(wide.transpose(2, 0, 1)[None], order="C"))


def _coloured(spool: Spool, name: str) -> Spool:
    """A spool that holds the gray rows of another in three channels."""
    coloured = Spool(name)
    if len(spool):
        stored = spool.finish()
        for row in stored.rows.split(1):
            coloured.append(row.expand(-1, 3, -1, -1))
    return coloured
