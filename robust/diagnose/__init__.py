"""Checks that say whether the number can be trusted.

`preflight` looks at the model before the passes of the attacks are spent, `review` at what the attacks
saw; `unbounded` searches where nothing can hold; `CHECKS` names every check with its rule, what it detects and what to do.
"""

from robust.diagnose.checks import AUDIT, CHECKS, CRASH, NON_FINITE, Check, Finding, verdict
from robust.diagnose.preflight import PREFLIGHT_SAMPLES, Preflight, preflight
from robust.diagnose.review import review
from robust.diagnose.unbounded import unbounded

__all__ = [
    "AUDIT", "CHECKS", "CRASH", "NON_FINITE", "PREFLIGHT_SAMPLES", "Check", "Finding", "Preflight",
    "preflight", "review", "unbounded", "verdict",
]  # fmt: skip
