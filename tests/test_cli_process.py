"""The command line as a process: what it imports, how its threads wait, Ctrl-C, how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from commands import COMMON
from conftest import Outcome


def test_waiting_threads_yield_soon_unless_the_user_chose() -> None:
    code = "import os, robust.threads as t; t.yield_soon(); print(os.environ.get('GOMP_SPINCOUNT'))"

    def spins(**environment: str) -> str:
        clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**clean, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    assert int(spins()) > 0
    assert spins(GOMP_SPINCOUNT="7") == "7"
    assert spins(OMP_WAIT_POLICY="ACTIVE") == "None"


@pytest.mark.parametrize(
    ("where", "arguments", "said"),
    [
        ("robust.evaluation.evaluate", ["attack", *COMMON, "--threat", "linf:0.1"], "interrupted before it was done; run it"),
        ("robust.smoothing.certify", ["certify", *COMMON, "--sigma", "1"], "interrupted before it was done; run it again"),
        ("robust.hardening.harden", ["harden", *COMMON, "--out", "o"], "what was done is kept, run it again to go on"),
        ("robust.hardening.harden", ["harden", *COMMON, "--out", "o", "--no-resume"], "again without --no-resume to go on"),
        ("robust.sweep.run_sweep", ["sweep"], "what was done is kept, run it again to go on"),
    ],
)  # fmt: skip
def test_ctrl_c_says_what_running_it_again_does(
    where: str,
    arguments: list[str],
    said: str,
    files: Path,
    inside: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    done = inside(*arguments, cwd=files)
    assert done.returncode == 130
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("begin", ["console", "module"])
@pytest.mark.parametrize(("importing", "before"), [("typer", "it began"), ("tabulate", "it was done")])
def test_ctrl_c_while_something_is_imported_is_a_line(
    begin: str, importing: str, before: str, tmp_path: Path
) -> None:
    """Also where the signal comes in code that is made from text, after which Python would end by it whoever caught it."""
    (tmp_path / f"{importing}.py").write_text(
        "exec('raise KeyboardInterrupt')\n"
    )  # goes before the installed one
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = project["project"]["scripts"]["robust"].partition(":")
    (tmp_path / "console.py").write_text(
        f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n"
    )
    start = ["console.py"] if begin == "console" else ["-m", "robust"]
    done = subprocess.run(
        [sys.executable, *start, "list", "suites"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == f"robust: interrupted before {before}; run it again\n"


def test_what_libraries_do_at_exit_changes_no_status(tmp_path: Path) -> None:
    """Native threads of a GPU's libraries were seen to abort a finished process; here it is a C exit function."""
    code = (
        "import atexit, ctypes, sys, torch, robust.cli\n"
        "sys.argv = ['robust', 'list', 'suites']\n"
        "atexit.register(print, 'over')\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.__cxa_atexit(ctypes.cast(libc.abort, ctypes.c_void_p), None, None)\n"
        "torch.cuda.is_initialized = lambda: {}\n"
        "robust.cli.command()"
    )
    ends = [
        subprocess.run(
            [sys.executable, "-c", code.format(used)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        for used in (False, True)
    ]
    assert [done.returncode for done in ends] == [-signal.SIGABRT, 0]
    assert "autoattack" in ends[1].stdout
    assert ends[1].stdout.endswith("over\n")


def test_help_does_not_import_torch() -> None:
    for arguments in ([], ["attack"], ["sweep"]):
        code = f"import sys; sys.argv = ['robust', *{arguments!r}, '--help']\nimport robust.cli\n" + (
            "try: robust.cli.main()\nexcept SystemExit: pass\n"
            "assert not {'torch', 'numpy', 'pandas', 'scipy'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_ctrl_c_keeps_what_was_done(tmp_path: Path) -> None:
    from sweeps import PLAN

    (tmp_path / "plan.toml").write_text(PLAN.replace("epochs = 2", "epochs = 100000", 1))
    command = [sys.executable, "-m", "robust", "sweep", "plan.toml", "--out", "out", "--device", "cpu"]
    # A background job of a shell ignores SIGINT, and its children would.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, ours)
    for _ in range(600):
        if list(tmp_path.glob("out/models/*/checkpoints/*.pt")):
            break
        time.sleep(0.1)
    for _ in range(4):  # Python drops a signal that arrives in a finalizer
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            _, err = process.communicate(timeout=30)
            break
    else:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert list(tmp_path.glob("out/models/*/checkpoints/*.pt"))
