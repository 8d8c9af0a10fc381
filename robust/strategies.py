"""Hypothesis strategies: threats, inputs within bounds, perturbations inside a ball.

For properties such as "the prediction is constant over small rotations". Examples shrink towards the
smallest perturbation: its size is drawn as a whole number of steps, and whole numbers shrink to the least.

    from hypothesis import given
    from robust.strategies import perturbations

    @given(perturbations(x, "linf:8/255"))
    def test_prediction_is_stable(delta):
        assert model(x + delta).argmax() == label
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robust.errors import DataError, InputError, MissingDependencyError
from robust.rng import Streams
from robust.threat import NORMS, Threat

try:
    from hypothesis import strategies as st
except Exception as error:
    raise MissingDependencyError(
        f"robust.strategies needs hypothesis ({error}); pip install 'robust-harness[pytest]'"
    ) from error

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["images", "magnitudes", "perturbations", "threats"]

_STEPS = 1000
_SEEDS = 2**16


def threats(
    norms: Sequence[str] = NORMS,
    *,
    largest: float | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> SearchStrategy[Threat]:
    """Threats of these norms; the radius, a fraction of 255 steps (l0: a count), shrinks to the least.

    Args:
        norms: among "linf", "l2", "l1", "l0".
        largest: largest radius in input units; by default the width of the bounds for linf, 10 times it
            for l2, 100 times for l1, and 100 values for l0.
        bounds: of the inputs.

    Raises:
        InputError: no norm, an unknown one, or a largest radius that is not a positive number.
    """
    unknown = [norm for norm in norms if norm not in NORMS]
    if unknown or not norms:
        raise InputError(f"norms: expected some of {', '.join(NORMS)}, got {list(norms)}")
    _positive("largest", largest)
    width = bounds[1] - bounds[0]

    def of(norm: str) -> SearchStrategy[Threat]:
        top = (
            largest
            if largest is not None
            else {"linf": 1, "l2": 10, "l1": 100}.get(norm, 100 / width) * width
        )
        if norm == "l0":
            return st.integers(1, max(1, int(top))).map(lambda k: Threat(norm, str(k), bounds))
        steps = max(1, math.floor(255 * top))
        unit = Fraction(1, 255) if 255 * top >= 1 else Fraction(top)
        return st.integers(1, steps).map(lambda k: Threat(norm, str(k * unit), bounds))

    return st.sampled_from(list(norms)).flatmap(of)


def images(
    shape: Sequence[int] = (3, 32, 32), *, bounds: tuple[float, float] = (0.0, 1.0), levels: int = 256
) -> SearchStrategy[Tensor]:
    """Inputs (1, *shape), float32 within bounds, on an even grid of levels; they shrink to an even grey.

    A draw is a base level, a contrast around it and a texture, so that large images cost no more
    entropy than small ones; contrast 0 is an even image at the base level.

    Args:
        shape: of one input, without the batch axis.
        bounds: lowest and highest value.
        levels: how many values there are between them.

    Raises:
        InputError: a shape with an axis under 1, or fewer than two levels.
    """
    if not shape or any(axis < 1 for axis in shape):
        raise InputError(f"shape: expected positive axes such as (3, 32, 32), got {tuple(shape)}")
    if levels < 2:
        raise InputError(f"levels: expected at least 2, got {levels}")
    low, high = bounds

    def build(contrast: int, texture: int, base: int) -> Tensor:
        noise = Streams(texture, torch.zeros(1, dtype=torch.int64), ("image",)).uniform(tuple(shape), -1, 1)
        level = (base + (noise * contrast).round()).clamp(0, levels - 1)
        return (low + level * ((high - low) / (levels - 1))).clamp(low, high)

    top = levels - 1
    # What comes first shrinks first: the contrast goes before the level does.
    return st.builds(build, st.integers(0, top), st.integers(0, _SEEDS - 1), st.integers(0, top))


def perturbations(x: Tensor, threat: str | Threat, *, steps: int = _STEPS) -> SearchStrategy[Tensor]:
    """Deltas of the shape of x with x + delta inside the threat; they shrink to the least size that fails.

    A draw is a direction (random, or along the axes of few values) and a size in steps of eps / steps.
    Size 0 is no perturbation, size `steps` touches the ball, where the box lets it.

    Args:
        x: a batch (N, ...) of inputs within the threat's bounds; each sample gets its own direction.
        threat: "linf:8/255", or a Threat.
        steps: how fine the sizes are.

    Raises:
        DataError: x is no batch of finite values within the bounds.
        InputError: steps < 1.
    """
    threat = Threat.parse(threat)
    if not isinstance(x, Tensor):
        raise DataError(f"x: expected a batch of inputs, a tensor (N, ...), got {type(x).__name__} {x!r:.40}")
    if x.dim() < 2 or not bool(threat.contains(x, x).all()):
        raise DataError(
            f"x: expected a batch (N, ...) of finite values within {threat.bounds}, got shape {tuple(x.shape)}"
        )
    if steps < 1:
        raise InputError(f"steps: expected at least 1, got {steps}")
    ids = torch.arange(len(x))
    values = x[0].numel()

    def build(size: int, sparse: bool, seed: int) -> Tensor:
        streams = Streams(seed, ids, ("perturbation", threat.norm))
        radius = threat.radius * size / steps
        direction = _direction(streams, x.flatten(1).shape[1], threat.norm, sparse=sparse)
        if threat.norm == "l0":
            count = math.floor(radius)
            keep = direction.abs().argsort(1, descending=True).argsort(1) < min(count, values)
            low, high = threat.bounds
            delta = torch.where(keep, direction.sign() * (high - low), 0.0)
        else:
            delta = direction * radius
        moved = (x + delta.view_as(x).to(x)).clamp(*threat.bounds)
        return moved - x

    return st.builds(build, st.integers(0, steps), st.booleans(), st.integers(0, _SEEDS - 1))


def magnitudes(limit: float, *, steps: int = _STEPS) -> SearchStrategy[float]:
    """Numbers in [-limit, limit] that shrink to the one nearest zero: angles, shifts, gains.

    Args:
        limit: largest absolute value, positive.
        steps: how many values there are between zero and it.

    Raises:
        InputError: a limit that is not a positive number, or steps < 1.
    """
    _positive("limit", limit)
    if steps < 1:
        raise InputError(f"steps: expected at least 1, got {steps}")
    return st.builds(
        lambda size, negative: (-1 if negative else 1) * limit * size / steps,
        st.integers(0, steps),
        st.booleans(),
    )


def _direction(streams: Streams, values: int, norm: str, *, sparse: bool) -> Tensor:
    """Rows of norm one, (N, values): dense, or along a few axes; l0: only order and signs count."""
    noise = streams.normal((values,))
    if sparse:
        few = max(1, values // 50)
        keep = streams.child("sparse").uniform((values,)).argsort(1).argsort(1) < few
        noise = torch.where(keep, noise, 0.0)
    if norm == "linf":
        return noise.sign()
    if norm == "l0":
        return noise
    size = noise.norm(dim=1, keepdim=True) if norm == "l2" else noise.abs().sum(1, keepdim=True)
    return noise / size.clamp_min(1e-30)


def _positive(name: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise InputError(f"{name}: expected a positive number, got {value!r}")
