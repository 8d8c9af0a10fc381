"""Radii that let everything through: nearly always in pixel values, and meant as a fraction of 255.

They are told on the logger "robust", not as a Python warning: whoever searches the whole box on purpose, under
`-W error` too, is not stopped.
"""

from __future__ import annotations

import logging
import math
from typing import Final

from robust.threat import Threat

_LOG: Final = logging.getLogger("robust")
_PIXELS: Final = 255


def across(threat: Threat, values: int) -> float:
    """The largest distance between two inputs of `values` values in the threat's box, in its norm."""
    width = threat.bounds[1] - threat.bounds[0]
    known = {"linf": width, "l2": width * math.sqrt(values), "l1": width * values, "l0": float(values)}
    return known[threat.norm]


def whole_box(threat: Threat, values: int) -> str:
    """What is to be said of a threat that allows every input of `values` values; empty where it does not."""
    if threat.family is not None or threat.radius < across(threat, values):
        return ""
    low, high = threat.bounds
    said = f"eps {threat.eps} covers the whole box [{low:g}, {high:g}]"
    if threat.norm in ("linf", "l2") and (low, high) == (0, 1) and 1 <= threat.radius <= _PIXELS:
        return f"{said}; did you mean {threat.radius:g}/{_PIXELS}?"
    return f"{said}, {across(threat, values):g} across in {threat.norm}: every input is allowed; give a smaller eps"


def wide_noise(sigma: float, bounds: tuple[float, float]) -> str:
    """As `whole_box`, of Gaussian noise that is wider than the box."""
    low, high = bounds
    if sigma <= high - low:
        return ""
    said = f"sigma {sigma:g} is wider than the box [{low:g}, {high:g}]"
    in_pixels = (low, high) == (0, 1) and sigma <= _PIXELS
    return f"{said}; did you mean {sigma:g}/{_PIXELS} = {sigma / _PIXELS:.3g}?" if in_pixels else said


def tell(said: str) -> None:
    """Log it, where there is anything to say."""
    if said:
        _LOG.warning(said)
