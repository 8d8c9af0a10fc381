"""The fifteen common corruptions at five severities, and accuracy under them.

Names and kinds are those of Hendrycks & Dietterich 2019 (arXiv 1903.12261) and of RobustBench; strengths
follow their set for 32 x 32 images, with lengths in pixels growing with the image. The implementations
are this project's own, in torch: like the published sets in kind, not the same pixels, so figures here
are not comparable to the decimal with figures on CIFAR-10-C. Frost is drawn, not photographed.

Every corruption is a function of the image alone: its noise comes from a stream keyed by the content.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from robust.corruption_tools import blur, disk, fractal, line_blur, resized, shifted_pixels, zoomed
from robust.default_device import books_on_the_cpu
from robust.errors import InputError
from robust.registry import Registry
from robust.rng import Streams, content_ids
from robust.transforms import JPEG

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from robust.target import Target

SEVERITIES: Final = (1, 2, 3, 4, 5)
Corruption = Callable[[Tensor, int, Streams, float], Tensor]
CORRUPTIONS: dict[str, Corruption] = {}
_REGISTRY: Registry[Corruption] = Registry("corruption")


def corrupt(x: Tensor, kind: str, severity: int, *, bounds: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Corrupt images: float32 (N, C, H, W) in bounds -> the same shape, in bounds.

    Args:
        kind: one of `CORRUPTIONS`.
        severity: 1 to 5.

    Raises:
        UnknownNameError: no such kind.
        InputError: severity, or x is no images.
    """
    function = _REGISTRY[kind]
    if severity not in SEVERITIES:
        raise InputError(f"severity: expected 1 to 5, got {severity!r}")
    if x.dim() != 4:
        raise InputError(f"corruption {kind}: needs images (N, C, H, W), got {tuple(x.shape)}")
    if not len(x):
        return x.clone()
    low, high = bounds
    unit = (x - low) / (high - low)
    streams = Streams(0, content_ids(x), ("corruption", kind, severity))
    scale = max(1.0, min(x.shape[2:]) / 32)  # lengths in pixels are stated for 32 x 32
    out = function(unit, severity - 1, streams, scale).clamp(0, 1)
    return (out * (high - low) + low).to(x.dtype)


@books_on_the_cpu
def corruption_accuracy(
    model: nn.Module | Target,
    data: Any,
    *,
    severities: Sequence[int] = SEVERITIES,
    bounds: tuple[float, float] | None = None,
    device: str | torch.device = "auto",
    batch_size: int = 128,
) -> pd.DataFrame:
    """Accuracy under each corruption: a row per kind, a column per severity, and column `mean`.

    The mean corruption accuracy is the mean of that column: `table["mean"].mean()`. As published, every
    sample counts, whether it was right before or not.

    Args:
        model: module giving logits (N, C), or a Target.
        data: as for `evaluate`, images.
        severities: which of 1 to 5.
        bounds, device: as for `evaluate`.
        batch_size: rows a pass takes, at least 1.

    Raises:
        InputError and its kin: a parameter out of its range, or a model that fails on the data.
    """
    import pandas as pd

    from robust.failures import naming_failures
    from robust.sources import as_samples, check_labels
    from robust.target import Target, check_given

    _check_severities(severities)
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise InputError(f"batch_size: expected a positive integer, got {batch_size!r}")
    if isinstance(model, Target):
        check_given(model, None, bounds)
    target = model if isinstance(model, Target) else Target(model, bounds=bounds or (0.0, 1.0), device=device)
    samples = as_samples(data, bounds=target.bounds)
    right = {kind: [0] * len(severities) for kind in CORRUPTIONS}
    with target.sparing_randomness(), target, torch.no_grad(), naming_failures():
        for rows in torch.arange(len(samples)).split(batch_size):
            x, y = samples.rows(rows).to(target.device), samples.y[rows].to(target.device)
            for kind, counts in right.items():
                for i, severity in enumerate(severities):
                    logits = target.logits(corrupt(x, kind, severity, bounds=target.bounds))
                    check_labels(samples, logits.shape[1])
                    counts[i] += int(((logits.argmax(1) == y) & logits.isfinite().all(1)).sum())
    table = pd.DataFrame(right, index=list(severities)).T / len(samples)
    return table.assign(mean=table.mean(axis=1))


def _check_severities(severities: Sequence[int]) -> None:
    known = isinstance(severities, Sequence) and all(each in SEVERITIES for each in severities)
    if not known or not severities:
        raise InputError(f"severities: expected at least one of 1 to 5, such as (1, 3), got {severities!r}")


def _file(function: Corruption) -> Corruption:
    name = function.__name__
    CORRUPTIONS[name] = _REGISTRY.register(name)(function)
    return function


# -- noise ------------------------------------------------------------------------------------------------


@_file
def gaussian_noise(x: Tensor, level: int, streams: Streams, scale: float) -> Tensor:
    """Independent normal noise of every value."""
    return x + (0.04, 0.06, 0.08, 0.09, 0.10)[level] * streams.normal(x.shape[1:])


@_file
def shot_noise(x: Tensor, level: int, streams: Streams, scale: float) -> Tensor:
    """Photon counts: Poisson noise, drawn by its variance-stabilised normal approximation."""
    photons = (500, 250, 100, 75, 50)[level]
    root = (x * photons).sqrt() + streams.normal(x.shape[1:]) / 2
    return torch.where(x > 0, (root.clamp_min(0).square() - 0.25).round().clamp_min(0) / photons, x)


@_file
def impulse_noise(x: Tensor, level: int, streams: Streams, scale: float) -> Tensor:
    """Salt and pepper."""
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[level]
    draw = streams.uniform(x.shape[1:])
    return torch.where(draw < share / 2, 0.0, torch.where(draw >= 1 - share / 2, 1.0, x))


# -- blur -------------------------------------------------------------------------------------------------


@_file
def defocus_blur(x: Tensor, level: int, streams: Streams, scale: float) -> Tensor:
    """A lens out of focus: the mean over a disk."""
    return disk(x, (0.6, 0.8, 1.0, 1.4, 2.0)[level] * scale)


@_file
def glass_blur(x: Tensor, level: int, streams: Streams, scale: float) -> Tensor:
    """Frosted glass: pixels move about, between two slight blurs."""
    sigma, reach, rounds = ((0.15, 1, 1), (0.3, 1, 2), (0.4, 1, 3), (0.4, 2, 2), (0.5, 2, 3))[level]
    x, reach = blur(x, sigma * scale), round(reach * scale)
    for i in range(rounds):
        x = shifted_pixels(x, reach, streams.child(i))
    return blur(x, sigma * scale)


@_file
def motion_blur(x: Tensor, level: int, streams: Streams, scale: float) -> Tensor:
    """The camera moved, by up to 45 degrees from level."""
    length = (2.0, 2.75, 3.5, 4.25, 5.0)[level] * scale
    return line_blur(x, length, streams.uniform((1,), -45, 45).squeeze(1))


@_file
def zoom_blur(x: Tensor, level: int, streams: Streams, scale: float) -> Tensor:
    """The camera came nearer: the mean over zooms."""
    most = (1.06, 1.11, 1.16, 1.21, 1.26)[level]
    zooms = torch.linspace(1.0, most, 7).tolist()
    return torch.stack([zoomed(x, zoom) for zoom in zooms]).mean(0)


# -- weather ----------------------------------------------------------------------------------------------


@_file
def snow(x: Tensor, level: int, streams: Streams, scale: float) -> Tensor:
    """Flakes falling aslant, over a whitened image."""
    mean, threshold, length, kept = (
        (0.10, 0.45, 2.0, 0.95),
        (0.15, 0.45, 2.5, 0.90),
        (0.20, 0.45, 3.0, 0.85),
        (0.25, 0.45, 3.5, 0.80),
        (0.30, 0.45, 4.0, 0.75),
    )[level]
    flakes = mean + 0.25 * streams.normal((1, *x.shape[2:]))
    flakes = torch.where(flakes > threshold, flakes, 0.0).clamp(0, 1)
    flakes = line_blur(flakes, length * scale, streams.child("angle").uniform((1,), 45, 135).squeeze(1))
    grey = x.mean(1, keepdim=True) * 1.5 + 0.5
    return kept * x + (1 - kept) * torch.maximum(x, grey) + flakes + flakes.flip(2, 3)


@_file
def frost(x: Tensor, level: int, streams: Streams, scale: float) -> Tensor:
    """Ice crystals on the pane: ridges of a fractal."""
    kept, ice = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.45), (0.75, 0.5))[level]
    ridges = 1 - (2 * fractal(x, streams, 1.6) - 1).abs()
    return kept * x + ice * ridges.square()


@_file
def fog(x: Tensor, level: int, streams: Streams, scale: float) -> Tensor:
    """A bright fractal haze."""
    thickness, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[level]
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + thickness * fractal(x, streams, decay)) * brightest / (brightest + thickness)


@_file
def brightness(x: Tensor, level: int, streams: Streams, scale: float) -> Tensor:
    """A higher value at the same hue and saturation."""
    more, value = (0.05, 0.1, 0.15, 0.2, 0.3)[level], x.amax(1, keepdim=True)
    raised = (value + more).clamp_max(1.0)
    return torch.where(value > 0, x * raised / value.clamp_min(1e-6), raised)


# -- digital ----------------------------------------------------------------------------------------------


@_file
def contrast(x: Tensor, level: int, streams: Streams, scale: float) -> Tensor:
    """Everything nearer to each channel's mean."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + (0.75, 0.5, 0.4, 0.3, 0.15)[level] * (x - mean)


@_file
def elastic_transform(x: Tensor, level: int, streams: Streams, scale: float) -> Tensor:
    """Stretched here, squeezed there: a smooth random displacement."""
    reach = (0.8, 1.1, 1.4, 1.8, 2.3)[level] * scale
    n, _, height, width = x.shape
    field = blur(streams.uniform((2, height, width), -1, 1), 3.0 * scale)
    field = field / field.flatten(1).abs().amax(1).clamp_min(1e-6).view(-1, 1, 1, 1) * reach
    identity = torch.eye(2, 3, device=x.device).expand(n, 2, 3)
    where = functional.affine_grid(identity, list(x.shape), align_corners=False)
    moved = torch.stack([field[:, 0] * 2 / width, field[:, 1] * 2 / height], 3)
    return functional.grid_sample(x, where + moved, padding_mode="reflection", align_corners=False)


@_file
def pixelate(x: Tensor, level: int, streams: Streams, scale: float) -> Tensor:
    """Fewer pixels, shown large."""
    share = (0.8, 0.65, 0.5, 0.4, 0.3)[level]
    height, width = x.shape[2:]
    small = resized(x, (max(1, round(height * share)), max(1, round(width * share))), "area")
    return resized(small, (height, width), "nearest-exact")


@_file
def jpeg_compression(x: Tensor, level: int, streams: Streams, scale: float) -> Tensor:
    """JPEG at low quality; images of other than 1 or 3 channels channel by channel."""
    squeeze = JPEG((80, 65, 58, 50, 40)[level])
    if x.shape[1] in (1, 3):
        return squeeze(x)
    return torch.cat([squeeze(channel) for channel in x.split(1, 1)], 1)
