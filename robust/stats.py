"""Intervals and paired tests."""

from __future__ import annotations

from typing import Final, Literal, get_args

from robust.errors import InputError

Method = Literal["wilson", "exact"]
_METHODS: Final = get_args(Method)


def interval(k: int, n: int, *, confidence: float = 0.95, method: Method = "wilson") -> tuple[float, float]:
    """Two-sided confidence interval of a rate of k in n, from scipy's binomtest.

    Args:
        k: successes, 0 <= k <= n.
        n: trials. For n = 0 nothing is known: the interval is (0, 1).
        confidence: coverage, within (0, 1).
        method: "wilson" (score interval, Wilson 1927) or "exact" (Clopper & Pearson 1934).

    Returns:
        (low, high), both fractions in [0, 1].

    Raises:
        InputError: an argument out of range.
    """
    from scipy.stats import binomtest

    k, n = _count("k", k), _count("n", n)
    if k > n:
        raise InputError(f"k: expected at most n = {n}, got {k}; successes are among the trials")
    if not 0 < confidence < 1:
        raise InputError(f"confidence: expected a fraction within (0, 1) such as 0.95, got {confidence!r}")
    if method not in _METHODS:
        raise InputError(f"method: expected one of {', '.join(_METHODS)}, got {method!r}")
    if n == 0:
        return 0.0, 1.0
    found = binomtest(k, n).proportion_ci(confidence_level=confidence, method=method)
    return float(found.low), float(found.high)


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p-value that two models do equally well on the same samples (McNemar 1947).

    Args:
        b: samples that only the first model gets right, >= 0.
        c: samples that only the second gets right, >= 0.

    Returns:
        p in (0, 1]; 1 where no sample tells them apart.

    Raises:
        InputError: a count that is negative or no integer.
    """
    from scipy.stats import binomtest

    b, c = _count("b", b), _count("c", c)
    return float(binomtest(b, b + c).pvalue) if b + c else 1.0


def _count(name: str, value: int) -> int:
    try:
        number = value.__index__()  # takes numpy's integers, refuses 3.0
    except AttributeError:
        number = -1
    if number < 0:
        raise InputError(f"{name}: expected a count, an integer >= 0, got {value!r}")
    return number
