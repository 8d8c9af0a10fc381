"""Checks that say whether the number can be trusted.

`preflight` looks at the model before the passes of the attacks are spent, `review` at what the attacks saw,
and the probes search on a few samples: `BRIEF` after every evaluation, `FULL` where all are asked for.
`CHECKS` names every check with its rule, what it detects and what to do.
"""

from robust.diagnose.answers import Preflight, afterwards, in_company
from robust.diagnose.ascent import ascents
from robust.diagnose.binarization import binarization
from robust.diagnose.checks import (
    AUDIT,
    BATCH_DEPENDENT,
    CHECKS,
    CRASH,
    DETACHED,
    INTERRUPTED,
    NO_START,
    NON_FINITE,
    RANDOMIZED,
    STATEFUL,
    Check,
    Finding,
    verdict,
)
from robust.diagnose.checks import page as checks_page
from robust.diagnose.preflight import PREFLIGHT_SAMPLES, preflight
from robust.diagnose.probes import (
    NOISE_DRAWS,
    PROBED,
    Subject,
    broken_at_random,
    doubled_budget,
    monotone,
    not_converged,
    random_noise,
    step_size,
    unbounded,
)
from robust.diagnose.review import review, review_access, review_passes, spared
from robust.diagnose.transfer import transfer

BRIEF = (unbounded, transfer, ascents)
FULL = (*BRIEF, not_converged, doubled_budget, step_size, monotone, random_noise, binarization)

__all__ = [
    "AUDIT",
    "BATCH_DEPENDENT",
    "BRIEF",
    "CHECKS",
    "CRASH",
    "DETACHED",
    "FULL",
    "INTERRUPTED",
    "NOISE_DRAWS",
    "NON_FINITE",
    "NO_START",
    "PREFLIGHT_SAMPLES",
    "PROBED",
    "RANDOMIZED",
    "STATEFUL",
    "Check",
    "Finding",
    "Preflight",
    "Subject",
    "afterwards",
    "broken_at_random",
    "checks_page",
    "in_company",
    "preflight",
    "review",
    "review_access",
    "review_passes",
    "spared",
    "verdict",
]  # fmt: skip
