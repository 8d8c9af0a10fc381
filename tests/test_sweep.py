"""Sweeps: plans, resuming, shards, failures, what is told."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from robust.errors import InputError, StoreError, UnknownNameError
from robust.leaderboard import Store
from robust.leaderboard.verify import verify
from robust.parts import Part
from robust.sources import load_data, load_model, save_weights
from robust.sweep import Event, SweepConfig, SweepResult, demonstration, load_config, run_sweep
from robust.sweep.cells import plan
from robust.sweep.check import check_plan
from robust.sweep.config import DefenseEntry, ModelEntry
from robust.sweep.estimate import Sampled
from robust.sweep.executors import InProcess, Told
from robust.sweep.processes import Processes
from robust.sweep.results import Results
from robust.sweep.tasks import AttackTask, Folder, ModelRef, Outcome, Worker, build_target

PLAN = """
data = "builtin:digits"
train = "builtin:digits:train"
limit = 60
threats = ["linf:0.05", "l2:0.5"]
suites = ["quick"]
seeds = [0]
shard = 25

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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepResult]:
    """The plan, carried out without any trouble."""
    out = tmp_path_factory.mktemp("whole")
    (out / "plan.toml").write_text(PLAN)
    return out, run_sweep(load_config(out / "plan.toml"), out, device="cpu")


class Count:
    """Counts what is computed, and can be told to break off at a shard."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.trained = self.shards = self.cells = self.reused = 0
        self.stop_at = stop_at

    def __call__(self, event: Event) -> None:
        self.trained += event.kind == "trained"
        self.shards += event.kind == "shard"
        self.cells += event.kind == "cell"
        self.reused += event.kind == "reused" and event.fields["what"] == "cell"
        if event.kind == "progress" and self.shards == self.stop_at:
            raise KeyboardInterrupt


def ids(result: SweepResult) -> list[str]:
    return sorted(record.id for record in result.records)


def test_an_interrupted_sweep_goes_on_and_ends_like_an_uninterrupted_one(
    config: SweepConfig, tmp_path: Path, whole: tuple[Path, SweepResult]
) -> None:
    out, first = whole
    assert (first.computed, first.reused, first.failures, first.missing) == (4, 0, [], [])
    with pytest.raises(KeyboardInterrupt):
        run_sweep(config, tmp_path / "cut", device="cpu", listener=Count(stop_at=5))
    assert len(Store(tmp_path / "cut").records()) == 1
    rest = Count()
    result = run_sweep(config, tmp_path / "cut", device="cpu", listener=rest)
    assert (rest.trained, rest.shards, result.computed, result.reused) == (0, 12 - 5, 3, 1)
    assert ids(result) == ids(first)
    assert tables(tmp_path / "cut") == tables(out)
    again = Count()
    run_sweep(config, tmp_path / "cut", device="cpu", listener=again)
    assert (again.trained, again.shards, again.reused) == (0, 0, 4)
    assert not list((tmp_path / "cut" / "parts").iterdir())


def tables(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "verdicts").iterdir()}


def test_records_hold_what_their_verdict_tables_say(whole: tuple[Path, SweepResult]) -> None:
    out, result = whole
    store = Store(out)
    for record in result.records:
        table = store.verdicts(record)
        assert len(table) == record.data.n == 60
        assert (table["status"] == "survived").sum() == record.robust.k
        assert (table["prediction"] == table["label"]).sum() == record.clean.k


def test_a_failing_pair_is_told_and_the_rest_goes_on(config: SweepConfig, tmp_path: Path) -> None:
    broken = config.defenses[0].model_copy(update={"training": {"epochs": 1, "learning_rate": 1e30}})
    both = config.model_copy(update={"defenses": [broken, config.defenses[1]]})
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
        "pulled); give data of the size that the model was made for"
    ]
    assert first.missing == ["bad x none, linf:0.1, quick, seed 0"]
    (saved,) = (tmp_path / "out" / "failures").iterdir()
    assert "in forward" in saved.read_text()
    (tmp_path / "broken").unlink()
    second = run_sweep(plan, tmp_path / "out", device="cpu")
    assert (second.computed, second.reused, second.failures, second.missing) == (1, 1, [], [])
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
    config: SweepConfig, tmp_path: Path, whole: tuple[Path, SweepResult]
) -> None:
    told: list[Event] = []
    result = run_sweep(config, tmp_path / "a", executor=lambda: Mortal("cpu"), listener=told.append)
    assert ids(result) == ids(whole[1])
    assert [event.fields["reason"] for event in told if event.kind == "retry"] == ["struck by lightning"] * 2

    class Doomed(InProcess):
        def wait(self, told: Told) -> Outcome | None:
            if self._waiting[0].title.startswith("digits-mlp x none"):
                return Outcome(self._waiting.popleft(), "lost", reason="struck by lightning")
            return super().wait(told)

    result = run_sweep(config, tmp_path / "b", executor=lambda: Doomed("cpu"))
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
    config: SweepConfig, tmp_path: Path, whole: tuple[Path, SweepResult]
) -> None:
    out, first = whole
    assassin = Assassin()
    result = run_sweep(config, tmp_path / "pool", executor=assassin.make, listener=assassin)
    assert (result.failures, result.missing, result.stopped) == ([], [], None)
    assert assassin.retries >= 1
    assert ids(result) == ids(first)
    assert tables(tmp_path / "pool") == tables(out)


def _cut(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:1000])


def _alter(weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0x40
    weights.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [(Path.unlink, "no such file"), (_cut, "truncated, damaged"), (_alter, "not those that were trained")],
)
def test_lost_weights_are_trained_again_and_told(
    config: SweepConfig, tmp_path: Path, harm: Callable[[Path], object], reason: str
) -> None:
    small = config.model_copy(update={"defenses": config.defenses[:1]})
    first = run_sweep(small, tmp_path, device="cpu")
    (weights,) = tmp_path.glob("models/*/weights.safetensors")
    whole = weights.read_bytes()
    harm(weights)
    told: list[Event] = []
    second = run_sweep(small, tmp_path, device="cpu", listener=told.append)
    assert [reason in event.fields["reason"] for event in told if event.kind == "lost"] == [True]
    assert (weights.read_bytes(), ids(second)) == (whole, ids(first))
    assert (second.failures, second.missing, second.reused) == ([], [], first.computed)
    third = Count()
    assert run_sweep(small, tmp_path, device="cpu", listener=third).failures == []
    assert third.trained == 0


def test_a_full_disk_is_told_once_and_nothing_is_lost(
    config: SweepConfig, tmp_path: Path, whole: tuple[Path, SweepResult]
) -> None:
    """The system's limit on the size of a file stands in for the disk: the write itself fails."""
    small = config.model_copy(update={"defenses": config.defenses[:1]})
    run = Count()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    first = run_sweep(small, tmp_path, device="cpu", listener=Full(at_shard=4))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert first.stopped is not None
    assert first.stopped.count("File too large") == 1
    assert "what was finished is kept" in first.stopped
    assert (first.computed, first.failures, len(first.missing)) == (1, [], 1)
    second = run_sweep(small, tmp_path, device="cpu", listener=run)
    assert (second.computed, second.reused, second.missing, run.trained) == (1, 1, [], 0)
    assert set(ids(second)) < set(ids(whole[1]))


class Full:
    """Leaves no room for further files after some shards."""

    def __init__(self, at_shard: int) -> None:
        self.left = at_shard

    def __call__(self, event: Event) -> None:
        self.left -= event.kind == "shard"
        if event.kind == "shard" and self.left == 0:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))


def test_the_log_can_be_followed_line_by_line(whole: tuple[Path, SweepResult]) -> None:
    lines = [json.loads(line) for line in (whole[0] / "events.jsonl").read_text().splitlines()]
    kinds = [line["event"] for line in lines]
    assert kinds[0] == "plan"
    assert kinds[-1] == "end"
    assert (kinds.count("trained"), kinds.count("shard"), kinds.count("cell")) == (2, 12, 4)
    assert all(line["time"].endswith("+00:00") for line in lines)
    cell = next(line for line in lines if line["event"] == "cell")
    assert 0 <= cell["low"] <= cell["robust"] <= cell["high"] <= cell["clean"] + 0.2
    assert cell["record"] in {record.id for record in whole[1].records}


def test_a_damaged_shard_is_computed_again(
    config: SweepConfig, tmp_path: Path, whole: tuple[Path, SweepResult]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_sweep(config, tmp_path, device="cpu", listener=Count(stop_at=2))
    shards = sorted((tmp_path / "parts").rglob("*.parquet"))
    assert len(shards) == 2
    shards[0].write_bytes(shards[0].read_bytes()[:-40])
    rest = Count()
    assert ids(run_sweep(config, tmp_path, device="cpu", listener=rest)) == ids(whole[1])
    assert rest.shards == 12 - 1


def test_decoded_data_are_found_again_until_the_file_changes(tmp_path: Path) -> None:
    from robust.sweep.held import hold

    x = torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8)
    frame = tmp_path / "data.npz"
    np.savez(frame, x=x.numpy(), y=np.arange(20) % 4)
    first, again = (hold(str(frame), 7, tmp_path / "held") for _ in range(2))
    assert first == again
    assert torch.equal(first.samples.x, x[first.samples.ids])
    assert (len(first.samples), first.sha256) == (7, first.samples.sha256)
    np.savez(frame, x=255 - x.numpy(), y=np.arange(20) % 4)
    os.utime(frame, ns=(1, 1))
    assert hold(str(frame), 7, tmp_path / "held").sha256 != first.sha256


# -- plans ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("threats =", "treats =", r"treats: unknown key; did you mean 'threats'\?"),
        ("linf:0.05", "linf:0", "eps"),
        ('spec = "builtin', 'sepc = "builtin', r"models\.0\.sepc: unknown key; did you mean 'spec'\?"),
        ('name = "none"', 'nmae = "none"', r"defenses\.0\.nmae: unknown key; did you mean 'name'\?"),
        ("limit = 60", "limit = 0", r"limit: .*, got 0"),
        ("[[models]]", "[[models", "not TOML"),
        ('threats = ["linf:0.05", "l2:0.5"]', "", "threats: give at least one"),
        ("seeds = [0]", "[[exclude]]\n[other]", r"other: unknown key"),
        (PLAN, "", "got an empty file; a sweep needs `data`"),
        ('data = "builtin:digits"', "", "data: is missing; a sweep needs `data`"),
        ('spec = "builtin:digits-mlp"', "", r"models\.0\.spec: is missing"),
        ("limit = 60", 'limit = "all"', r"limit: expected a valid integer, .*got 'all'"),
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
    with pytest.raises(InputError, match="give `train`"):
        run_sweep(config.model_copy(update={"train": None}), tmp_path / "c")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot"):
        run_sweep(config, tmp_path / "file" / "below")
    with pytest.raises(InputError, match="cannot read"):
        load_config(tmp_path / "nowhere.toml")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("builtin:digits-mlp", "builtin:digits-mpl", "did you mean 'digits-mlp'"),
        (
            "builtin:digits-mlp",
            "nets.py:make",
            r"model: no such file nets\.py; a relative one is looked for in ",
        ),
        ("builtin:digits-mlp", "onnx:net.onnx", r"model: no such file net\.onnx"),
        ('spec = "', 'weights = "net.safetensors"\nspec = "', r"weights: no such file net\.safetensors"),
        ('"builtin:digits"', '"builtin:digit"', "did you mean 'digits'"),
        ("digits:train", "digits:trian", "expected split test or train, got 'trian'"),
        ('"builtin:digits"', '"digits.npz"', r"data: no such file digits\.npz"),
        ('"builtin:digits"', '"folder:digits"', "data: no such folder digits"),
        ('name = "none"', 'name = "median"', "has nothing but initial weights; give .*'none\\+median'"),
    ],
)
def test_what_a_plan_names_is_looked_for_before_anything_runs(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    (tmp_path / "plan.toml").write_text(PLAN.replace(old, new))
    with pytest.raises(InputError, match=message):
        run_sweep(load_config(tmp_path / "plan.toml"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spec", ["hf:someone/set.tar", "torchvision:MNIST.npz"])
def test_names_of_other_libraries_are_no_files(config: SweepConfig, spec: str) -> None:
    assert check_plan(config.model_copy(update={"data": spec}))


def test_data_that_cannot_be_read_are_told_before_anything_is_trained_for_them(
    config: SweepConfig, tmp_path: Path
) -> None:
    (tmp_path / "damaged.npz").write_text("nothing of the kind")
    run = Count()
    damaged = config.model_copy(update={"data": str(tmp_path / "damaged.npz")})
    result = run_sweep(damaged, tmp_path / "out", device="cpu", listener=run)
    assert (run.trained, len(result.failures), len(result.missing)) == (0, 2, 4)
    assert all("damaged.npz" in failure.reason for failure in result.failures)


def test_yaml_says_the_same(config: SweepConfig, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    assert load_config(tmp_path / "plan.yaml") == config
    (tmp_path / "plan.yml").write_text("data: !!python/object/apply:os.getcwd []")
    with pytest.raises(InputError, match="not YAML"):
        load_config(tmp_path / "plan.yml")
    for text, said in (
        ("- 1", "got a list"),
        ("", "got an empty file"),
        ("data: a\nmodels: a", "expected a list, got 'a'"),
    ):
        (tmp_path / "plan.yml").write_text(text)
        with pytest.raises(InputError, match=rf"plan\.yml: .*{said}"):
            load_config(tmp_path / "plan.yml")
    plain = "data: a\nthreats: ['linf:1']\nmodels: [{spec: a}]\ndefenses: [none]"
    (tmp_path / "plan.yml").write_text(plain)
    with pytest.raises(
        InputError, match=r"defenses\.0: expected keys and values such as name: none, got 'none'"
    ):
        load_config(tmp_path / "plan.yml")


GRID = {
    "data": "builtin:digits",
    "train": "builtin:digits:train",
    "threats": ["linf:0.1", "l2:1"],
    "suites": ["quick", ["fgsm", {"name": "pgd", "steps": 3}]],
    "seeds": [0, 1],
    "models": [
        {"spec": ["builtin:digits-mlp", "builtin:digits-cnn"]},
        {"spec": "builtin:digits-mlp", "name": "own", "threats": ["l2:2"], "seeds": [7], "limit": 10},
    ],
    "defenses": [
        {"name": "none"},
        {"name": "pgd-at", "threat": "linf:0.1", "grid": {"steps": [2, 5], "loss": ["ce"]}},
    ],
}


def test_lists_expand_to_a_grid_with_overrides() -> None:
    cells = plan(SweepConfig.model_validate(GRID))
    assert len(cells) == 2 * 3 * 2 * 2 * 2 + 1 * 3 * 1 * 2 * 1
    assert {cell.pair.defense.title for cell in cells} == {
        "none",
        "pgd-at(steps=2,loss=ce)",
        "pgd-at(steps=5,loss=ce)",
    }
    own = [cell for cell in cells if cell.pair.model.title == "own"]
    assert {(cell.threat, cell.seed, cell.limit) for cell in own} == {("l2:2", 7, 10)}
    assert len({cell.title for cell in cells}) == len(cells)


def test_exclude_leaves_cells_out() -> None:
    excluded = [
        {"model": "digits-*", "threat": "l2:*"},
        {"defense": "pgd-at", "seed": 1},
        {"suite": "fgsm+pgd", "model": "own"},
    ]
    cells = plan(SweepConfig.model_validate({**GRID, "exclude": excluded}))
    assert len(cells) == 2 * 2 * (2 + 2) - 2 * 2 * 0 + 2 * 2 * 1 - 4 + 3
    assert not any(cell.threat.startswith("l2") and cell.pair.model.title != "own" for cell in cells)
    with pytest.raises(InputError, match="exclude defense = 'trades' matches no cell"):
        plan(SweepConfig.model_validate({**GRID, "exclude": [{"defense": "trades"}]}))
    with pytest.raises(InputError, match="leaves no cell"):
        plan(SweepConfig.model_validate({**GRID, "exclude": [{"model": "*"}]}))


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


def test_an_estimate_adds_what_the_few_samples_took_beyond_their_passes() -> None:
    few = Sampled(forwards=10, backwards=10, samples=8, took=2.0)
    assert few.seconds(100, ahead=0.001, both=0.002) == pytest.approx(100 * 0.03 + 2.0 - 8 * 0.03)
    quick = replace(few, took=0.1)  # in less than its passes take: nothing is taken off
    assert quick.seconds(100, ahead=0.001, both=0.002) == pytest.approx(100 * 0.03)


def test_the_demonstration_is_a_plan_of_twelve() -> None:
    cells = plan(demonstration())
    assert len(cells) == 12
    assert {cell.pair.defense.name for cell in cells} == {"none", "pgd-at", "distillation"}


def test_shards_survive_their_file(tmp_path: Path, config: SweepConfig) -> None:
    from robust.sweep.held import hold

    held = hold("builtin:digits", 12, tmp_path / "data")
    task = AttackTask(
        "1", "cell", ModelRef("builtin:digits-mlp"), str(held.folder), "l2:2", "quick", 0, True, (0, 5), 8, "float32",
        show=(1, 2, 3),
    )  # fmt: skip
    outcome = Worker(Folder(), "cpu").do(task, lambda progress: None)
    part, results = outcome.result, Results(tmp_path)
    assert isinstance(part, Part)
    results.keep_part("key", part, outcome.examples)
    kept = results.part("key", (0, 5))
    assert kept is not None
    read, examples = kept
    assert isinstance(read, Part)
    assert examples == outcome.examples is not None
    pd.testing.assert_frame_equal(read.verdicts, part.verdicts, check_exact=True)
    rest = [{k: v for k, v in vars(p).items() if k != "verdicts"} for p in (read, part)]
    assert rest[0] == rest[1]
    (tmp_path / "parts" / "key" / "0-5.safetensors").write_bytes(examples[:-1])
    assert results.part("key", (0, 5)) is None


def test_few_adversarial_examples_are_kept_whatever_the_shards(
    config: SweepConfig, tmp_path: Path, whole: tuple[Path, SweepResult]
) -> None:
    out, first = whole
    store = Store(out)
    for record in first.records:
        kept = store.examples(record)
        assert kept is not None
        assert 0 < len(kept["sample_id"]) <= 8
        for outcome in verify(store, f"{record.id}.json"):
            assert outcome.ok is not False, outcome
        checks = {outcome.check: outcome.ok for outcome in verify(store, f"{record.id}.json")}
        assert checks["examples"] is checks["ball"] is True
    otherwise = config.model_copy(
        update={"shard": 7, "threats": ["linf:0.05"], "defenses": config.defenses[:1]}
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
    config: SweepConfig, tmp_path: Path
) -> None:
    trained = config.defenses[1]
    behind = trained.model_copy(
        update={"name": "bit-depth", "options": {"bits": 2, "of": "pgd-at", "options": trained.options}}
    )
    save_weights(load_model("builtin:digits-mlp"), tmp_path / "net.safetensors")
    given = ModelEntry(
        spec="builtin:digits-mlp", weights=str(tmp_path / "net.safetensors"), name="given",
        defenses=[DefenseEntry(name="bit-depth", options={"bits": 2})],
    )  # fmt: skip
    both = config.model_copy(
        update={
            "models": [*config.models, given],
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
