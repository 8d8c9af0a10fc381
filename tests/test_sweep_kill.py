"""A driver that is killed at any moment loses what was in hand, and nothing else."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

KILLS = 20
PLAN = """
data = "builtin:digits"
train = "builtin:digits:train"
limit = 60
shard = 30
batch_size = 16
threats = ["linf:0.05", "linf:0.1", "l2:0.5"]
suites = ["quick"]
seeds = [0, 1]

[[models]]
spec = "builtin:digits-mlp"

[[defenses]]
name = "none"
training = {epochs = 3}

[[defenses]]
name = "pgd-at"
threat = "linf:0.05"
options = {steps = 2}
training = {epochs = 2}
"""


def drive(folder: str, out: str) -> None:
    """The command itself, in a process of its own."""
    import torch

    from robust.cli import main

    torch.set_num_threads(1)
    os.chdir(folder)
    sys.stdout = sys.stderr = open(f"{out}.txt", "a")  # noqa: PTH123, SIM115
    sys.argv = ["robust", "sweep", "plan.toml", "--out", out, "--device", "cpu"]
    main()


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """Where drivers are forked from, torch and all imported once: a driver then starts in no time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "torch", "lightning_fabric", "sklearn.datasets", "scipy.stats", "rich.progress", "robust.cli.watch",
            "robust.leaderboard", "robust.sources.builtin_data", "robust.sweep.run",
        ]
    )  # fmt: skip
    return context


def start(server: ForkServerContext, folder: Path, out: str) -> BaseProcess:
    process = server.Process(target=drive, args=(str(folder), out))
    process.start()
    return process


def events(out: Path) -> list[dict[str, Any]]:
    log = out / "events.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def lives(out: Path) -> list[list[dict[str, Any]]]:
    """What each driver told, one after the other."""
    told: list[list[dict[str, Any]]] = []
    for event in events(out):
        if event["event"] == "plan":
            told.append([])
        told[-1].append(event)
    return told


def files(out: Path, folder: str) -> dict[str, bytes]:
    """By name, but for what a killed process had begun to write."""
    return {path.name: path.read_bytes() for path in (out / folder).iterdir() if path.suffix != ".partial"}


def records(out: Path) -> dict[str, str]:
    """The text of every record but for its times, by its file's name."""
    found = {}
    for name, text in files(out, "records").items():
        content = json.loads(text)["record"]
        for key in ("created", "command"):
            content.pop(key)
        found[name] = json.dumps(_timeless(content))
    return found


def _timeless(content: object) -> object:
    if isinstance(content, dict):
        return {key: _timeless(value) for key, value in content.items() if key != "seconds"}
    return [_timeless(value) for value in content] if isinstance(content, list) else content


@pytest.mark.slow
def test_twenty_killings_change_no_record_and_cost_no_more_than_was_in_hand(
    server: ForkServerContext, tmp_path: Path
) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    whole = start(server, tmp_path, "whole")
    whole.join(200)
    assert whole.exitcode == 0, (tmp_path / "whole.txt").read_text()
    (undisturbed,) = lives(tmp_path / "whole")
    seconds = undisturbed[-1]["seconds"]

    draw, left = random.Random(5), 1.0
    for kill in range(KILLS):
        before = len(events(tmp_path / "killed"))
        process = start(server, tmp_path, "killed")
        while kill % 5 and process.is_alive() and len(events(tmp_path / "killed")) < before + 2:
            time.sleep(0.005)  # else it may die before it has begun to work
        # So long that the killings fall on all of the work, whatever is left of it.
        time.sleep(draw.random() * seconds * left / (KILLS - kill + 2))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was done before it could be killed"
        left = 1 - len(list((tmp_path / "killed").glob("cells/*.json"))) / 12
    last = start(server, tmp_path, "killed")
    last.join(200)
    assert last.exitcode == 0, (tmp_path / "killed.txt").read_text()

    assert len(records(tmp_path / "whole")) == 12
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
    assert files(tmp_path / "killed", "verdicts") == files(tmp_path / "whole", "verdicts")
    assert files(tmp_path / "killed", "cells") == files(tmp_path / "whole", "cells")
    assert all(name.endswith(".json") for name in files(tmp_path / "killed", "records"))
    check_nothing_is_done_twice(lives(tmp_path / "killed"), undisturbed)


def check_nothing_is_done_twice(told: list[list[dict[str, Any]]], undisturbed: list[dict[str, Any]]) -> None:
    """Of all that a driver began, only what it had in hand when it died is begun again: one task, in process."""
    begun = [[event["task"] for event in life if event["event"] == "start"] for life in told]
    assert {task for life in begun for task in life} == {
        event["task"] for event in undisturbed if event["event"] == "start"
    }
    assert sum(bool(life) for life in begun) > KILLS / 2, "most were killed before they did anything"
    later: set[str] = set()
    for life in reversed(begun):
        assert not later & set(life[:-1]), "computed again though it was finished"
        assert len(set(life)) == len(life)
        later |= set(life)
