"""A model from its SPEC behind an input transform, as it is attacked: gradients pass the transform (BPDA)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from robust.bpda import BPDA
from robust.defenses import Wrapper
from robust.errors import InputError, ModelError
from robust.sources import load, load_weights
from robust.target import Target


def load_behind(wrapper: Wrapper, spec: str, weights: str | Path | None = None, **options: Any) -> Target:
    """The model that a SPEC names behind a transform.

    Args:
        weights: of the model, or of both, as `robust.harden` saves them.
        options: of `robust.load`.

    Raises:
        InputError and its kin: as `robust.load` does; weights that were saved with another setting of the transform.
    """
    try:
        target = load(spec, weights, **options)
    except ModelError:
        if weights is None:
            raise
        target = load(spec, **options)
        if not _read_both(wrapper, target, weights):
            raise
    return BPDA(wrapper.transform(target.bounds), target)


def _read_both(wrapper: Wrapper, target: Target, weights: str | Path) -> bool:
    """Read weights of the transform and the model into the target's model; False where they are not that."""
    whole = wrapper.deployed(target.as_module(), bounds=target.bounds)
    front = {name: t.clone() for name, t in whole.state_dict().items() if name.startswith("front.")}
    try:
        load_weights(whole, weights)
    except ModelError:
        return False
    if not all(torch.equal(t, whole.state_dict()[name]) for name, t in front.items()):
        raise InputError(
            f"--transform: {weights} was saved with other options of {wrapper.name}; give those that it was hardened with"
        )
    return True
