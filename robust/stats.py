"""Intervals, paired tests and the sequential gate."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from robust.errors import InputError

Method = Literal["wilson", "exact"]
Outcome = Literal["pass", "fail", "undecided"]
_METHODS: Final = get_args(Method)
Floats = npt.NDArray[np.floating[Any]]


def interval(k: int, n: int, *, confidence: float = 0.95, method: Method = "wilson") -> tuple[float, float]:
    """Two-sided confidence interval of a rate of k in n.

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
    k, n = _count("k", k), _count("n", n)
    if k > n:
        raise InputError(f"k: expected at most n = {n}, got {k}; successes are among the trials")
    check_fraction("confidence", confidence, "0.95")
    if method not in _METHODS:
        raise InputError(f"method: expected one of {', '.join(_METHODS)}, got {method!r}")
    if n == 0:
        return 0.0, 1.0
    if method == "wilson":
        return _wilson(k, n, confidence)
    from scipy.stats import binomtest

    found = binomtest(k, n).proportion_ci(confidence_level=confidence, method="exact")
    return float(found.low), float(found.high)


def _wilson(k: int, n: int, confidence: float) -> tuple[float, float]:
    """The same to the last bit as scipy's, which takes a p-value along that costs a hundred times as much."""
    from scipy.special import ndtri

    p, z = k / n, float(ndtri(0.5 + 0.5 * confidence))
    scale = 2 * (n + z**2)
    center = (2 * n * p + z**2) / scale
    delta = z / scale * math.sqrt(4 * n * p * (1 - p) + z**2)
    return (0.0 if k == 0 else center - delta), (1.0 if k == n else center + delta)


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


def paired_interval(b: int, c: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of the difference of two paired rates, (b - c) / n (Tango 1998).

    It contains 0 exactly where McNemar's statistic (b - c)^2 / (b + c) does not reach significance.

    Args:
        b: pairs in which only the first succeeds, >= 0.
        c: pairs in which only the second succeeds, >= 0.
        n: pairs in all, >= b + c. For n = 0 nothing is known: the interval is (-1, 1).
        confidence: coverage, within (0, 1).

    Raises:
        InputError: an argument out of range.
    """
    from scipy.optimize import bisect as root
    from scipy.stats import norm

    b, c, n = _count("b", b), _count("c", c), _count("n", n)
    if b + c > n:
        raise InputError(
            f"n: expected at least b + c = {b + c}, got {n}; the pairs that differ are among all"
        )
    check_fraction("confidence", confidence, "0.95")
    if n == 0:
        return -1.0, 1.0
    z = float(norm.ppf(0.5 + confidence / 2))
    middle = (b - c) / n

    def excess(d: float, side: float) -> float:
        """Difference seen, less that of d, less `side` times z standard errors under d."""
        linear = -b - c + (2 * n - b + c) * d
        only_c = (max(linear**2 + 8 * n * c * d * (1 - d), 0.0) ** 0.5 - linear) / (4 * n)
        variance = max(n * (2 * only_c + d * (1 - d)), 0.0)
        return b - c - n * d - side * z * variance**0.5

    step = 1e-9  # where no pair differs, the standard error at the middle itself is 0: a root that is none
    low = -1.0 if excess(-1.0, 1) <= 0 else root(excess, -1.0, middle - step, args=(1,), xtol=1e-12)
    high = 1.0 if excess(1.0, -1) >= 0 else root(excess, middle + step, 1.0, args=(-1,), xtol=1e-12)
    return float(low), float(high)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for being several (Holm 1979): reject those under alpha, and at most a share alpha
    of such families has any wrong rejection. In the order given."""
    adjusted, floor = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda at: p[at])):
        floor = max(floor, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = floor
    return adjusted


@dataclass(frozen=True)
class SequentialTest:
    """Test of "at least theta of these N samples are successes", valid however often one looks.

    Samples are drawn without replacement, in a random order that does not depend on them. The number K of
    successes among all N is what is unknown; the likelihood of k successes in the first n is

        L(K) = K! / (K - k)!  *  (N - K)! / (N - K - n + k)!        (up to a factor without K).

    For each claim, "K is large enough" and "K is too small", the evidence is the mean of L over the claim's
    K, weighted by a Jeffreys prior cut off at theta, over the largest L among all other K. Were one of those
    true, this ratio would be at most a nonnegative martingale of mean one, so that it ever reaches 1 / alpha
    with probability alpha at most (Ville 1939; mixtures: Robbins 1970; without replacement: Waudby-Smith &
    Ramdas 2020, arXiv 2006.04347). Each of the two wrong decisions thus has probability 1 - confidence at
    most. All N samples seen, one of the claims is certain.

    Args:
        theta: the share asked for, within (0, 1).
        population: N, the number of samples there are.
        confidence: 1 - alpha, within (0, 1).

    Raises:
        InputError: an argument out of range.
    """

    theta: float
    population: int
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_fraction("theta", self.theta, "0.45")
        check_fraction("confidence", self.confidence, "0.95")
        if _count("population", self.population) == 0:
            raise InputError("population: expected at least one sample, got 0")

    @property
    def needed(self) -> int:
        """Fewest successes that are theta of the population."""
        return math.ceil(round(self.theta * self.population, 9))

    def decide(self, k: int, n: int) -> Outcome:
        """What k successes among the first n samples show."""
        if self.shows_enough(k, n):
            return "pass"
        return "fail" if self.shows_too_few(k, n) else "undecided"

    def shows_enough(self, k: int, n: int) -> bool:
        """Whether k successes in n are evidence enough for a share of theta or more; grows with k."""
        return self._evidence(k, n, slice(self.needed, None)) >= self._threshold

    def shows_too_few(self, k: int, n: int) -> bool:
        """Whether k successes in n are evidence enough for a share under theta; falls with k."""
        return self._evidence(k, n, slice(0, self.needed)) >= self._threshold

    def boundary(self, n: int) -> tuple[int, int]:
        """After n samples: most successes that fail (-1: none does), fewest that pass (n + 1: none do)."""
        fails = _first(n + 1, lambda k: not self.shows_too_few(k, n)) - 1
        return fails, _first(n + 1, lambda k: self.shows_enough(k, n))

    def interval(self, k: int, n: int) -> tuple[float, float]:
        """Shares that k successes in n leave possible: holds the true one at every look at once.

        The prior-posterior ratio sequence of Waudby-Smith & Ramdas 2020. (low, high), fractions.
        """
        likelihood = self._likelihood(k, n)
        mixture = _log_sum(likelihood + self._prior)
        left = np.flatnonzero(mixture - likelihood < self._threshold)
        return float(left[0]) / self.population, float(left[-1]) / self.population

    @property
    def _threshold(self) -> float:
        return -math.log1p(-self.confidence)

    def _evidence(self, k: int, n: int, claim: slice) -> float:
        """Logarithm of the evidence for the claim; infinite where nothing else is possible."""
        likelihood, prior = self._likelihood(k, n), self._prior[claim]
        others = np.delete(likelihood, np.arange(len(likelihood))[claim])
        claimed = _log_sum(likelihood[claim] + prior - _log_sum(prior))
        if claimed == -math.inf:
            return -math.inf
        return float(claimed - others.max())

    def _likelihood(self, k: int, n: int) -> Floats:
        """log L(K) for K = 0 .. N; -inf where k of n cannot be."""
        k, n = _count("k", k), _count("n", n)
        if not k <= n <= self.population:
            raise InputError(f"k, n: expected k <= n <= population = {self.population}, got k = {k}, n = {n}")
        size, table = self.population, self._log_factorial
        out = np.full(size + 1, -np.inf)
        missed = n - k
        possible = slice(k, size - missed + 1)
        wins, losses = table[possible], table[size - np.arange(size + 1)[possible]]
        out[possible] = wins - table[: size - n + 1] + losses - table[: size - n + 1][::-1]
        return out

    @cached_property
    def _log_factorial(self) -> Floats:
        from scipy.special import gammaln

        table: Floats = gammaln(np.arange(self.population + 1) + 1.0)
        return table

    @cached_property
    def _prior(self) -> Floats:
        """log of the beta-binomial(1/2, 1/2) weights of K = 0 .. N."""
        from scipy.special import betaln

        table, size = self._log_factorial, self.population
        wins = np.arange(size + 1)
        choose = table[size] - table - table[::-1]
        weights: Floats = choose + betaln(wins + 0.5, size - wins + 0.5) - betaln(0.5, 0.5)
        return weights


def _log_sum(terms: Floats) -> float:
    top = float(terms.max())
    return top if top == -math.inf else top + math.log(float(np.exp(terms - top).sum()))


def _first(stop: int, holds: Callable[[int], bool]) -> int:
    """The least number in [0, stop) that holds, where all above one that holds do; `stop` if none does."""
    return bisect.bisect_left(range(stop), True, key=holds)


def check_fraction(name: str, value: object, example: str) -> None:
    """Refuse what is no number within (0, 1), by the argument's name."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise InputError(f"{name}: expected a fraction within (0, 1) such as {example}, got {value!r}")


def _count(name: str, value: int) -> int:
    try:
        number = value.__index__()  # takes numpy's integers, refuses 3.0
    except AttributeError:
        number = -1
    if number < 0:
        raise InputError(f"{name}: expected a count, an integer >= 0, got {value!r}")
    return number
