"""Mistakes on the command line: one line, status 2, and nothing runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import COMMON, run
from conftest import Outcome


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--threat", "linf:8/0"), "eps"),
        (("--threat", "l7:1"), "one of linf, l2, l1, l0"),
        (("--attack", "pgdd"), "did you mean 'pgd'"),
        (("--suite", "quikc"), "did you mean 'quick'"),
        (("--suite", "pgdd"), "did you mean the attack 'pgd'?"),
        (("--suite", "zzzz"), "and every attack (`robust list attacks`)"),
        (("--attack", "standard"), "'standard' is a suite of attacks; give it alone"),
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


def test_labels_of_a_model_that_nothing_has_trained_are_refused(
    tmp_path: Path, inside: Callable[..., Outcome]
) -> None:
    done = inside(
        "harden", "--model", "builtin:digits-mlp", "--data", "builtin:digits:train", "--threat", "linf:0.1",
        "--extra", "builtin:digits:test", "--pseudo-labels", "builtin:digits-mlp", "--out", "out", cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--pseudo-weights: builtin:digits-mlp has initial weights" in done.stderr
