"""Files and standard output that take no more, or are read no further: what was computed is not lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import COMMON
from conftest import Outcome

from robust.errors import StoreError
from robust.report import Report


def test_a_report_that_cannot_be_kept_is_shown(
    files: Path, inside: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreError("report: cannot write: no space left on device")

    monkeypatch.setattr(Report, "save", full)
    done = inside(
        "attack", *COMMON, "--threat", "linf:0.1", "--suite", "quick", "--out", "out", "--json", "kept.json", cwd=files
    )  # fmt: skip
    assert done.returncode == 2
    assert "robust accuracy" in done.stdout
    assert done.stderr.splitlines()[-1] == "robust: report: cannot write: no space left on device"
    assert json.loads((files / "kept.json").read_text())["n"] > 0


def test_whoever_stops_reading_loses_no_file(files: Path) -> None:
    command = [
        sys.executable,
        "-u",
        "-m",
        "robust",
        "attack",
        *COMMON,
        "--threat",
        "linf:0.1",
        "--suite",
        "quick",
    ]
    with subprocess.Popen(
        [*command, "--out", "out"], cwd=files, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        run.stdout.close()
        assert run.wait(240) == 141
    assert Report.load(files / "out").n > 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_takes_no_more_loses_no_file(files: Path, unbuffered: str) -> None:
    certify = ("certify", *COMMON, "--sigma", "0.2", "--n", "100", "--limit", "3", "--json", "certified.json")
    attack = ("attack", *COMMON, "--threat", "linf:0.1", "--suite", "quick", "--json", "kept.json")
    for command, kept in ((("list", "suites"), None), (certify, "certified.json"), (attack, "kept.json")):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "robust", *command],
                cwd=files, stdout=full, stderr=subprocess.PIPE, text=True, timeout=240, check=False,
                env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            )  # fmt: skip
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
        assert done.stderr.endswith("robust: output: cannot be written (No space left on device)\n")
        if kept is not None:
            assert json.loads((files / kept).read_text())
            (files / kept).unlink()


@pytest.mark.parametrize(
    "command",
    [["attack", "--threat", "linf:0.1", "--suite", "quick"], ["certify", "--sigma", "0.25", "--n", "100"]],
    ids=lambda given: given[0],
)
def test_a_json_file_may_lie_in_the_folder_that_the_command_makes(
    files: Path, inside: Callable[..., Outcome], command: list[str]
) -> None:
    options = ("--limit", "5", "--out", "below/run", "--json", "below/run/found.json")
    done = inside(*command, *COMMON, *options, cwd=files)
    assert done.returncode == 0, done.stderr
    assert json.loads((files / "below" / "run" / "found.json").read_text())
