"""The sequential gate: error rates and sample numbers by simulation, exactness on small populations."""

from __future__ import annotations

from functools import cache
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robust.errors import InputError
from robust.gate.plan import Plan, looks, plan
from robust.stats import SequentialTest

RUNS = 10_000


@cache
def at(truth: float, theta: float = 0.45, population: int = 10_000, confidence: float = 0.95) -> Plan:
    return plan(theta, truth, population=population, confidence=confidence, runs=RUNS)


@pytest.mark.parametrize(
    ("truth", "samples"),
    [(0.0, 20), (0.2, 39), (0.35, 247), (0.4, 1040), (0.5, 1100), (0.55, 268), (0.6, 120)],
)
def test_mean_samples_to_a_decision(truth: float, samples: float) -> None:
    found = at(truth)
    assert found.mean_samples <= samples
    right = found.passed if truth > 0.45 else found.failed
    assert right > 0.995
    assert found.undecided == 0


# Three standard errors of a share of 5 % (1 %) in 10,000 runs are .65 (.3) points.
@pytest.mark.parametrize(
    ("theta", "population", "confidence", "most"),
    [
        (0.45, 10_000, 0.95, 0.0565),
        (0.45, 500, 0.95, 0.0565),
        (0.9, 1000, 0.95, 0.0565),
        (0.05, 1000, 0.95, 0.0565),
        (0.5, 64, 0.95, 0.0565),
        (0.45, 1000, 0.99, 0.013),
    ],
)
def test_error_rates_hold_where_they_are_largest(
    theta: float, population: int, confidence: float, most: float
) -> None:
    needed = SequentialTest(theta, population, confidence).needed
    enough = at(needed / population, theta, population, confidence)
    too_few = at((needed - 1) / population, theta, population, confidence)
    assert 0 < enough.failed <= most
    assert 0 < too_few.passed <= most


def test_error_rates_hold_when_looking_after_every_sample() -> None:
    population = 300
    every = range(1, population + 1)
    assert plan(0.5, 150 / population, population=population, at=every).failed <= 0.0565
    assert plan(0.5, 149 / population, population=population, at=every).passed <= 0.0565


def test_interval_holds_the_truth_at_every_look_at_once() -> None:
    population, survivors, runs = 200, 90, 2_000
    test = SequentialTest(0.5, population)
    draw = np.random.default_rng(1)
    counts = np.array([draw.permutation(np.arange(population) < survivors) for _ in range(runs)]).cumsum(1)
    missed = np.zeros(runs, dtype=bool)
    for n in range(5, population + 1, 5):
        for k in np.unique(counts[:, n - 1]):
            low, high = test.interval(int(k), n)
            if not low <= survivors / population <= high:
                missed |= counts[:, n - 1] == k
    assert missed.mean() <= 0.05 + 3 * 0.0049


def test_evidence_is_the_ratio_of_likelihoods_by_counting() -> None:
    """Against the definition, by enumeration of all orders of a population of six."""
    population, theta, confidence = 6, 0.5, 0.6
    test = SequentialTest(theta, population, confidence)
    weights = np.exp([float(v) for v in test._prior])
    assert weights.sum() == pytest.approx(1)
    chance = {}
    for survivors in range(population + 1):
        orders = [o for o in product((0, 1), repeat=population) if sum(o) == survivors]
        for n, start in [(n, o[:n]) for n in range(population + 1) for o in orders]:
            key = (survivors, n, start)
            chance[key] = chance.get(key, 0) + 1 / len(orders)
    for n in range(1, population + 1):
        for k in range(n + 1):
            start = (1,) * k + (0,) * (n - k)
            given = np.array([chance.get((s, n, start), 0.0) for s in range(population + 1)])
            claim = np.arange(population + 1) >= 3
            with np.errstate(divide="ignore"):
                enough = (given * weights)[claim].sum() / weights[claim].sum() / given[~claim].max()
                too_few = (given * weights)[~claim].sum() / weights[~claim].sum() / given[claim].max()
            expected = "pass" if enough >= 2.5 else "fail" if too_few >= 2.5 else "undecided"
            assert test.decide(k, n) == expected, (k, n)


def test_everything_seen_is_decided_exactly() -> None:
    test = SequentialTest(0.45, 20, 0.999999)
    assert test.needed == 9
    assert [test.decide(k, 20) for k in (0, 8, 9, 20)] == ["fail", "fail", "pass", "pass"]
    assert test.decide(9, 9) == "pass"  # the rest cannot change it
    assert test.decide(0, 12) == "fail"
    assert test.interval(8, 20) == (0.4, 0.4)


@pytest.mark.parametrize(
    ("theta", "population", "needed"), [(0.45, 10_000, 4500), (0.07, 100, 7), (1 / 3, 9, 3)]
)
def test_needed_survives_rounding(theta: float, population: int, needed: int) -> None:
    assert SequentialTest(theta, population).needed == needed


@settings(max_examples=40)
@given(st.integers(2, 120), st.floats(0.01, 0.99), st.floats(0.5, 0.999), st.data())
def test_decisions_are_monotone_and_never_both(
    population: int, theta: float, confidence: float, data: st.DataObject
) -> None:
    test = SequentialTest(theta, population, confidence)
    n = data.draw(st.integers(1, population))
    fails, passes = test.boundary(n)
    decided = [test.decide(k, n) for k in range(n + 1)]
    expected = ["fail" if k <= fails else "pass" if k >= passes else "undecided" for k in range(n + 1)]
    assert decided == expected
    assert not any(test.shows_enough(k, n) and test.shows_too_few(k, n) for k in range(n + 1))
    k = data.draw(st.integers(0, n))
    low, high = test.interval(k, n)
    assert 0 <= low <= k / n <= high + 1 / population
    assert low <= high <= 1


@pytest.mark.parametrize("limit", [1, 19, 20, 21, 64, 10_000])
def test_looks_end_at_the_limit(limit: int) -> None:
    counts = list(looks(limit))
    assert counts[0] == min(20, limit)
    assert counts[-1] == limit
    assert all(before < after for before, after in pairwise(counts))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truth": 2}, r"truth: expected a share in \[0, 1\]"),
        ({"max_samples": 200}, r"max_samples: expected 1 to the population \(100\), got 200"),
        ({"runs": 0}, "runs: expected at least 1, got 0"),
    ],
)
def test_bad_arguments_of_a_simulation_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(**{"at_least": 0.5, "truth": 0.6, "population": 100, "runs": 10, **options})  # type: ignore[arg-type]


def test_too_few_samples_stay_undecided() -> None:
    assert plan(0.45, 0.47, population=10_000, max_samples=100, runs=500).undecided > 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 10), "theta: expected a fraction"),
        ((1, 10), "theta: expected a fraction"),
        ((45, 10), "theta: expected a fraction"),
        (("0.5", 10), "theta: expected a fraction"),
        ((float("nan"), 10), "theta: expected a fraction"),
        ((0.5, 0), "population: expected at least one"),
        ((0.5, 10, 95), "confidence: expected a fraction"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[float, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SequentialTest(*arguments)


@pytest.mark.parametrize(("k", "n"), [(3, 2), (1, 11)])
def test_impossible_counts_are_refused(k: int, n: int) -> None:
    with pytest.raises(InputError, match="population = 10"):
        SequentialTest(0.5, 10).decide(k, n)
