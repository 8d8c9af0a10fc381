"""Named, versioned attack suites: ordered lists of attacks with their parameters.

`named` has the suites, `linf`, `l2`, `l1` and `l0` what the larger ones run in a norm; `resolve` gives a suite's stages.
"""

from robust.suites.named import SUITES, VERSIONS, Suite
from robust.suites.resolve import AND_FMN, resolve, resolve_below, resolve_minimizing, version_of
from robust.suites.stage import Stage

__all__ = [
    "AND_FMN",
    "SUITES",
    "VERSIONS",
    "Stage",
    "Suite",
    "resolve",
    "resolve_below",
    "resolve_minimizing",
    "version_of",
]
