"""Input transforms that were proposed as defenses and hide gradients: attack them through `robust.BPDA`.

Each maps (N, C, H, W) in bounds to the same shape, sample by sample, and keeps its setting in the state
dict, so that a model's hash tells settings apart.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from robust.errors import InputError


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class BitDepth(nn.Module):
    """Quantise to `bits` bits a value (feature squeezing, Xu et al. 2018, arXiv 1704.01155).

    Args:
        bits: 1 to 8.
        bounds: lowest and highest valid input value.
    """

    def __init__(self, bits: int = 3, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        if not (_is_whole(bits) and 1 <= bits <= 8):
            raise InputError(f"bit depth: bits: expected an integer from 1 to 8, got {bits!r}")
        self.levels, self.bounds = 2**bits - 1, bounds
        self.register_buffer("setting", torch.tensor([bits]))

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.bounds
        unit = (x - low) / (high - low)
        return (unit * self.levels).round() / self.levels * (high - low) + low


class Median(nn.Module):
    """Median of a square window, per channel, mirrored at the border (feature squeezing, Xu et al. 2018).

    Args:
        size: side of the window, odd, >= 3.
    """

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        if not (_is_whole(size) and size >= 3 and size % 2):
            raise InputError(f"median: size: expected an odd number >= 3, got {size!r}")
        self.size = size
        self.register_buffer("setting", torch.tensor([size]))

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        edge = self.size // 2
        padded = functional.pad(x, (edge,) * 4, mode="reflect")
        windows = functional.unfold(padded, self.size).view(n, channels, self.size**2, -1)
        return windows.median(2).values.view(n, channels, height, width)


class JPEG(nn.Module):
    """Compress and decompress (Dziugaite et al. 2016, arXiv 1608.00853), with Pillow's encoder, on the CPU.

    Args:
        quality: 1 to 95.
        bounds: lowest and highest valid input value.
    """

    def __init__(self, quality: int = 75, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        if not (_is_whole(quality) and 1 <= quality <= 95):
            raise InputError(f"jpeg: quality: expected an integer from 1 to 95, got {quality!r}")
        self.quality, self.bounds = quality, bounds
        self.register_buffer("setting", torch.tensor([quality]))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] not in (1, 3):
            raise InputError(f"jpeg: expected images (N, C, H, W) of 1 or 3 channels, got {tuple(x.shape)}")
        low, high = self.bounds
        levels = ((x.detach() - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8).cpu()
        out = torch.stack([self._one(image) for image in levels]).to(x)
        return out / 255 * (high - low) + low

    def _one(self, image: Tensor) -> Tensor:
        pixels = image.movedim(0, 2).numpy()
        with io.BytesIO() as file:
            Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(
                file, "JPEG", quality=self.quality
            )
            decoded = np.asarray(Image.open(file))
        return torch.from_numpy(decoded.copy()).view(*pixels.shape).movedim(2, 0)
