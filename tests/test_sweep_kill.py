"""A driver that is killed at any moment loses what was in hand, and nothing else."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

PLAN = """
data = "builtin:digits"
train = "builtin:digits:train"
limit = 60
shard = 20
batch_size = 16
threats = ["linf:0.05", "l2:0.5"]
suites = ["quick"]
seeds = [0, 1]

[[models]]
spec = "builtin:digits-mlp"

[[defenses]]
name = "none"
training = {epochs = 3}
"""


def sweep(folder: Path, out: str, *options: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "robust",
        "sweep",
        "plan.toml",
        "--out",
        out,
        "--device",
        "cpu",
        *options,
    ]
    return subprocess.Popen(
        [*command, "--threads", "1"], cwd=folder, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def kill_until_done(folder: Path, out: str, kills: int, seed: int) -> list[int]:
    """Kill the driver at random moments of its work, restarting it each time; then let it finish.

    Returns:
        Lines of the log after each kill.
    """
    draw, lines, log = random.Random(seed), [], folder / out / "events.jsonl"
    for _ in range(kills):
        process = sweep(folder, out)
        seen = length(log)
        while process.poll() is None and length(log) == seen:  # it has begun to work
            time.sleep(0.02)
        time.sleep(draw.random() * 0.4)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        lines.append(length(log))
    process = sweep(folder, out)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return lines


def length(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def records(out: Path) -> dict[str, str]:
    """Every record's content but for times, by its file's name."""
    found = {}
    for path in (out / "records").glob("*.json"):
        content = json.loads(path.read_text())["record"]
        for key in ("created", "command"):
            content.pop(key)
        found[path.name] = json.dumps(_timeless(content), sort_keys=True)
    return found


def _timeless(content: object) -> object:
    if isinstance(content, dict):
        return {key: _timeless(value) for key, value in content.items() if key != "seconds"}
    return [_timeless(value) for value in content] if isinstance(content, list) else content


def files(out: Path, folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / folder).iterdir()}


def computed(out: Path) -> Counter[str]:
    """How often each shard and each training came back."""
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return Counter(event["task"] for event in events if event["event"] in ("shard", "trained"))


def check_equal(killed: Path, whole: Path) -> None:
    assert records(killed) == records(whole)
    assert files(killed, "verdicts") == files(whole, "verdicts")
    assert files(killed, "cells").keys() == files(whole, "cells").keys()
    assert not [path for path in (killed / "records").iterdir() if path.suffix != ".json"]


@pytest.mark.slow
def test_a_killed_driver_ends_with_the_same_records(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    whole = sweep(tmp_path, "whole")
    kill_until_done(tmp_path, "killed", kills=2, seed=1)
    whole.communicate(timeout=200)
    assert whole.returncode == 0
    check_equal(tmp_path / "killed", tmp_path / "whole")
    twice = {task: times for task, times in computed(tmp_path / "killed").items() if times > 1}
    assert len(twice) <= 2, twice  # a shard that came back, but was not yet kept, when the driver died
    assert computed(tmp_path / "killed").keys() == computed(tmp_path / "whole").keys()
