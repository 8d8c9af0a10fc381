"""Adversarial robustness of PyTorch classifiers: attacks, defenses, audited verdicts, a leaderboard.

The public names. They load on first use, so that `import robust` and the command line start at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robust import attacks as attacks
    from robust import defenses as defenses
    from robust import leaderboard as leaderboard
    from robust.bpda import BPDA as BPDA
    from robust.corruptions import corruption_accuracy as corruption_accuracy
    from robust.eot import EOT as EOT
    from robust.errors import RobustError as RobustError
    from robust.evaluation import evaluate as evaluate
    from robust.gate.check import assert_robust as assert_robust
    from robust.hardening import harden as harden
    from robust.report import Report as Report
    from robust.smoothing import SmoothedTarget as SmoothedTarget
    from robust.smoothing import certify as certify
    from robust.sources import load as load
    from robust.target import Target as Target
    from robust.threat import L0 as L0
    from robust.threat import L1 as L1
    from robust.threat import L2 as L2
    from robust.threat import Corruptions as Corruptions
    from robust.threat import Linf as Linf
    from robust.threat import Patch as Patch
    from robust.threat import Spatial as Spatial
    from robust.threat import Threat as Threat

    __version__: str

_HOMES = {
    "RobustError": "robust.errors",
    "evaluate": "robust.evaluation",
    "assert_robust": "robust.gate.check",
    "harden": "robust.hardening",
    "certify": "robust.smoothing",
    "SmoothedTarget": "robust.smoothing",
    "Report": "robust.report",
    "load": "robust.sources",
    "BPDA": "robust.bpda",
    "EOT": "robust.eot",
    "Target": "robust.target",
    "Threat": "robust.threat",
    "Linf": "robust.threat",
    "Spatial": "robust.threat",
    "Corruptions": "robust.threat",
    "Patch": "robust.threat",
    "corruption_accuracy": "robust.corruptions",
    "L2": "robust.threat",
    "L1": "robust.threat",
    "L0": "robust.threat",
}
_PACKAGES = ("attacks", "defenses", "leaderboard")

__all__ = ["__version__", *sorted([*_HOMES, *_PACKAGES])]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("robust-harness")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name in _PACKAGES:
        return import_module(f"robust.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'robust' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
