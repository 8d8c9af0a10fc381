"""Records of robust accuracy per model and defense: content-addressed files, and the tables made of them."""

from robust.leaderboard.artefacts import examples_bytes, sha256, verdicts_bytes, with_clean
from robust.leaderboard.compare import Comparison, compare, comparison_text
from robust.leaderboard.rank import survivors
from robust.leaderboard.record import Record
from robust.leaderboard.reference import Reference
from robust.leaderboard.robustbench import read_robustbench
from robust.leaderboard.store import Store
from robust.leaderboard.table import choose, leaderboard_frame, render
from robust.leaderboard.verify import verify

__all__ = [
    "Comparison",
    "Record",
    "Reference",
    "Store",
    "choose",
    "compare",
    "comparison_text",
    "examples_bytes",
    "leaderboard_frame",
    "read_robustbench",
    "render",
    "sha256",
    "survivors",
    "verdicts_bytes",
    "verify",
    "with_clean",
]
