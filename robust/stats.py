"""Intervals and paired tests."""

from __future__ import annotations

from typing import Literal

from robust.errors import InputError


def interval(
    k: int, n: int, *, confidence: float = 0.95, method: Literal["wilson", "exact"] = "wilson"
) -> tuple[float, float]:
    """Confidence interval of a rate of k in n (scipy's binomtest); (0, 1) for n = 0."""
    from scipy.stats import binomtest

    if not 0 <= k <= n:
        raise InputError(f"k, n: expected 0 <= k <= n, got {k} and {n}")
    if n == 0:
        return 0.0, 1.0
    found = binomtest(k, n).proportion_ci(confidence_level=confidence, method=method)
    return float(found.low), float(found.high)
