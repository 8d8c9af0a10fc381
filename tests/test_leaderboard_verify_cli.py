"""`robust leaderboard add` and `verify` as a user runs them, behind a transform too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome as Ended
from torch import nn

from robust.behind import name_behind, transform_of
from robust.leaderboard import Store
from robust.report import Report
from robust.sources import save_weights


@pytest.fixture
def user_model(means: nn.Module, tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    save_weights(means, tmp_path / "w.safetensors")
    return "--model", f"{tmp_path}/mine.py:make", "--weights", f"{tmp_path}/w.safetensors", "--device", "cpu"


def test_add_then_verify(
    cli: Callable[..., tuple[int, str, str]],
    means_report: Report,
    tmp_path: Path,
    user_model: tuple[str, ...],
) -> None:
    means_report.save(tmp_path / "run")
    options = ("--store", tmp_path / "board", "--name", "means", "--licence", "MIT")
    code, out, err = cli(
        "add", tmp_path / "run", *options, "--paper", "Means", "--paper-url", "https://a.example/b"
    )
    assert (code, err) == (0, "")
    path = out.strip()
    code, _, err = cli("add", tmp_path / "run", *options, "--paper", "Means", "--paper-url", "a.example/b")
    assert (code, err.count("\n")) == (2, 1)
    assert "paper.url: expected an address such as https://example.org/paper, got 'a.example/b'" in err
    code, out, _ = cli("verify", path, *user_model, "--rerun", 5, "--draw", 3)
    assert code == 0, out
    assert out.endswith("nothing contradicts the record\n")
    record = Store(tmp_path / "board").records()[0]
    assert (record.model.licence, record.paper and record.paper.url) == ("MIT", "https://a.example/b")
    assert cli("verify", record.short_id, "--store", tmp_path / "board")[0] == 0
    text = Path(path).read_text()
    Path(path).write_text(text.replace('"seed": 0', '"seed": 1'))
    code, out, _ = cli("verify", path, *user_model)
    assert code == 1
    assert out.startswith("FAIL  record")


@pytest.mark.parametrize(
    ("defense", "meant"),
    [
        ("pgd_at", "pgd-at"),
        ("trades+apw", "awp"),
        ("trades+awp", None),
        ("Wang2023Better", None),
        ("none", None),
    ],
)
def test_a_defense_of_any_name_is_filed_and_one_almost_like_ours_is_told(
    cli: Callable[..., tuple[int, str, str]],
    means_report: Report,
    tmp_path: Path,
    defense: str,
    meant: str | None,
) -> None:
    means_report.save(tmp_path / "run")
    board = tmp_path / "board"
    code, _, err = cli("add", tmp_path / "run", "--store", board, "--name", "means", "--defense", defense)
    assert (code, Store(board).records()[0].defense.name) == (0, defense)
    assert (err.count("\n"), f"did you mean {meant!r}?" in err) == ((1, True) if meant else (0, False))


@pytest.mark.parametrize(
    ("options", "defense"),
    [((), "bit-depth"), (("--defense", "pgd-at", "--set", "steps=7"), "pgd-at")],
)
def test_what_was_attacked_behind_a_transform_is_verified_behind_it(
    inside: Callable[..., Ended],
    tmp_path: Path,
    user_model: tuple[str, ...],
    options: tuple[str, ...],
    defense: str,
) -> None:
    done = inside(
        "attack", *user_model, "--data", "builtin:digits", "--limit", "30", "--threat", "linf:0.08", "--attack", "pgd",
        "--transform", "bit-depth,bits=2", "--save-examples", "--out", "run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = inside("leaderboard", "add", "run", "--store", "board", "--name", "means", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = Store(tmp_path / "board").records()
    assert record.defense.name == defense
    assert options or (record.defense.parameters["bits"], record.defense.parameters["masks_gradients"]) == (
        2,
        True,
    )
    path = done.stdout.strip()
    done = inside("leaderboard", "verify", path, *user_model, "--rerun", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "bit-depth goes in front of the model, as the record says" in done.stderr
    for check in ("fooled", "model", "clean", "rerun"):
        assert f"\nok    {check} " in done.stdout, done.stdout


def test_a_name_that_only_reads_like_a_transform_is_none() -> None:
    assert transform_of("the one behind nothing") is None
    assert transform_of("net.py:make behind bit-depth,bits=99") is None
    assert transform_of("net.py:make") is None
    found = transform_of(name_behind("nets behind walls.py:make", "bit-depth,bits=2"))
    assert found is not None
    assert found.parameters["bits"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verify", "nothing.json"), "expected STORE/records/ID.json"),
        (("verify", "a/records/b.json"), "no such file"),
        (("verify", "a/records/b.json", "--rerun", "3"), "--rerun: needs --model"),
        (("add", "nowhere", "--store", "s", "--name", "n"), "cannot read nowhere"),
        (
            ("add", "nowhere", "--store", "s", "--name", "n", "--trained-threat", "nonsense"),
            "--trained-threat: ",
        ),
        (
            ("add", "nowhere", "--store", "s", "--name", " "),
            "--name: expected what the model is to be called",
        ),
        (
            ("add", "nowhere", "--store", "s", "--name", "n", "--paper-url", "https://x.example"),
            "--paper-url",
        ),
    ],
)
def test_mistakes_are_one_line(
    cli: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
