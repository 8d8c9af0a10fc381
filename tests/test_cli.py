"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome
from reports import make_report
from torch import nn

from robust.attacks import ATTACKS, PGD
from robust.cli import common
from robust.cli.attack import summary
from robust.defenses import DEFENSES
from robust.errors import StoreError
from robust.leaderboard import Store
from robust.report import Report
from robust.sources import save_weights
from robust.sweep import demonstration


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "robust", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=cwd,
        check=False,
    )


@pytest.fixture
def files(tmp_path: Path, net: nn.Module, digits: tuple[object, object]) -> Path:
    """A folder with a user's model file, weights and data."""
    (tmp_path / "my_model.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),\n"
        "        nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10))\n"
    )
    save_weights(net, tmp_path / "w.safetensors")
    x, y = digits
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())  # type: ignore[attr-defined]
    return tmp_path


COMMON = (
    "--model",
    "my_model.py:make",
    "--weights",
    "w.safetensors",
    "--data",
    "data.npz",
    "--device",
    "cpu",
)


def test_attack_writes_json_alone_to_standard_output_and_a_report(files: Path) -> None:
    done = run(
        "attack", *COMMON, "--threat", "linf:0.1", "--attack", "pgd", "--set", "steps=5", "--set", "loss=margin",
        "--limit", "40", "--json", "-", "--out", "out", "--save-examples", cwd=files,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    keys = (
        "clean_accuracy robust_accuracy interval n statuses forwards backwards seconds attacks trust findings "
        "threat suite seed model data device versions"
    )
    assert set(keys.split()) <= set(found)
    assert found["n"] == 40 == sum(found["statuses"].values())
    assert found["attacks"][0]["parameters"]["steps"] == 5
    assert found["model"]["spec"] == "my_model.py:make"
    report = Report.load(files / "out")
    assert report.robust_accuracy == found["robust_accuracy"]
    assert report.examples is not None
    assert len(report.examples["sample_id"]) == found["statuses"]["broken"] > 0


def test_a_model_is_attacked_behind_a_transform(files: Path, inside: Callable[..., Outcome]) -> None:
    """With weights of its own or with those of both, as hardening saves them; other options than theirs are refused."""
    threat = ("--threat", "linf:0.1")
    hardened = inside(
        "harden", *COMMON, *threat, "--defense", "bit-depth", "--set", "bits=1", "--out", "both", cwd=files
    )
    assert "attack them with: robust attack --transform bit-depth,bits=1" in hardened.stdout, hardened.stderr
    both = tuple("both/weights.safetensors" if part == "w.safetensors" else part for part in COMMON)
    assert "--transform" in inside("attack", *both, *threat, cwd=files).stderr
    other = inside("attack", *both, *threat, "--transform", "bit-depth", cwd=files)
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "saved with other options of bit-depth" in other.stderr
    quick = (*threat, "--suite", "quick", "--json", "-")
    found = [
        json.loads(inside("attack", *model, *quick, *transform, cwd=files).stdout)
        for model, *transform in ((COMMON,), (COMMON, *ONE_BIT), (both, *ONE_BIT))
    ]
    assert found[0]["clean_accuracy"] != found[1]["clean_accuracy"] == found[2]["clean_accuracy"]
    assert found[1]["robust_accuracy"] == found[2]["robust_accuracy"]
    assert found[1]["model"]["spec"] == "my_model.py:make behind bit-depth,bits=1"


ONE_BIT = ("--transform", "bit-depth,bits=1")


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        ("pgd-at", "expected an input transform"),
        ("none+bit-depth", "expected an input transform"),
        ("bit-depth,bits", "--transform: expected NAME=VALUE, got 'bits'"),
        ("bit-depth,size=3", "size"),
        (",bits=1", "expected a transform's name"),
        ("bitdepth", "bit-depth"),
    ],
)
def test_what_is_no_transform_is_told(
    files: Path, inside: Callable[..., Outcome], transform: str, said: str
) -> None:
    done = inside("attack", *COMMON, "--threat", "linf:0.1", "--transform", transform, cwd=files)
    assert (done.returncode, done.stderr.count("\n"), said in done.stderr) == (2, 1, True), done.stderr


def test_attack_explains_itself_in_pictures(files: Path, inside: Callable[..., Outcome]) -> None:
    pytest.importorskip("matplotlib")
    done = inside(
        "attack", *COMMON, "--threat", "linf:0.1", "--attack", "pgd", "--out", "out", "--explain", "pictures", cwd=files
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {"panels.png", "losses.svg"} <= {file.name for file in (files / "pictures").iterdir()}
    assert "panels.png" in done.stderr
    assert Report.load(files / "out").examples is None  # only --save-examples keeps them


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


def test_attack_prints_a_table_of_eighty_columns(files: Path, inside: Callable[..., Outcome]) -> None:
    done = inside("attack", *COMMON, "--threat", "l2:0.5", "--suite", "quick", cwd=files)
    assert done.returncode == 0, done.stderr
    assert "robust accuracy" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--threat", "linf:8/0"), "eps"),
        (("--threat", "l7:1"), "one of linf, l2, l1, l0"),
        (("--attack", "pgdd"), "did you mean 'pgd'"),
        (("--suite", "quikc"), "did you mean 'quick'"),
        (("--attack", "pgd", "--set", "stpes=3"), "no option 'stpes'"),
        (("--attack", "pgd", "--set", "steps=many"), "steps"),
        (("--attack", "pgd", "--set", "steps"), "NAME=VALUE"),
        (("--attack", "pgd", "--set", "step_size=-1"), "step_size: expected a number above 0"),
        (("--attack", "pgd", "--set", "step_size=nan"), "step_size: expected a finite number"),
        (("--attack", "cw"), "not for linf"),
        (("--data", "nowhere.npz"), "nowhere.npz"),
        (("--data", "builtin:digitz"), "did you mean 'digits'"),
        (("--model", "my_model.py:mak"), "make"),
        (
            ("--model", "export:data.npz"),
            "export:data.npz: cannot be loaded (",
        ),
        (("--weights", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--device", "tpu9"), "device"),
        (("--device", "mps"), "device"),
        (("--threat", "l0:0.5"), "at least 1"),
        (("--suite", ""), "list suites"),
        (("--normalize", "a", "b"), "--normalize"),
        (("--batch-size", "-1"), "--batch-size"),
        (("--batch-size", "²"), "--batch-size"),
        (("--limit", "100000"), "limit"),
        (("--limit", "ten"), "got 'ten'"),
        (("--limit=1.5",), "got '1.5'"),
        (("--seed", "1", "--seed", "x"), "got 'x'"),
        (("--curve", "0.1,abc"), "--curve"),
        (
            ("--curve", "0.2", "--attack", "pgd"),
            "--curve: eps: expected 0.1, at which alone these attacks search, got 0.2",
        ),
        (("--curve", "1,2", "--threat", "corruptions:2"), "--curve: expected a threat in linf"),
        (("--save-examples",), "--out"),
        (("--out", "data.npz/below"), "--out"),
        (("--explain", "data.npz/below"), "--explain"),
        (("--json", "nowhere/x.json"), "--json"),
        (("--nonsense",), "--nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_usage_is_one_line_and_status_two(
    files: Path, inside: Callable[..., Outcome], change: tuple[str, ...], message: str
) -> None:
    done = inside("attack", *COMMON, "--threat", "linf:0.1", *_suite(change), *change, cwd=files)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert "Traceback" not in done.stderr


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


def _suite(change: tuple[str, ...]) -> tuple[str, ...]:
    return () if {"--attack", "--suite"} & set(change) else ("--suite", "quick")


def test_a_pickle_as_weights_is_refused_and_does_not_run(files: Path, inside: Callable[..., Outcome]) -> None:
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(files / "ran"),)

    (files / "bomb.pt").write_bytes(pickle.dumps({"weight": Bomb()}))
    done = run(
        "attack", *COMMON, "--weights", "bomb.pt", "--threat", "linf:0.1", "--suite", "quick", cwd=files
    )
    assert done.returncode == 2
    assert not (files / "ran").exists()


def test_harden_trains_evaluates_and_keeps_everything(files: Path) -> None:
    done = run(
        "harden", "--model", "builtin:digits-mlp", "--data", "builtin:digits:train", "--validation", "builtin:digits:test",
        "--threat", "linf:0.05", "--defense", "pgd-at", "--set", "steps=2", "--train", "epochs=2", "--suite", "quick",
        "--out", "hardened", "--device", "cpu", cwd=files,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "before" in done.stdout
    assert "nothing has trained" not in done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    for name in (
        "weights.safetensors",
        "history.json",
        "config.json",
        "last.safetensors",
        "before/report.json",
        "after/report.json",
    ):
        assert (files / "hardened" / name).exists()
    found = {record.defense.name: record for record in Store(files / "hardened").records()}
    assert set(found) == {"as given", "pgd-at"}
    assert found["pgd-at"].defense.trained_threat == "linf:0.05"
    assert found["pgd-at"].model.name == "digits-mlp"


def test_an_attack_on_initial_weights_says_so(files: Path, inside: Callable[..., Outcome]) -> None:
    options = (
        "--data",
        "builtin:digits",
        "--threat",
        "linf:0.1",
        "--attack",
        "fgsm",
        "--limit",
        "9",
        "--device",
        "cpu",
    )
    done = inside("attack", "--model", "builtin:digits-mlp", *options, cwd=files)
    assert done.returncode == 0
    assert "builtin:digits-mlp has initial weights, which nothing has trained; give --weights" in done.stderr
    done = inside("attack", *COMMON[:-4], *options[2:], "--data", "data.npz", cwd=files)
    assert "trained" not in done.stderr


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


def test_the_version_is_told(tmp_path: Path, inside: Callable[..., Outcome]) -> None:
    assert inside("--version", cwd=tmp_path).stdout.startswith("robust 0.")
    assert inside("attack", "-h", cwd=tmp_path).stdout == inside("attack", "--help", cwd=tmp_path).stdout


@pytest.mark.parametrize("what", ["attacks", "defenses", "suites", "models", "data", "checks"])
def test_list_fits_eighty_columns(tmp_path: Path, inside: Callable[..., Outcome], what: str) -> None:
    done = inside("list", what, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= 80


def test_every_attack_and_defense_is_described_in_eighty_columns() -> None:
    for registry in (ATTACKS, DEFENSES):
        for name in registry:
            assert max(map(len, common.described(registry[name]).splitlines())) <= 80, name
    assert "\n    steps: gradient steps a restart, >= 1.\n    step_size: in units" in common.described(PGD)


@pytest.mark.parametrize("option", ["--weights=nope.safetensors", "--limit=3"])
def test_what_is_for_a_model_is_refused_without_one(
    tmp_path: Path, inside: Callable[..., Outcome], option: str
) -> None:
    done = inside("doctor", option, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "are for a MODEL" in done.stderr


def test_doctor_names_versions_and_what_is_missing(tmp_path: Path, inside: Callable[..., Outcome]) -> None:
    done = inside("doctor", cwd=tmp_path)
    assert done.returncode == 0
    assert "torch" in done.stdout
    assert "python" in done.stdout
    assert ("not installed" in done.stdout) == ('pip install "robust-harness[' in done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 80


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


def test_every_command_shows_an_example(tmp_path: Path, inside: Callable[..., Outcome]) -> None:
    for command in (["attack"], ["harden"], ["sweep"], ["list"], ["doctor"], ["leaderboard", "show"]):
        done = inside(*command, "--help", cwd=tmp_path)
        assert done.returncode == 0
        assert "Example: robust" in " ".join(done.stdout.split())


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


@pytest.mark.parametrize("name", ["nowhere/found.json", "data.npz/found.json", "."])
@pytest.mark.parametrize(
    "command",
    [["attack", "--threat", "linf:0.1"], ["certify", "--sigma", "0.25"]],
    ids=lambda given: given[0],
)
def test_a_json_file_that_cannot_be_written_is_told_before_anything_is_computed(
    files: Path,
    inside: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    name: str,
) -> None:
    monkeypatch.setattr("robust.evaluation.evaluate", None)
    monkeypatch.setattr("robust.smoothing.certify", None)
    done = inside(*command, *COMMON, "--json", name, cwd=files)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"--json: cannot write {name}: " in done.stderr


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


@pytest.mark.parametrize("group", [[], ["leaderboard"], ["leaderboard", "import"]])
def test_a_group_of_commands_alone_shows_its_help(
    tmp_path: Path, inside: Callable[..., Outcome], group: list[str]
) -> None:
    done = inside(*group, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[0].startswith("Usage: ")
    assert "Commands:" in lines
    assert max(map(len, lines)) <= 80


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


def test_labels_break_between_parameters_alone() -> None:
    text = summary(make_report(alone={"basin-hopping(radii=(1,),hops=8)": 40}))
    assert "radii=(1,)," in text


def test_long_labels_are_told_apart_by_few_words() -> None:
    options = "steps=20,targets=2,odi_steps=5,hop_steps=14"
    text = summary(make_report(alone={f"basin-hopping(radii=(1,),{options})": 40, "fgsm": 9}))
    assert "basin-hopping  " in text
    assert "hop_steps" not in text
