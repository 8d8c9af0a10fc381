"""Sweeps: plans, resuming, failures."""

from __future__ import annotations

from pathlib import Path

import pytest

from robust.errors import InputError, StoreError, UnknownNameError
from robust.leaderboard import Store
from robust.run import Progress
from robust.sweep import SweepConfig, demonstration, load_config, run_sweep
from robust.sweep.run import Listener, plan

PLAN = """
data = "builtin:digits"
train = "builtin:digits:train"
limit = 60
threats = ["linf:0.05", "l2:0.5"]
suites = ["quick"]
seeds = [0]

[[models]]
spec = "builtin:digits-mlp"

[[defenses]]
name = "none"
training = {epochs = 2}

[[defenses]]
name = "pgd-at"
threat = "linf:0.05"
options = {steps = 2}
training = {epochs = 2}
"""


@pytest.fixture
def config(tmp_path: Path) -> SweepConfig:
    (tmp_path / "plan.toml").write_text(PLAN)
    return load_config(tmp_path / "plan.toml")


class Count(Listener):
    """Counts what is computed, and can be told to break off."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.trained = self.attacked = 0
        self.stop_at = stop_at

    def train(self, title: str, *, reused: bool) -> None:
        self.trained += not reused

    def cell(self, title: str, *, reused: bool) -> None:
        self.attacked += not reused

    def attack(self, progress: Progress) -> None:
        if self.attacked == self.stop_at:
            raise KeyboardInterrupt


def test_an_interrupted_sweep_goes_on_and_ends_like_an_uninterrupted_one(
    config: SweepConfig, tmp_path: Path
) -> None:
    whole = run_sweep(config, tmp_path / "whole")
    assert (whole.computed, whole.reused, whole.failures) == (4, 0, [])
    with pytest.raises(KeyboardInterrupt):
        run_sweep(config, tmp_path / "cut", listener=Count(stop_at=3))
    assert len(Store(tmp_path / "cut").records()) == 2
    rest = Count()
    result = run_sweep(config, tmp_path / "cut", listener=rest)
    assert (rest.trained, rest.attacked, result.computed, result.reused) == (0, 2, 2, 2)
    assert sorted(r.id for r in result.records) == sorted(r.id for r in whole.records)
    again = Count()
    run_sweep(config, tmp_path / "cut", listener=again)
    assert (again.trained, again.attacked) == (0, 0)


def test_records_hold_what_their_verdict_tables_say(config: SweepConfig, tmp_path: Path) -> None:
    result = run_sweep(config, tmp_path)
    store = Store(tmp_path)
    for record in result.records:
        table = store.verdicts(record)
        assert len(table) == record.data.n == 60
        assert (table["status"] == "survived").sum() == record.robust.k
        assert (table["prediction"] == table["label"]).sum() == record.clean.k


def test_a_failing_pair_is_told_and_the_rest_goes_on(config: SweepConfig, tmp_path: Path) -> None:
    broken = config.defenses[0].model_copy(update={"training": {"epochs": 1, "learning_rate": 1e30}})
    both = config.model_copy(update={"defenses": [broken, config.defenses[1]]})
    result = run_sweep(both, tmp_path)
    assert result.computed == 2
    assert len(result.failures) == 1
    assert "digits-mlp x none" in result.failures[0]
    (saved,) = (tmp_path / "failures").iterdir()
    assert "Traceback" in saved.read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("threats =", "treats =", r"treats: unknown key; did you mean 'threats'\?"),
        ("linf:0.05", "linf:0", "eps"),
        ('spec = "builtin', 'sepc = "builtin', "sepc"),
        ("limit = 60", "limit = 0", "limit"),
        ("[[models]]", "[[models", "not TOML"),
    ],
)
def test_a_bad_plan_is_refused_with_the_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "plan.toml").write_text(PLAN.replace(old, new))
    with pytest.raises(InputError, match=message):
        load_config(tmp_path / "plan.toml")


def test_mistakes_are_found_before_anything_runs(config: SweepConfig, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'quick'"):
        run_sweep(config.model_copy(update={"suites": ["quik"]}), tmp_path / "a")
    wrong = config.defenses[1].model_copy(update={"options": {"stpes": 3}})
    with pytest.raises(InputError, match="no option 'stpes'"):
        run_sweep(config.model_copy(update={"defenses": [wrong]}), tmp_path / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot"):
        run_sweep(config, tmp_path / "file" / "below")
    with pytest.raises(InputError, match="cannot read"):
        load_config(tmp_path / "nowhere.toml")


def test_the_demonstration_is_a_plan_of_twelve() -> None:
    cells = list(plan(demonstration()))
    assert len(cells) == 12
    assert {cell.defense.name for cell in cells} == {"none", "pgd-at", "distillation"}
