"""A small plan of a sweep, and what counts the work that is done for it."""

from __future__ import annotations

import tomllib
from pathlib import Path

from robust.sweep import Event, SweepConfig, SweepResult

PLAN = """
data = "builtin:digits"
train = "builtin:digits:train"
limit = 60
threats = ["linf:0.05", "l2:0.5"]
suites = ["quick"]
seeds = [0]
shard = 25

[[models]]
spec = "builtin:digits-mlp"

[[defenses]]
name = "none"
training = {epochs = 2}

[[defenses]]
name = "pgd-at"
threat = "linf:0.05"
options = {steps = 2}
training = {epochs = 2}
"""


def read_plan() -> SweepConfig:
    return SweepConfig.model_validate(tomllib.loads(PLAN))


class Count:
    """Counts what is computed, and can be told to break off at a shard."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.trained = self.shards = self.cells = self.reused = 0
        self.stop_at = stop_at

    def __call__(self, event: Event) -> None:
        self.trained += event.kind == "trained"
        self.shards += event.kind == "shard"
        self.cells += event.kind == "cell"
        self.reused += event.kind == "reused" and event.fields["what"] == "cell"
        if event.kind == "progress" and self.shards == self.stop_at:
            raise KeyboardInterrupt


def ids(result: SweepResult) -> list[str]:
    return sorted(record.id for record in result.records)


def tables(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "verdicts").iterdir()}
