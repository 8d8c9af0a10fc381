"""Training data: what must hold before the first epoch, the split, the device, the augmentation."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from robust.errors import DataError, InputError, ModelError, RobustError, told
from robust.failures import naming_failures
from robust.rng import Streams
from robust.sources import Samples, check_labels, check_samples
from robust.target import Target
from robust.threat import Threat
from robust.whole_box import across

_VALIDATION_SHARE: Final = 0.1
_VALIDATION_MOST: Final = 1000


def split_validation(data: Samples, seed: int) -> tuple[Samples, Samples]:
    """A tenth, at most 1,000, held out by seed: (training, validation)."""
    count = min(_VALIDATION_MOST, int(len(data) * _VALIDATION_SHARE))
    if count < 1:
        least = math.ceil(1 / _VALIDATION_SHARE)
        raise InputError(
            f"data: {len(data)} samples are too few: a tenth is split off, by which the best epoch is chosen; give at least {least}"
        )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.take(order[count:].sort().values), data.take(order[:count].sort().values)


def check_data(
    train: Samples, held_out: Samples, threat: Threat | None, *, augment: bool, extra: Samples | None = None
) -> None:
    """Raise InputError where samples are malformed, differ in shape, or do not fit the threat."""
    for name, part in (("data", train), ("validation", held_out), ("extra", extra)):
        if part is None:
            continue
        anywhere = threat is None and part.x.dtype != torch.uint8
        bounds = (-math.inf, math.inf) if anywhere else (0.0, 1.0) if threat is None else threat.bounds
        check_samples(part, bounds)
        if part.x.shape[1:] != train.x.shape[1:]:
            raise DataError(
                f"{name}: expected samples of the training data's shape {tuple(train.x.shape[1:])}, "
                f"got {tuple(part.x.shape[1:])}"
            )
    if augment and train.x.dim() != 4:
        raise InputError(
            f"training: augment crops images (N, C, H, W), got {tuple(train.x.shape)}; turn augment off"
        )
    if threat is not None:
        _check_radius(threat, train.x[0].numel())


def _check_radius(threat: Threat, values: int) -> None:
    if threat.family is not None:
        raise InputError(
            f"threat {threat}: hardening needs a ball in linf, l2 or l1, such as 'linf:8/255'; measure "
            f"{threat.norm} afterwards with `robust attack`"
        )
    if threat.radius > across(threat, values):
        raise InputError(
            f"threat {threat}: eps is larger than the box {list(threat.bounds)}, {across(threat, values):g} across "
            f"for {values} values, so every input is allowed; give a smaller eps"
        )


def own_copy(model: nn.Module) -> nn.Module:
    """A copy that can be trained. With gradients on, the parameters of a TorchScript model's copy would be no leaves."""
    with torch.no_grad():
        copied = copy.deepcopy(model)
    for ours, theirs in zip(copied.parameters(), model.parameters(), strict=True):
        ours.requires_grad_(theirs.requires_grad)
    return copied


def count_classes(model: nn.Module, parts: Sequence[Samples], device: torch.device) -> int:
    """How many classes the model has.

    Raises:
        ModelError: the model fails on these inputs or does not return logits (N, C).
        DataError: a label that the model has no class for.
    """
    try:
        with Target(model, device=device) as target, torch.no_grad(), naming_failures():
            classes = target.logits(parts[0].rows([0, 0]).to(device)).shape[1]
    except RobustError:
        raise
    except Exception as error:
        raise ModelError(
            f"model: fails on samples of shape {tuple(parts[0].x.shape[1:])} ({told(error)})"
        ) from error
    for part in parts:
        check_labels(part, classes)
    return classes


class OnDevice:
    """Samples held on the device as they are stored (8-bit images stay 8-bit), scaled per batch."""

    def __init__(self, samples: Samples, device: torch.device) -> None:
        self.samples = samples
        self.y, self.ids = samples.y.to(device), samples.ids.to(device)
        self._held = Samples(samples.x.to(device), self.y, self.ids)

    def __len__(self) -> int:
        return len(self.samples)

    def x(self, rows: Tensor) -> Tensor:
        """Inputs at these positions, (n,) int64 on the device: float32 (n, ...)."""
        return self._held.rows(rows)


def batches(count: int, size: int, seed: int, device: torch.device, least: int = 1) -> tuple[Tensor, ...]:
    """All positions in a random order, in as few batches as will do, of equal size up to one.

    A last batch of a single sample would otherwise stop batch norm. Where some would be smaller than `least`, as of an odd
    count in pairs, there are fewer and larger ones.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(device)
    return order.tensor_split(min(-(-count // size), max(1, count // least)))


def join(train: Samples, extra: Samples | None) -> Samples:
    """Both as one, the extra ones behind, with ids below zero so that random streams stay apart."""
    if extra is None:
        return train
    same = train.x.dtype == extra.x.dtype
    x = [train.x, extra.x] if same else [part.rows(slice(None)) for part in (train, extra)]
    return Samples(torch.cat(x), torch.cat([train.y, extra.y]), torch.cat([train.ids, -1 - extra.ids]))


def mixed_batches(
    count: int, extra: int, size: int, share: float, seed: int, device: torch.device, least: int = 2
) -> tuple[Tensor, ...]:
    """Batches of which a share are extra samples; an epoch sees every other sample once.

    Extra samples come in a random order of their own, again from its start where they are too few.

    Args:
        count, extra: positions 0 to count - 1 are the data, the next `extra` the extra data.
        size: of a batch at most.
        least: samples of a batch, where there are as many, without extra ones.
    """
    if not extra:
        return batches(count, size, seed, device, least)
    own = batches(count, max(1, round(size * (1 - share))), seed, device)
    wanted = [max(1, round(len(part) * share / (1 - share))) for part in own]
    order = torch.randperm(extra, generator=torch.Generator().manual_seed(seed + 1))
    order = order.repeat(-(-sum(wanted) // extra))[: sum(wanted)].to(device) + count
    return tuple(torch.cat(pair) for pair in zip(own, order.split(wanted), strict=True))


def crop_and_flip(x: Tensor, streams: Streams) -> Tensor:
    """Random crops of the image padded by 4, and flips: (N, C, H, W)."""
    n, channels, height, width = x.shape
    padded = nn.functional.pad(x, (4, 4, 4, 4))
    shift = streams.integers((2,), 0, 9)
    columns = torch.arange(width, device=x.device).expand(n, -1)
    flip = streams.child("flip").integers((1,), 0, 2).bool()
    columns = torch.where(flip, width - 1 - columns, columns) + shift[:, 1:]
    rows = torch.arange(height, device=x.device) + shift[:, :1]
    picked = padded.gather(2, rows[:, None, :, None].expand(n, channels, height, width + 8))
    return picked.gather(3, columns[:, None, None, :].expand(n, channels, height, width))
