"""The plugin in processes of their own: no torch where no test needs it, several workers that tell as one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sessions import FAILS, INSTALLED, PASSES, PLAIN, REGRESSION, UNDECIDED, Session

from robust.gate.options import TEST_OPTIONS

pytest_plugins = ["pytester"]
PAGE = (Path(__file__).parent.parent / "docs" / "ci.md").read_text(encoding="utf-8")


def test_loading_the_plugin_loads_no_torch() -> None:
    code = (
        "import sys, robust.pytest_plugin\n"
        "heavy = {'torch', 'numpy', 'scipy', 'pandas', 'pydantic', 'matplotlib', 'hypothesis'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_session_without_robust_tests_loads_no_torch(session: Session) -> None:
    session.pytester.makepyfile(
        test_plain="import sys\ndef test_it():\n    assert 'torch' not in sys.modules\n"
    )
    plugin = [] if INSTALLED else ["-p", "robust.pytest_plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, "test_plain.py"],
        cwd=session.path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not INSTALLED, reason="the plugin has its name from its entry point")
@pytest.mark.parametrize("autoload", ["", "1"])
def test_the_option_of_the_page_loads_the_plugin_also_where_pytest_has_found_it(
    autoload: str, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", autoload)
    named = re.search(r"`PYTEST_DISABLE_PLUGIN_AUTOLOAD`,\s+`-p (\S+)`", PAGE)
    assert named is not None
    session.pytester.makepyfile(test_plain=PLAIN)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", named[1], "--robust-only", "test_plain.py"],
        cwd=session.path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "1 deselected" in done.stdout, done.stderr


def test_the_page_lists_every_option_of_the_marker() -> None:
    listed = PAGE.partition("Options of the marker")[2].partition("`model` is")[0]
    assert [name for name in TEST_OPTIONS if f"`{name}`" not in listed] == []


@pytest.mark.slow
def test_with_several_processes(session: Session) -> None:
    pytest.importorskip("xdist")
    threads = "def test_threads(robust):\n    import torch\n    assert torch.get_num_threads() <= THREADS\n"
    share = max(1, (os.cpu_count() or 1) // 2)
    session.write(PASSES, FAILS, UNDECIDED, REGRESSION, threads.replace("THREADS", str(share)))
    plugin = [] if INSTALLED else ["-p", "robust.pytest_plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, "-W", "error", "-n", "2", "--robust-device", "cpu",
         "--robust-json", "r.json", "--robust-update-baseline", "--junit-xml", "j.xml"],
        cwd=session.path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "1 failed, 3 passed, 1 undecided" in done.stdout, done.stdout
    assert done.stdout.count("test_it.py::test_passes") == 1
    assert "fail: robust accuracy is below 45.0%" in done.stdout
    written = json.loads((session.path / "r.json").read_text())
    assert written["totals"] == {"pass": 1, "fail": 1, "undecided": 1, "error": 0, "done": 1, "written": 1}
    assert (session.path / "robust-baselines" / "test_it.py_test_regression.json").is_file()
    assert "robust_outcome" in (session.path / "j.xml").read_text()
    session.run("--robust-json", "alone.json", "-p", "no:cacheprovider")
    alone = json.loads((session.path / "alone.json").read_text())
    shared_rows, rows = (
        {(r["test"], r["kind"]): found(r) for r in some["results"]} for some in (written, alone)
    )
    same = ("test_passes", "test_fails", "test_undecided")
    compared = [key for key in shared_rows if key[0].endswith(same)]
    assert len(compared) == 3
    assert [shared_rows[key] for key in compared] == [rows[key] for key in compared]


def found(result: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the machine's pace, or on where evidence went."""
    return {
        k: v for k, v in result.items() if k not in ("seconds", "device", "forwards", "backwards", "evidence")
    }
