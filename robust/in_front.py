"""What stands between inputs in bounds and a model: scaling to its size, and the normalisation that it expects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from robust.errors import InputError

Normalization = tuple[float | Sequence[float], float | Sequence[float]]


class Behind(nn.Module):
    """A model behind what a Target has before it: model((scaled(front(x)) - mean) / std).

    Args:
        model: what sees the result.
        mean, std: (C,) or scalars; None for none.
        size: (height, width) that images are scaled to, differentiably; None for none.
        front: comes first of all; None for nothing.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        size: tuple[int, int] | None = None,
        *,
        front: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.front, self.model, self.size = front, model, size
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.front is None else self.front(x)
        out: Tensor = self.model(prepared(x, self.size, self.mean, self.std))
        return out


def bare(module: nn.Module) -> nn.Module:
    """The model inside what `Target.as_module` gave; any other module as it is."""
    return module.model if isinstance(module, Behind) and module.front is None else module


def prepared(x: Tensor, size: tuple[int, int] | None, mean: Tensor | None, std: Tensor | None) -> Tensor:
    """Inputs (N, ...) in bounds as the model takes them: scaled, if images of another size, then normalised."""
    if size is not None and x.dim() == 4 and x.shape[2:] != size:
        x = interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
    if mean is not None and std is not None:
        shape = (-1, *([1] * (x.dim() - 2))) if mean.numel() > 1 else ()
        x = (x - mean.view(shape)) / std.view(shape)
    return x


def read_moments(
    normalize: Normalization | None, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Mean and std ((C,) or scalars) on the device; None twice for none.

    Raises:
        InputError: they are not that.
    """
    if normalize is None:
        return None, None
    try:
        mean, std = (torch.as_tensor(part, dtype=torch.float32, device=device) for part in normalize)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"normalize: expected (mean, std), numbers or one per channel, got {normalize!r}"
        ) from error
    finite = bool(mean.isfinite().all() and std.isfinite().all())
    if mean.numel() != std.numel() or not finite or not bool((std > 0).all()):
        raise InputError(
            f"normalize: expected finite mean and std of equal length with std > 0, got {normalize!r}"
        )
    return mean, std
