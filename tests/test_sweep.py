"""Sweeps: what is computed, by whom, what fails, what is told."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import struct
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from sweeps import Count, ids, tables

from robust.leaderboard import Store
from robust.leaderboard.verify import verify
from robust.sources import load_data, load_model, save_weights
from robust.sweep import Event, SweepConfig, SweepResult, run_sweep
from robust.sweep.cells import plan as cells
from robust.sweep.config import DefenseEntry, ModelEntry, Suite
from robust.sweep.executors import InProcess, Told
from robust.sweep.processes import Processes
from robust.sweep.tasks import AttackTask, Folder, ModelRef, Outcome, Worker, build_target


def test_records_hold_what_their_verdict_tables_say(swept: tuple[Path, SweepResult]) -> None:
    out, result = swept
    store = Store(out)
    for record in result.records:
        table = store.verdicts(record)
        assert len(table) == record.data.n == 60
        assert (table["status"] == "survived").sum() == record.robust.k
        assert (table["prediction"] == table["label"]).sum() == record.clean.k


def test_a_failing_pair_is_told_and_the_rest_goes_on(sweep_config: SweepConfig, tmp_path: Path) -> None:
    broken = sweep_config.defenses[0].model_copy(update={"training": {"epochs": 1, "learning_rate": 1e30}})
    both = sweep_config.model_copy(update={"defenses": [broken, sweep_config.defenses[1]]})
    result = run_sweep(both, tmp_path, device="cpu")
    assert result.computed == 2
    assert len(result.failures) == 1
    assert "digits-mlp x none" in result.failures[0].title
    assert [title.partition(",")[0] for title in result.missing] == ["digits-mlp x none(epochs=1"] * 2
    (saved,) = (tmp_path / "failures").iterdir()
    assert "Traceback" in saved.read_text()


CRASHING = """
import torch
from pathlib import Path

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(10, 64))

    def forward(self, x):
        if Path(__file__).with_name("broken").exists() and x.shape[0] > 1:
            raise RuntimeError("the cable was pulled")
        return x.flatten(1) @ self.weight.T

def make():
    return Net()
"""


def test_a_crash_in_a_cell_is_kept_with_its_traceback_and_mended_by_the_next_run(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(CRASHING)
    (tmp_path / "broken").touch()
    plan = SweepConfig(
        data="builtin:digits",
        limit=20,
        threats=["linf:0.1"],
        suites=["quick"],
        models=[
            {"spec": f"{tmp_path}/net.py:make", "name": "bad"},
            {"spec": "builtin:digits-mlp", "name": "good"},
        ],
    )
    first = run_sweep(plan, tmp_path / "out", device="cpu")
    assert first.computed == 1
    assert [str(failure) for failure in first.failures] == [
        "bad x none, linf:0.1, quick, seed 0: model: fails on input (20, 1, 8, 8) (RuntimeError: the cable was "
        "pulled); raised in net.py, line 12"
    ]
    assert first.missing == ["bad x none, linf:0.1, quick, seed 0"]
    (saved,) = (tmp_path / "out" / "failures").iterdir()
    assert "in forward" in saved.read_text()
    (tmp_path / "broken").unlink()
    second = run_sweep(plan, tmp_path / "out", device="cpu")
    assert (second.computed, second.reused, second.failures, second.missing) == (1, 1, [], [])
    assert not list((tmp_path / "out" / "failures").iterdir())


def test_cells_of_one_title_are_told_apart(tmp_path: Path) -> None:
    """Titles leave out what a suite's attacks are given."""
    (tmp_path / "net.py").write_text(CRASHING)
    suites: list[Suite] = [[{"name": "pgd", "steps": 2}], [{"name": "pgd", "steps": 3}]]
    both = SweepConfig(
        data="builtin:digits", limit=8, threats=["linf:0.1"], suites=suites, models=[{"spec": f"{tmp_path}/net.py:make"}]
    )  # fmt: skip
    one = both.model_copy(update={"suites": suites[:1]})
    assert len({cell.title for cell in cells(both)}) == 1
    assert run_sweep(one, tmp_path / "out", device="cpu").computed == 1
    (tmp_path / "broken").touch()
    result = run_sweep(both, tmp_path / "out", device="cpu")
    assert (result.reused, len(result.failures), len(result.missing)) == (1, 1, 1)
    (tmp_path / "broken").unlink()
    shutil.rmtree(tmp_path / "out" / "cells")
    assert run_sweep(one, tmp_path / "out", device="cpu").computed == 1
    (saved,) = (tmp_path / "out" / "failures").iterdir()
    assert "the cable was pulled" in saved.read_text()


def test_a_model_that_could_not_be_read_is_forgiven_once_it_can(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(CRASHING.replace("return Net()", "raise RuntimeError('no cable')"))
    plan = SweepConfig(
        data="builtin:digits", limit=8, threats=["linf:0.1"], suites=["fgsm"], models=[{"spec": f"{tmp_path}/net.py:make"}]
    )  # fmt: skip
    assert len(run_sweep(plan, tmp_path / "out", device="cpu").failures) == 1
    assert len(list((tmp_path / "out" / "failures").iterdir())) == 1
    (tmp_path / "net.py").write_text(CRASHING)
    assert run_sweep(plan, tmp_path / "out", device="cpu").computed == 1
    assert not list((tmp_path / "out" / "failures").iterdir())


def test_what_is_wanting_memory_is_tried_with_half_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that has room for 3 rows: whatever else is asked is out of memory."""
    (tmp_path / "net.py").write_text(CRASHING.replace("x.shape[0] > 1", "False"))
    source = (tmp_path / "net.py").read_text()
    refuses = (
        'if x.shape[0] > 3:\n            raise torch.OutOfMemoryError("CUDA out of memory")\n        return'
    )
    (tmp_path / "net.py").write_text(source.replace("return x.flat", f"{refuses} x.flat"))
    monkeypatch.setattr("robust.diagnose.PREFLIGHT_SAMPLES", 3)
    monkeypatch.setattr("robust.run.diagnose.PREFLIGHT_SAMPLES", 3)
    from robust.sweep.held import hold

    held = hold("builtin:digits", 12, tmp_path / "data")
    task = AttackTask(
        "1", "cell", ModelRef(f"{tmp_path}/net.py:make"), str(held.folder), "linf:0.1", "quick", 0, True, (0, 12), 8,
        "float32",
    )  # fmt: skip
    outcome = Worker(Folder(), "cpu").do(task, lambda progress: None)
    assert outcome.ending == "done", outcome.trace
    assert outcome.result is not None
    assert set(outcome.result.verdicts["status"]) <= {"misclassified", "broken", "survived"}  # type: ignore[union-attr]


class Mortal(InProcess):
    """Workers that die under the first tasks."""

    deaths = 2

    def wait(self, told: Told) -> Outcome | None:
        if self.deaths:
            self.deaths -= 1
            return Outcome(self._waiting.popleft(), "lost", reason="struck by lightning", memory=True)
        return super().wait(told)


def test_a_lost_task_is_done_again_three_times_at_most(
    sweep_config: SweepConfig, tmp_path: Path, swept: tuple[Path, SweepResult]
) -> None:
    told: list[Event] = []
    result = run_sweep(sweep_config, tmp_path / "a", executor=lambda: Mortal("cpu"), listener=told.append)
    assert ids(result) == ids(swept[1])
    assert [event.fields["reason"] for event in told if event.kind == "retry"] == ["struck by lightning"] * 2

    class Doomed(InProcess):
        def wait(self, told: Told) -> Outcome | None:
            if self._waiting[0].title.startswith("digits-mlp x none"):
                return Outcome(self._waiting.popleft(), "lost", reason="struck by lightning")
            return super().wait(told)

    result = run_sweep(sweep_config, tmp_path / "b", executor=lambda: Doomed("cpu"))
    assert [str(failure) for failure in result.failures] == [
        "digits-mlp x none(epochs=2): struck by lightning (3 times)"
    ]
    assert len(result.missing) == result.computed == 2


class Assassin:
    """Kills a worker of the pool once a shard has come back."""

    def __init__(self) -> None:
        self.pool: Processes | None = None
        self.retries = 0

    def make(self) -> Processes:
        self.pool = Processes(2, "cpu", torch.get_num_threads())
        return self.pool

    def __call__(self, event: Event) -> None:
        self.retries += event.kind == "retry"
        assert self.pool is not None or event.kind in ("plan", "reused")
        busy = [hand for hand in self.pool._hands if hand.task is not None] if self.pool else []
        if event.kind == "shard" and busy and not self.retries:
            os.kill(busy[0].process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_worker_processes_come_to_the_same_and_survive_a_killing(
    sweep_config: SweepConfig, tmp_path: Path, swept: tuple[Path, SweepResult]
) -> None:
    out, first = swept
    assassin = Assassin()
    result = run_sweep(sweep_config, tmp_path / "pool", executor=assassin.make, listener=assassin)
    assert (result.failures, result.missing, result.stopped) == ([], [], None)
    assert assassin.retries >= 1
    assert ids(result) == ids(first)
    assert tables(tmp_path / "pool") == tables(out)


def test_a_worker_that_dies_in_the_middle_of_a_message_is_replaced() -> None:
    pool = Processes(1, "cpu", 1)
    try:
        (hand,) = pool._hands
        ours, theirs = multiprocessing.Pipe()
        os.write(
            theirs.fileno(), struct.pack("!i", 100) + b"half of it"
        )  # as a connection announces 100 bytes
        theirs.close()
        hand.pipe.close()
        hand.pipe, hand.task = ours, mock.sentinel.task
        hand.process.kill()
        outcome = pool.wait(lambda task, progress: None)
        assert outcome is not None
        assert (outcome.ending, outcome.task, pool.free) == ("lost", mock.sentinel.task, 1)
        assert pool._hands[0].process.is_alive()
    finally:
        pool.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="masks are read from /proc")
def test_ctrl_c_reaches_no_worker_even_while_it_imports() -> None:
    pool = Processes(2, "cpu", 1)
    try:
        masks = [
            re.search(r"^SigBlk:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.M)
            for pid in ("self", *(hand.process.pid for hand in pool._hands))
        ]
    finally:
        pool.close()
    blocked = [bool(mask and int(mask[1], 16) & 1 << (signal.SIGINT - 1)) for mask in masks]
    assert blocked == [False, True, True]


def test_the_log_can_be_followed_line_by_line(swept: tuple[Path, SweepResult]) -> None:
    lines = [json.loads(line) for line in (swept[0] / "events.jsonl").read_text().splitlines()]
    kinds = [line["event"] for line in lines]
    assert kinds[0] == "plan"
    assert kinds[-1] == "end"
    assert (kinds.count("trained"), kinds.count("shard"), kinds.count("cell")) == (2, 12, 4)
    assert all(line["time"].endswith("+00:00") for line in lines)
    cell = next(line for line in lines if line["event"] == "cell")
    assert 0 <= cell["low"] <= cell["robust"] <= cell["high"] <= cell["clean"] + 0.2
    assert cell["record"] in {record.id for record in swept[1].records}


def test_weights_that_are_given_are_attacked_as_they_are(tmp_path: Path) -> None:
    from robust.sources import load_model, model_sha256, save_weights

    net = load_model("builtin:digits-mlp", seed=5)
    save_weights(net, tmp_path / "net.safetensors")
    one = SweepConfig.model_validate(
        {
            "data": "builtin:digits",
            "limit": 10,
            "train": "builtin:digits:train",
            "threats": ["linf:0.1"],
            "suites": ["fgsm"],
            "models": [{"spec": "builtin:digits-mlp", "weights": str(tmp_path / "net.safetensors")}],
        }
    )
    (record,) = run_sweep(one, tmp_path / "out", device="cpu").records
    assert record.model.weights_sha256 == model_sha256(net)


def test_few_adversarial_examples_are_kept_whatever_the_shards(
    sweep_config: SweepConfig, tmp_path: Path, swept: tuple[Path, SweepResult]
) -> None:
    out, first = swept
    store = Store(out)
    for record in first.records:
        kept = store.examples(record)
        assert kept is not None
        assert 0 < len(kept["sample_id"]) <= 8
        for outcome in verify(store, f"{record.id}.json"):
            assert outcome.ok is not False, outcome
        checks = {outcome.check: outcome.ok for outcome in verify(store, f"{record.id}.json")}
        assert checks["examples"] is checks["ball"] is True
    otherwise = sweep_config.model_copy(
        update={"shard": 7, "threats": ["linf:0.05"], "defenses": sweep_config.defenses[:1]}
    )
    (same,) = run_sweep(otherwise, tmp_path / "a", device="cpu").records
    before = next(r for r in first.records if (r.defense.name, r.threat.norm) == ("none", "linf"))
    few, many = Store(tmp_path / "a").examples(same), store.examples(before)
    assert few is not None
    assert many is not None
    assert torch.equal(few["sample_id"], many["sample_id"])
    torch.testing.assert_close(few["x_adv"], many["x_adv"])
    without = otherwise.model_copy(update={"keep_examples": 0})
    (bare,) = run_sweep(without, tmp_path / "a", device="cpu").records
    assert bare.artefacts.examples_sha256 is None
    assert bare.artefacts.verdicts_sha256 == same.artefacts.verdicts_sha256


def test_input_transforms_are_defenses_and_share_the_training_of_what_is_behind_them(
    sweep_config: SweepConfig, tmp_path: Path
) -> None:
    trained = sweep_config.defenses[1]
    behind = trained.model_copy(
        update={"name": "bit-depth", "options": {"bits": 2, "of": "pgd-at", "options": trained.options}}
    )
    save_weights(load_model("builtin:digits-mlp"), tmp_path / "net.safetensors")
    given = ModelEntry(
        spec="builtin:digits-mlp", weights=str(tmp_path / "net.safetensors"), name="given",
        defenses=[DefenseEntry(name="bit-depth", options={"bits": 2})],
    )  # fmt: skip
    both = sweep_config.model_copy(
        update={
            "models": [*sweep_config.models, given],
            "defenses": [trained, behind],
            "threats": ["linf:0.05"],
        }
    )
    run = Count()
    result = run_sweep(both, tmp_path, device="cpu", listener=run)
    assert (run.trained, result.failures, result.missing) == (1, [], [])
    bare, alone, behind = (
        next(r for r in result.records if r.defense.name == name)
        for name in ("pgd-at", "bit-depth", "pgd-at+bit-depth")
    )
    assert (alone.defense.trained_threat, behind.defense.trained_threat) == (None, "linf:0.05")
    assert bare.clean.value > alone.clean.value  # which was never trained
    assert behind.clean.value > alone.clean.value
    ref = ModelRef("builtin:digits-mlp", behind='{"name": "bit-depth", "bits": 1}')
    target = build_target(ref, None, "cpu")
    x = load_data("builtin:digits").rows(slice(0, 20))
    with target, build_target(replace(ref, behind=None), None, "cpu") as plain:
        assert torch.equal(target.logits(x), plain.logits(x.round()))
    again = Count()
    assert run_sweep(both, tmp_path, device="cpu", listener=again).reused == 3
    assert again.trained == 0


def test_groups_of_the_data_come_out_in_the_record(tmp_path: Path) -> None:
    x = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8).numpy()
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(20) % 10, camera=np.arange(20) % 2)
    plan = SweepConfig.model_validate(
        {
            "data": str(tmp_path / "data.npz"),
            "train": str(tmp_path / "data.npz"),  # the groups are not lost where it is the same
            "groups": "camera",
            "shard": 7,
            "threats": ["linf:0.05"],
            "suites": ["fgsm"],
            "models": [{"spec": "builtin:digits-mlp"}],
        }
    )
    (record,) = run_sweep(plan, tmp_path / "out", device="cpu").records
    assert [(group.name, group.clean.n) for group in record.groups] == [("0", 10), ("1", 10)]
    plain = plan.model_copy(update={"groups": None})
    assert run_sweep(plain, tmp_path / "out", device="cpu").records[0].groups == []
