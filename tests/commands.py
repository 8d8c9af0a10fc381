"""The command line in a process of its own, and the options that name the files of the fixture `files`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "robust", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=cwd,
        check=False,
    )


COMMON = (
    "--model", "my_model.py:make", "--weights", "w.safetensors", "--data", "data.npz", "--device", "cpu",
)  # fmt: skip
