"""What the command line says of itself: lists, help, version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Outcome

from robust.attacks import ATTACKS, PGD
from robust.cli import common, defense_lists
from robust.defenses import DEFENSES


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


def test_what_a_user_is_to_type_is_in_one_piece(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @dataclass(frozen=True)
    class Long(DEFENSES["pgd-at"]):  # type: ignore[misc]
        teacher: str = "a-teacher-of-many-words-that-ends-in-the-next-line"
        of: str = "one-more-of-them-that-is-long-enough-for-a-line-of-its-own"

    monkeypatch.setitem(DEFENSES._items, "long", Long)
    for name in (None, "long"):
        defense_lists.show(name)
        words = capsys.readouterr().out.split()
        assert {f"teacher={Long.teacher},", f"of={Long.of}"} <= {*words}


def test_every_attack_and_defense_is_described_in_eighty_columns() -> None:
    for registry in (ATTACKS, DEFENSES):
        for name in registry:
            assert max(map(len, common.described(registry[name]).splitlines())) <= 80, name
    assert "\n    steps: gradient steps a restart, >= 1.\n    step_size: in units" in common.described(PGD)


def test_every_command_shows_an_example(tmp_path: Path, inside: Callable[..., Outcome]) -> None:
    for command in (["attack"], ["harden"], ["sweep"], ["list"], ["doctor"], ["leaderboard", "show"]):
        done = inside(*command, "--help", cwd=tmp_path)
        assert done.returncode == 0
        assert "Example: robust" in " ".join(done.stdout.split())
