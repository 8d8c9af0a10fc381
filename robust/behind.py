"""A model from its SPEC behind an input transform, as it is attacked: gradients pass the transform (BPDA)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch

from robust.bpda import BPDA
from robust.defenses import Wrapper, make_defense
from robust.errors import InputError, ModelError
from robust.sources import load, load_weights
from robust.target import Target

_BEHIND: Final = " behind "


def name_behind(spec: str, transform: str) -> str:
    """How a report names the model of a SPEC behind a transform such as "jpeg,quality=50"."""
    return f"{spec}{_BEHIND}{transform}"


def transform_of(name: str) -> Wrapper | None:
    """The transform that a report's model is behind by its name; None where it is behind none that is known."""
    _, behind, text = name.rpartition(_BEHIND)
    if not behind:
        return None
    try:
        return read_transform(text)
    except InputError:  # any model may be called so
        return None


def read_transform(text: str) -> Wrapper:
    """The transform in a text such as "jpeg,quality=50".

    Raises:
        InputError: it names no input transform, or options that it does not have.
        MissingDependencyError: its package cannot be imported.
    """
    name, *pairs = (part.strip() for part in text.split(","))
    if not name:
        raise InputError(f"--transform: expected a transform's name such as jpeg, got {text!r}")
    made = make_defense({"name": name, **_options(pairs)})
    if not isinstance(made, Wrapper) or made.of:
        raise InputError(
            f"--transform: expected an input transform (bit-depth, median, jpeg or one of art), got {name!r}; "
            "what was trained is attacked as it is: --weights"
        )
    return made


def _options(pairs: Iterable[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--transform: expected NAME=VALUE, got {pair!r}")
        found[name.strip().replace("-", "_")] = value.strip()
    return found


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
