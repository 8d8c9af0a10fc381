"""The learning rate over a training."""

from __future__ import annotations

import math

from robust.defenses.options import TrainingOptions

_TOP = {"one-cycle": 0.25, "cyclic": 0.4}


def rate(options: TrainingOptions, progress: float) -> float:
    """Share of the learning rate at this point of the training, in (0, 1].

    Args:
        progress: share of the training that is done, in [0, 1).
    """
    if options.schedule == "constant":
        return 1.0
    if options.schedule == "step":
        return 0.1 ** sum(progress >= milestone for milestone in options.milestones)
    if options.schedule == "cosine":
        return max((1 + math.cos(math.pi * progress)) / 2, 1e-3)
    top = _TOP[options.schedule]
    return max(progress, 0.01) / top if progress < top else max((1 - progress) / (1 - top), 1e-3)
