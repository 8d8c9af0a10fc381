"""What a sweep shows while it runs: 80 columns are enough on a terminal, lines of a log say all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from robust.cli.sweep import _print_curves
from robust.cli.watch import Watch, rows, watching
from robust.sweep import Event, SweepConfig, run_sweep
from robust.sweep.cells import short_names

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def plan() -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "data": "builtin:digits",
            "train": "builtin:digits:train",
            "limit": 30,
            "shard": 10,
            "models": [{"spec": "builtin:digits-mlp", "name": "a-network-with-quite-a-long-name"}],
            "defenses": [
                {"name": "none", "training": {"epochs": 1, "batch_size": 256, "learning_rate": 0.01}},
                {"name": "fgsm-rs", "threat": "linf:0.05", "training": {"epochs": 1, "batch_size": 256}},
            ],
            "threats": ["linf:0.05"],
            "suites": ["quick"],
            "curves": [{"norm": "linf", "eps": ["0.02", "0.05"], "suite": "quick"}],
        }
    )


def test_short_names_say_what_sets_cells_apart(plan: SweepConfig) -> None:
    names = short_names(plan)
    assert sorted(names.values()) == [
        "fgsm-rs(epochs=1,batch_size=256)",
        "fgsm-rs(epochs=1,batch_size=256), linf at 0.02, 0.05",
        "fgsm-rs(epochs=1,batch_size=256), linf:0.05",
        "none(epochs=1,batch_size=256,learning_rate=0.01)",
        "none(epochs=1,batch_size=256,learning_rate=0.01), linf at 0.02, 0.05",
        "none(epochs=1,batch_size=256,learning_rate=0.01), linf:0.05",
    ]
    alone = plan.model_copy(update={"defenses": plan.defenses[:1], "curves": []})
    assert set(short_names(alone).values()) == {"a-network-with-quite-a-long-name"}


def test_a_terminal_of_80_columns_is_wide_enough(
    plan: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    with rows() as bars:
        watch = Watch(bars, short_names(plan))

        def look(event: Event) -> None:
            watch(event)
            bars.refresh()

        result = run_sweep(plan, tmp_path, device="cpu", listener=look)
    said = CONTROL.sub("", capsys.readouterr().err)
    assert (result.computed, result.failures) == (4, [])
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", said) if line.strip()]
    assert max(map(len, lines)) <= 80
    assert not any("a-network" in line for line in lines)
    found = [line for line in lines if line.startswith("none(epochs...0.02, 0.05")]
    assert any(re.search(r"20/30 .*robust \d+\.\d% \[\d+\.\d%, \d+\.\d%\]$", row) for row in found), found
    assert any(re.match(r"sweep .* \d/4 .*samples/s", line) for line in lines)


def test_lines_of_a_log_name_everything(
    plan: SweepConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with watching(short_names(plan)) as listener:
        run_sweep(plan, tmp_path, device="cpu", listener=listener)
        run_sweep(plan, tmp_path, device="cpu", listener=listener)  # all of it is there: nothing to say
    said = capsys.readouterr().err
    assert max(map(len, said.splitlines())) <= 80
    lines = said.replace("\n    ", " ").splitlines()
    assert len(lines) == 6
    assert all("a-network-with-quite-a-long-name x " in line for line in lines)
    assert lines[-1].startswith("[4/4] ")
    assert any(
        re.search(r"linf at 0.02, 0.05, quick, seed 0: robust \d+\.\d% to \d+\.\d%, ", line) for line in lines
    )


def test_names_with_control_characters_stay_in_their_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "two\nlines\x1b[31m\u202e"
    plan = SweepConfig.model_validate(
        {
            "data": "builtin:digits",
            "limit": 4,
            "models": [{"spec": "builtin:digits-mlp", "name": evil}],
            "threats": ["linf:0.05"],
            "suites": [["fgsm"]],
            "curves": [{"norm": "linf", "eps": ["0.02", "0.05"], "suite": ["fgsm"]}],
        }
    )
    with watching(short_names(plan)) as listener:
        result = run_sweep(plan, tmp_path, device="cpu", listener=listener)
    _print_curves(result, tmp_path)
    said = capsys.readouterr()
    for text in (said.err, said.out, *short_names(plan)):
        assert "two lines [31m" in text
        assert not set(text) & {"\x1b", "\u202e"}
