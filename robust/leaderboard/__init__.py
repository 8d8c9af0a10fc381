"""Records of robust accuracy per model and defense: content-addressed files, and the tables made of them."""

from robust.leaderboard.artefacts import examples_bytes, sha256, verdicts_bytes, with_clean
from robust.leaderboard.record import Record
from robust.leaderboard.store import Store
from robust.leaderboard.table import leaderboard_frame, render
from robust.leaderboard.verify import verify

__all__ = [
    "Record",
    "Store",
    "examples_bytes",
    "leaderboard_frame",
    "render",
    "sha256",
    "verdicts_bytes",
    "verify",
    "with_clean",
]
