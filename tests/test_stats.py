"""Intervals and paired tests against published figures and definitions."""

from __future__ import annotations

from math import comb, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from robust.errors import InputError
from robust.stats import interval, mcnemar, paired_interval


@pytest.mark.parametrize(
    ("n", "exact", "wilson"),
    [(100, 10.2, 9.6), (200, 7.1, 6.9), (500, 4.5, 4.4), (1000, 3.15, 3.1), (10_000, 0.98, 0.98)],
)
def test_half_widths_at_one_half(n: int, exact: float, wilson: float) -> None:
    for method, expected in (("exact", exact), ("wilson", wilson)):
        low, high = interval(n // 2, n, method=method)  # type: ignore[arg-type]
        assert 50 * (high - low) == pytest.approx(expected, abs=0.05)


def test_wilson_is_the_score_interval() -> None:
    k, n, z = 7, 40, 1.959963984540054
    p = k / n
    centre, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert interval(k, n) == pytest.approx(
        ((centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n))
    )


@given(st.integers(1, 2000), st.data(), st.floats(0.5, 0.999))
def test_wilson_is_scipys_to_the_last_bit(n: int, data: st.DataObject, confidence: float) -> None:
    """Records hold the interval: a change of its last digit would change their ids."""
    k = data.draw(st.integers(0, n))
    theirs = binomtest(k, n).proportion_ci(confidence_level=confidence, method="wilson")
    assert interval(k, n, confidence=confidence) == (theirs.low, theirs.high)


def test_exact_has_its_tails() -> None:
    k, n = 3, 20
    low, high = interval(k, n, method="exact", confidence=0.9)
    tail_low = sum(comb(n, i) * low**i * (1 - low) ** (n - i) for i in range(k, n + 1))
    tail_high = sum(comb(n, i) * high**i * (1 - high) ** (n - i) for i in range(k + 1))
    assert (tail_low, tail_high) == pytest.approx((0.05, 0.05))


def test_no_trials_say_nothing() -> None:
    assert interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 400), st.data(), st.sampled_from(["wilson", "exact"]))
def test_interval_holds_the_rate_and_widens_with_confidence(n: int, data: st.DataObject, method: Any) -> None:
    k = data.draw(st.integers(0, n))
    low, high = interval(k, n, method=method)
    wide_low, wide_high = interval(k, n, method=method, confidence=0.99)
    assert 0 <= wide_low <= low <= k / n <= high <= wide_high <= 1
    mirrored = interval(n - k, n, method=method)
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_numpy_counts_are_counts() -> None:
    assert interval(np.int64(3), np.int64(9)) == interval(3, 9)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"k": 3, "n": 2}, "k"),
        ({"k": -1, "n": 2}, "k"),
        ({"k": 0, "n": -2}, "n"),
        ({"k": 0.5, "n": 2}, "k"),
        ({"k": 1, "n": 2, "confidence": 1.0}, "confidence"),
        ({"k": 1, "n": 2, "confidence": float("nan")}, "confidence"),
        ({"k": 1, "n": 2, "method": "wald"}, "method"),
    ],
)
def test_interval_refuses(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}: expected"):
        interval(**arguments)


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [(0, 0, 1.0), (10, 10, 1.0), (1, 8, 20 / 512), (0, 5, 2 / 32), (5, 0, 2 / 32), (2, 10, 158 / 4096)],
)
def test_mcnemar_known_values(b: int, c: int, p: float) -> None:
    assert mcnemar(b, c) == pytest.approx(p)


@pytest.mark.parametrize(("b", "c", "named"), [(-1, 3, "b"), (1, 2.5, "c")])
def test_mcnemar_refuses(b: int, c: Any, named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}: expected a count"):
        mcnemar(b, c)


def test_a_confidence_in_words_is_refused() -> None:
    with pytest.raises(InputError, match=r"confidence: expected a fraction within \(0, 1\) .*got '0.95'"):
        paired_interval(1, 2, 10, confidence="0.95")  # type: ignore[arg-type]
