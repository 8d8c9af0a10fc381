"""Labels for extra data that has none: a trained model's predictions."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import nn

from robust.failures import naming_failures
from robust.sources import Samples
from robust.target import Target

_BATCH: Final = 256


def pseudo_labelled(samples: Samples, teacher: nn.Module | Target, *, device: str = "auto") -> Samples:
    """The same samples with the class that the teacher gives each (Carmon et al. 2019, arXiv 1905.13736).

    Args:
        samples: their labels are not looked at.
        teacher: gives logits (N, C); best a model of standard training, as in the paper. It stays as it was.

    Raises:
        ModelError: the teacher fails on the samples.
    """
    given = teacher if isinstance(teacher, Target) else Target(teacher, device=device)
    with given as target, torch.no_grad(), naming_failures():
        parts = [
            target.logits(samples.rows(slice(start, start + _BATCH)).to(target.device)).argmax(1).cpu()
            for start in range(0, len(samples), _BATCH)
        ]
    return replace(samples, y=torch.cat(parts), class_names=None)
