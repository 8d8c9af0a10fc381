"""`robust sweep` and the board that it leaves, on the command line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import run
from conftest import Outcome

from robust.sweep import demonstration


def test_sweep_shows_its_plan_runs_and_shows_the_board(
    tmp_path: Path, inside: Callable[..., Outcome]
) -> None:
    from sweeps import PLAN

    (tmp_path / "plan.toml").write_text(PLAN)
    planned = inside("sweep", "plan.toml", "--dry-run", cwd=tmp_path)
    assert "4 evaluations, 2 models to train" in planned.stdout
    done = run("sweep", "plan.toml", "--out", "out", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 evaluations computed, 0 found" in done.stdout
    assert "prints this again" in done.stdout
    less = "\n".join(re.sub(r"^threats = .*", 'threats = ["linf:0.05"]', line) for line in PLAN.splitlines())
    (tmp_path / "less.toml").write_text(less)
    found = inside("sweep", "less.toml", "--out", "out", "--device", "cpu", cwd=tmp_path)
    assert "prints this and what earlier plans left" in found.stdout
    assert max(map(len, planned.stdout.splitlines())) <= 80
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    for fmt in ("terminal", "markdown", "csv", "latex", "json"):
        shown = inside("leaderboard", "show", "out", "--format", fmt, cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert "pgd-at" in shown.stdout
    assert len(json.loads(shown.stdout)) == 4
    missing = inside("leaderboard", "show", "nowhere", cwd=tmp_path)
    assert missing.returncode == 2
    assert "no records" in missing.stderr
    (tmp_path / "out" / "records" / f"{'0' * 64}.json").write_text("{")  # of whoever shares the folder
    found = inside("sweep", "plan.toml", "--out", "out", "--device", "cpu", cwd=tmp_path)
    assert (found.returncode, found.stderr.count("robust:")) == (0, 0)
    assert "0 evaluations computed, 4 found" in found.stdout


def test_a_plan_of_more_samples_than_there_are_is_not_estimated(
    tmp_path: Path, inside: Callable[..., Outcome]
) -> None:
    from sweeps import PLAN

    (tmp_path / "plan.toml").write_text(PLAN.replace("limit = 60", "limit = 99999"))
    done = inside("sweep", "plan.toml", "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("robust: limit: expected 1 to ")
    assert len(done.stderr.splitlines()) == 1


def test_the_schema_of_a_plan_is_that_of_the_demonstration(
    tmp_path: Path, inside: Callable[..., Outcome]
) -> None:
    printed = inside("sweep", "--schema", cwd=tmp_path)
    assert printed.returncode == 0
    schema = json.loads(printed.stdout)
    plan = demonstration().model_dump(mode="json")
    assert plan.keys() == schema["properties"].keys()
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["data", "models"]
    documented = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    for part in (schema, *schema["$defs"].values()):  # what an editor shows
        for key, about in part["properties"].items():
            assert about.get("description", "").endswith("."), key
            assert re.search(rf"\b{key}\b", documented), key
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--executor", "rya"], "--executor: expected 'local' or 'ray', got 'rya'"),
        (["--address", "auto"], "--address: is of a Ray cluster; give --executor ray as well"),
        (["--executor", "ray"], "pip install 'robust-harness[ray]'"),
        (["--workers", "0"], "--workers"),
        (["--workers", "many"], "--workers"),
        (["--threads", "0"], "--threads"),
        (["--device", "tape"], "device: expected 'auto', 'cpu' or 'cuda[:N]', got 'tape'"),
    ],
)
def test_what_a_sweep_cannot_run_on_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    inside: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    refused = inside("sweep", *arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_what_fails_in_one_way_is_said_once(tmp_path: Path, inside: Callable[..., Outcome]) -> None:
    from sweeps import PLAN

    (tmp_path / "damaged.npz").write_text("nothing of the kind")
    (tmp_path / "plan.toml").write_text(PLAN.replace('"builtin:digits"', '"damaged.npz"'))
    done = inside("sweep", "plan.toml", "--out", "out", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 3
    assert "`robust leaderboard show" not in done.stdout
    summary = [line for line in done.stderr.splitlines() if line.startswith("robust: ")]
    assert len(summary) == 3, summary
    assert summary[0].startswith("robust: failed: digits-mlp x none(epochs=2) (and 1 more): data damaged.npz")
    assert summary[1].startswith("robust: 4 missing: digits-mlp x none(epochs=2), linf:0.05, quick, seed 0; ")


@pytest.mark.slow
def test_two_workers_on_the_command_line(tmp_path: Path, inside: Callable[..., Outcome]) -> None:
    (tmp_path / "plan.toml").write_text(
        """data = "builtin:digits"
train = "builtin:digits:train"
limit = 80
shard = 40
threats = ["linf:0.05"]
suites = ["standard"]
defenses = [{name = "none", training = {epochs = 2}}]
models = [{spec = "builtin:digits-mlp"}]
"""
    )
    done = inside(
        "sweep",
        "plan.toml",
        "--out",
        "out",
        "--workers",
        "2",
        "--threads",
        "1",
        "--device",
        "cpu",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "1 evaluations computed, 0 found" in done.stdout
    log = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in log if event["event"] in ("start", "shard")][1:]  # less the training
    assert kinds[:2] == ["start", "start"], "both shards are begun before either is back"
