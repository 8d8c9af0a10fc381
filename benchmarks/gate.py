"""How many samples the sequential gate takes and how often it errs; prints the tables of docs/gate.md.

python benchmarks/gate.py
"""

from __future__ import annotations

from tabulate import tabulate

from robust.gate.plan import plan
from robust.stats import SequentialTest

THETA, POPULATION = 0.45, 10_000


def samples() -> str:
    rows = []
    for truth in (0.0, 0.2, 0.35, 0.4, 0.43, 0.47, 0.5, 0.55, 0.6, 0.8):
        found = plan(THETA, truth, population=POPULATION)
        cells = (found.mean_samples, found.median_samples, 100 * found.passed, 100 * found.failed)
        rows.append((f"{truth:.0%}", *(f"{cell:.4g}" for cell in cells)))
    heads = ("robust accuracy", "mean samples", "median", "% pass", "% fail")
    return tabulate(rows, heads, tablefmt="github")


def errors() -> str:
    rows = []
    for theta, population, confidence in (
        (0.45, 10_000, 0.95),
        (0.45, 500, 0.95),
        (0.9, 1000, 0.95),
        (0.05, 1000, 0.95),
        (0.5, 64, 0.95),
        (0.45, 1000, 0.99),
    ):
        needed = SequentialTest(theta, population, confidence).needed
        enough = plan(theta, needed / population, population=population, confidence=confidence)
        too_few = plan(theta, (needed - 1) / population, population=population, confidence=confidence)
        shares = (1 - confidence, enough.failed, too_few.passed)
        rows.append((f"{theta:.0%}", population, *(f"{100 * share:.2g} %" for share in shares)))
    heads = ("asked for", "samples in the data", "allowed", "false fail", "false pass")
    return tabulate(rows, heads, tablefmt="github")


if __name__ == "__main__":
    print(f"theta = {THETA:.0%}, {POPULATION} samples in the data, 95 % confidence, 10,000 runs\n")
    print(samples(), "\n\nAt the boundary, 10,000 runs each:\n", errors(), sep="\n")
