"""What the corruptions are made of. Images are (N, C, H, W) in [0, 1]; each row is treated by itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from robust.rng import Streams


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of `sigma` pixels, mirrored at the border."""
    reach = max(1, math.ceil(3 * sigma))
    at = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    weights = (-at.square() / (2 * sigma**2)).exp()
    weights = weights / weights.sum()
    across = _filtered(x, weights[None])
    return _filtered(across, weights[:, None])


def disk(x: Tensor, radius: float) -> Tensor:
    """Mean over a disk of `radius` pixels with a soft rim."""
    reach = math.ceil(radius + 0.5)
    at = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    away = (at[:, None].square() + at[None].square()).sqrt()
    weights = (radius + 0.5 - away).clamp(0, 1)
    return _filtered(x, weights / weights.sum())


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    channels, (tall, wide) = x.shape[1], kernel.shape
    padded = _mirrored(x, tall // 2, wide // 2)
    return functional.conv2d(padded, kernel.expand(channels, 1, tall, wide), groups=channels)


def _mirrored(x: Tensor, rows: int, columns: int) -> Tensor:
    """Padded by reflection, as often as it takes where the image is smaller than the padding."""
    for dim, more in ((2, rows), (3, columns)):
        size = x.shape[dim]
        at = torch.arange(-more, size + more, device=x.device) % (2 * size)
        x = x.index_select(dim, torch.where(at < size, at, 2 * size - 1 - at))
    return x


def line_blur(x: Tensor, length: float, degrees: Tensor) -> Tensor:
    """Weighted mean along a line of `length` pixels at an angle of its own for every row, degrees (N,)."""
    n, _, height, width = x.shape
    angle = torch.deg2rad(degrees)
    ahead = torch.stack([angle.cos() * 2 / width, -angle.sin() * 2 / height], 1)
    base = torch.eye(2, 3, device=x.device).repeat(n, 1, 1)
    taps = torch.linspace(-1, 1, 2 * max(1, math.ceil(length / 2)) + 1).tolist()
    total, summed = 0.0, torch.zeros_like(x)
    for tap in taps:
        weight = math.exp(-2 * tap**2)
        theta = base.clone()
        theta[:, :, 2] = ahead * (tap * length / 2)
        where = functional.affine_grid(theta, list(x.shape), align_corners=False)
        moved = functional.grid_sample(x, where, padding_mode="reflection", align_corners=False)
        summed, total = summed + weight * moved, total + weight
    return summed / total


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of the image, `factor` times as large."""
    theta = torch.eye(2, 3, device=x.device) / factor
    where = functional.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return functional.grid_sample(x, where, padding_mode="border", align_corners=False)


def resized(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """To (height, width)."""
    return functional.interpolate(x, size, mode=mode)


def shifted_pixels(x: Tensor, reach: int, streams: Streams) -> Tensor:
    """Every pixel taken from a random one at most `reach` away: (N, C, H, W) -> (N, C, H, W)."""
    n, channels, height, width = x.shape
    moves = streams.integers((2, height, width), -reach, reach + 1)
    rows = (torch.arange(height, device=x.device)[:, None] + moves[:, 0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device)[None] + moves[:, 1]).clamp(0, width - 1)
    index = (rows * width + columns).view(n, 1, -1).expand(n, channels, -1)
    return x.flatten(2).gather(2, index).view_as(x)


def fractal(x: Tensor, streams: Streams, decay: float) -> Tensor:
    """A cloud of noise at all scales, finer ones fainter by `decay`, from 0 to 1: (N, 1, H, W)."""
    height, width = x.shape[2:]
    cloud, weight = torch.zeros_like(x[:, :1]), 1.0
    for octave in range(1, max(2, math.ceil(math.log2(min(height, width))))):
        side = 2**octave + 1
        noise = streams.child("octave", octave).uniform((1, side, side))
        cloud = cloud + weight * functional.interpolate(
            noise, (height, width), mode="bilinear", align_corners=True
        )
        weight /= decay
    low, high = cloud.amin((1, 2, 3), keepdim=True), cloud.amax((1, 2, 3), keepdim=True)
    return (cloud - low) / (high - low).clamp_min(1e-6)
