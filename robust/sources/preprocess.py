"""What a model wants done to its images first, as its own metadata declare it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image

from robust.errors import ModelError

Size = tuple[int, int]
_RESAMPLING: Final = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_FILTERS: Final = {name: Image.Resampling(code) for code, name in _RESAMPLING.items()}
_JSON_BYTES: Final = 1 << 24
_LARGEST_SIDE: Final = 1 << 14
SIDECAR: Final = "preprocessor_config.json"


@dataclass(frozen=True)
class Preprocessing:
    """Steps between an image and a model: resize, centre crop, normalise.

    Args:
        source: where this was read.
        mean, std: per channel, for inputs in [0, 1]; None where the model takes them as they are.
        size: (height, width) that the model takes; None for any.
        resize: shorter side, or (height, width), to scale an image to before it is cropped to `size`.
        interpolation: nearest, bilinear, bicubic, lanczos, box or hamming.
    """

    source: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: Size | None = None
    resize: int | Size | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        sides = [side for side in (*(self.size or ()), *_sides(self.resize)) if side is not None]
        if any(not 1 <= side <= _LARGEST_SIDE for side in sides):
            raise ModelError(
                f"preprocessing from {self.source}: expected sides of 1 to {_LARGEST_SIDE} pixels, "
                f"got size {self.size} and resize {self.resize}"
            )
        if self.interpolation not in _FILTERS:
            raise ModelError(
                f"preprocessing from {self.source}: expected interpolation {', '.join(_FILTERS)}, "
                f"got {self.interpolation!r}"
            )

    @property
    def normalize(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(mean, std) for a Target."""
        return None if self.mean is None or self.std is None else (self.mean, self.std)

    def fit(self, image: Image.Image) -> Image.Image:
        """An image as the model is to see it: scaled, then cropped about its centre."""
        if self.size is None or image.size == self.size[::-1]:
            return image
        height, width = self.size
        image = image.resize(self._scaled(image), _FILTERS[self.interpolation])
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))

    def _scaled(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) to scale to, never smaller than the crop."""
        assert self.size is not None
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        height, width = self.size
        if self.resize is None:
            return width, height
        factor = max(self.resize / min(image.size), height / image.height, width / image.width)
        return max(width, round(image.width * factor)), max(height, round(image.height * factor))

    def __str__(self) -> str:
        steps = []
        if self.resize is not None:
            steps.append(f"resize {_shown(self.resize)} ({self.interpolation})")
        if self.size is not None:
            steps.append(f"input {_shown(self.size)}")
        if self.mean is not None and self.std is not None:
            steps.append(f"mean {_numbers(self.mean)} std {_numbers(self.std)} of values in [0, 1]")
        return f"{', '.join(steps) or 'none'} (from {self.source})"


def of_torchvision(models: Any, name: str) -> Preprocessing | None:
    """What torchvision's weights of this name were evaluated with; None where it has none."""
    try:
        steps = models.get_model_weights(name).DEFAULT.transforms()
        return Preprocessing(
            f"torchvision's weights of {name}",
            mean=tuple(steps.mean),
            std=tuple(steps.std),
            size=_square(steps.crop_size),
            resize=int(steps.resize_size[0]),
            interpolation=str(steps.interpolation.value),
        )
    except (AttributeError, ValueError, IndexError):  # no weights, or another kind of model
        return None


def of_timm(config: Mapping[str, Any], source: str) -> Preprocessing | None:
    """What a timm configuration (pretrained_cfg) declares."""
    if not config.get("mean") or not config.get("std"):
        return None
    side = (config.get("input_size") or (3, None, None))[1]
    share = float(config.get("crop_pct") or 1.0)
    size = _square([side]) if side else None
    squash = config.get("crop_mode") == "squash"
    return Preprocessing(
        source,
        mean=_floats(config["mean"], source),
        std=_floats(config["std"], source),
        size=size,
        resize=None if side is None or squash else int(side / share),
        interpolation=str(config.get("interpolation") or "bilinear"),
    )


def of_processor(config: Mapping[str, Any], source: str) -> Preprocessing:
    """What a preprocessor_config.json of transformers declares.

    Raises:
        ModelError: fields of another form.
    """
    factor = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    span = 255 * factor  # the model's range for a pixel from 0 to 255
    normal = bool(config.get("do_normalize", True)) and "image_mean" in config
    mean = _floats(config["image_mean"], source) if normal else (0.0,)
    std = _floats(config["image_std"], source) if normal else (1.0,)
    plain = not normal and abs(span - 1) < 1e-6
    resize = _config_size(config.get("size"), source) if config.get("do_resize", True) else None
    crop = _config_size(config.get("crop_size"), source) if config.get("do_center_crop") else None
    size = crop if crop is not None else resize
    return Preprocessing(
        source,
        mean=None if plain else tuple(value / span for value in mean),
        std=None if plain else tuple(value / span for value in std),
        size=(size, size) if isinstance(size, int) else size,
        resize=resize if crop is not None or isinstance(resize, int) else None,
        interpolation=_RESAMPLING.get(config.get("resample", 2), "bilinear"),
    )


def of_metadata(entries: Mapping[str, str], source: str) -> Preprocessing | None:
    """Mean and std among the key-value metadata of a file, as JSON lists or comma-separated numbers."""
    for mean, std in (("mean", "std"), ("image_mean", "image_std")):
        if mean in entries and std in entries:
            values = [_floats(_list(entries[key]), source) for key in (mean, std)]
            return Preprocessing(source, mean=values[0], std=values[1])
    return None


def beside(path: Path) -> Preprocessing | None:
    """What a preprocessor_config.json in a model file's folder declares."""
    file = path.parent / SIDECAR
    return of_processor(read_json(file), str(file)) if file.is_file() else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of moderate size.

    Raises:
        ModelError: missing, larger than 16 MiB, or something else.
    """
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise ModelError(f"model {path}: expected at most {_JSON_BYTES >> 20} MiB of JSON")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise ModelError(f"model {path}: cannot be read as JSON ({type(e).__name__}: {e})") from e
    if not isinstance(found, dict):
        raise ModelError(f"model {path}: expected a JSON object, got {type(found).__name__}")
    return found


def _config_size(size: Any, source: str) -> int | Size | None:
    """A size as transformers writes it: a number, or height and width, or the shortest edge."""
    if isinstance(size, Mapping):
        if size.get("shortest_edge"):
            return int(size["shortest_edge"])
        if "height" in size and "width" in size:
            return int(size["height"]), int(size["width"])
        raise ModelError(
            f"preprocessing from {source}: expected height and width, or shortest_edge, got {dict(size)}"
        )
    return None if size is None else _square([size])


def _square(side: Any) -> Size:
    return int(side[0]), int(side[-1])


def _list(text: str) -> Any:
    try:
        return json.loads(text if text.lstrip().startswith("[") else f"[{text}]")
    except ValueError:
        return text


def _floats(values: Any, source: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in ([values] if isinstance(values, (int, float)) else values))
    except (TypeError, ValueError) as e:
        raise ModelError(f"preprocessing from {source}: expected numbers, got {values!r}") from e


def _sides(size: int | Size | None) -> tuple[int, ...]:
    return (size,) if isinstance(size, int) else size or ()


def _shown(size: int | Size) -> str:
    return f"{size[0]}x{size[1]}" if isinstance(size, tuple) else f"shorter side {size}"


def _numbers(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:.4g}" for value in values)
