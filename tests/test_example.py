"""The example repository, run as its README says, from a copy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", ".pytest_cache")
    return Path(shutil.copytree(EXAMPLE, tmp_path / "digits", ignore=ignored))


def run(repository: Path, *arguments: str) -> tuple[str, list[dict[str, Any]]]:
    plugin = [] if entry_points(group="pytest11", name="robust") else ["-p", "robust.pytest_plugin"]
    source = Path(__file__).parents[1]
    path = os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, "-W", "error", "--robust-json", "r.json", *arguments],
        cwd=repository, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout, json.loads((repository / "r.json").read_text())["results"]


@pytest.mark.slow
def test_the_example_does_as_it_says(repository: Path) -> None:
    """By two workers, where there is xdist, as by one process; that both find the same is tested of the plugin."""
    out, results = run(repository, *(["-n", "2"] if find_spec("xdist") else []))
    assert "1 failed, 2 passed" in out, out
    outcomes = {(r["test"].rpartition("::")[2], r["kind"]): r["outcome"] for r in results}
    assert outcomes == {
        ("test_withstands_a_twentieth", "check"): "pass",
        ("test_withstands_a_fifth", "check"): "fail",
        ("test_is_no_worse_than_the_last_release", "evaluate"): "done",
        ("test_is_no_worse_than_the_last_release", "regression"): "pass",
    }
    failed = next(r for r in results if r["outcome"] == "fail")
    assert failed["n"] < 100
    assert failed["trust"] == "trusted", failed["findings"]
    assert {path.name for path in Path(failed["evidence"]).iterdir()} >= {
        "report.json",
        "examples.safetensors",
    }
    assert any("brightness" in a["label"] for r in results for a in r["attacks"])  # their own `attacks`
