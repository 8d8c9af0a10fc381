"""What a sweep finds done, by an interrupted one too: nothing of another model's code, nothing whose files are gone, and no error passed over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Outcome
from sweeps import Count, ids, tables
from torch import Tensor, nn

from robust.leaderboard import Store
from robust.sources import load_model, origin_sha256, save_weights
from robust.sweep import SweepConfig, SweepResult, run_sweep
from robust.sweep.tasks import ModelRef, build_target

NET = """
import torch
from helper import scale

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(10, 64))

    def forward(self, x):
        return scale(x).flatten(1) @ self.weight.T

def make():
    return Net()
"""
SOMETIMES_NAN = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(10, 64))

    def forward(self, x):
        logits = x.flatten(1) @ self.weight.T
        return logits.where(x.flatten(1).sum(1, keepdim=True) < 20, torch.nan)

def make():
    return Net()
"""


def sweep(folder: Path, spec: str = "net.py:make", **changes: object) -> SweepResult:
    plan = {
        "data": "builtin:digits",
        "limit": 20,
        "threats": ["linf:0.1"],
        "suites": ["fgsm"],
        "models": [{"spec": spec if spec.startswith("torchscript:") else f"{folder}/{spec}"}],
        **changes,
    }
    return run_sweep(SweepConfig.model_validate(plan), folder / "out", device="cpu")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "helper.py").write_text("def scale(x):\n    return x\n")
    return tmp_path


def test_an_interrupted_sweep_goes_on_and_ends_like_an_uninterrupted_one(
    sweep_config: SweepConfig, tmp_path: Path, swept: tuple[Path, SweepResult]
) -> None:
    out, first = swept
    assert (first.computed, first.reused, first.failures, first.missing) == (4, 0, [], [])
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep_config, tmp_path / "cut", device="cpu", listener=Count(stop_at=5))
    assert len(Store(tmp_path / "cut").records()) == 1
    rest = Count()
    result = run_sweep(sweep_config, tmp_path / "cut", device="cpu", listener=rest)
    assert (rest.trained, rest.shards, result.computed, result.reused) == (0, 12 - 5, 3, 1)
    assert ids(result) == ids(first)
    assert tables(tmp_path / "cut") == tables(out)
    again = Count()
    run_sweep(sweep_config, tmp_path / "cut", device="cpu", listener=again)
    assert (again.trained, again.shards, again.reused) == (0, 0, 4)
    assert not list((tmp_path / "cut" / "parts").iterdir())


def test_a_cell_cut_off_in_the_middle_of_a_suite_with_lists_of_options_goes_on(
    project: Path, tmp_path: Path
) -> None:
    """Shards that were kept in a file join fresh ones: `radii=(2, 1)` is a list there."""
    plan = SweepConfig.model_validate(
        {
            "data": "builtin:digits",
            "limit": 20,
            "shard": 10,
            "threats": ["linf:0.1"],
            "suites": [[{"name": "basin-hopping", "steps": 2, "radii": [2, 1], "hops": 1}]],
            "models": [{"spec": f"{project}/net.py:make"}],
            "precision": "float32",
            "batch_size": 20,
        }
    )
    whole = run_sweep(plan, tmp_path / "whole", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan, tmp_path / "cut", device="cpu", listener=Count(stop_at=1))
    rest = Count()
    result = run_sweep(plan, tmp_path / "cut", device="cpu", listener=rest)
    assert (rest.shards, result.failures) == (1, [])
    assert ids(result) == ids(whole)


@pytest.mark.parametrize("file", ["net.py", "helper.py"])
def test_changed_code_with_the_same_weights_is_another_model(project: Path, file: str) -> None:
    first = sweep(project)
    assert (first.computed, sweep(project).reused) == (1, 1)
    text = (project / file).read_text()
    (project / file).write_text(
        text.replace("flatten(1) @", "flatten(1).flip(1) @").replace("return x", "return 1 - x")
    )
    changed = sweep(project)
    assert (changed.computed, changed.reused) == (1, 0)
    assert changed.records[0].clean != first.records[0].clean
    (project / file).write_text(text)
    assert sweep(project).records[0].id == first.records[0].id


def test_changed_code_is_trained_anew(project: Path) -> None:
    trained = {
        "train": "builtin:digits:train",
        "defenses": [{"name": "none", "training": {"epochs": 1, "batch_size": 256}}],
    }
    assert sweep(project, **trained).computed == 1
    (project / "helper.py").write_text("def scale(x):\n    return 1 - x\n")
    changed = sweep(project, **trained)
    assert (changed.computed, changed.failures) == (1, [])
    assert len(list((project / "out" / "models").iterdir())) == 2


def test_another_surrogate_of_the_same_name_is_another_attack(project: Path) -> None:
    (project / "other.py").write_text(NET.replace("return scale(x)", "return -scale(x)"))
    suite = [{"name": "transfer", "surrogate": f"{project}/other.py:make", "steps": 2}]
    assert sweep(project, suites=[suite]).computed == 1
    assert sweep(project, suites=[suite]).reused == 1
    (project / "other.py").write_text(NET)
    assert sweep(project, suites=[suite]).computed == 1


def test_another_teacher_of_the_same_name_trains_another_model(project: Path) -> None:
    (project / "teacher.py").write_text(NET)
    options = {"teacher": f"{project}/teacher.py:make", "steps": 1}
    trained = {
        "train": "builtin:digits:train",
        "defenses": [
            {
                "name": "ard",
                "options": options,
                "threat": "linf:0.1",
                "training": {"epochs": 1, "batch_size": 256},
            }
        ],
    }
    assert sweep(project, **trained).computed == 1
    (project / "teacher.py").write_text(NET.replace("return scale(x)", "return -scale(x)"))
    assert sweep(project, **trained).computed == 1
    assert len(list((project / "out" / "models").iterdir())) == 2


class Scores(nn.Module):
    """A layer, and what is done with its logits."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.layer, self.sign = nn.Linear(64, 10), sign
        nn.init.eye_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        return self.sign * logits


def test_another_graph_with_the_same_weights_is_another_model(tmp_path: Path) -> None:
    spec = f"torchscript:{tmp_path}/net.pt"
    for sign in (1.0, -1.0):
        script = torch.jit.trace(Scores(sign), torch.zeros(1, 1, 8, 8))  # type: ignore[no-untyped-call]
        script.save(str(tmp_path / "net.pt"))
        assert (sweep(tmp_path, spec).computed, sweep(tmp_path, spec).reused) == (1, 1)


def test_what_a_model_is_read_from(project: Path) -> None:
    package = project / "parts"
    package.mkdir()
    (package / "block.py").write_text("from .deep import nothing\n")
    (package / "deep.py").write_text("nothing = 0\n")
    (project / "stranger.py").write_text("")
    (project / "net.py").write_text("import parts.block\nimport torch.nn\n" + NET)
    spec = f"{project}/net.py:make"
    seen = [origin_sha256(spec)]
    for file in (package / "deep.py", package / "block.py", project / "helper.py", project / "net.py"):
        file.write_text(f"{file.read_text()}\n# changed")
        seen.append(origin_sha256(spec))
    assert len(set(seen)) == 5
    (project / "stranger.py").write_text("# changed")
    (project / "helper.py").write_text("this is no Python\n")
    assert origin_sha256(spec) != seen[-1]
    assert origin_sha256("builtin:digits-mlp") is origin_sha256("hf:someone/net") is None
    elsewhere = project.rename(project.with_name("elsewhere"))
    (elsewhere / "helper.py").write_text("def scale(x):\n    return x\n\n# changed")
    assert origin_sha256(f"{elsewhere}/net.py:make") == seen[-1]


def test_a_model_that_changes_under_a_running_sweep_is_filed_under_neither(project: Path) -> None:
    ref = ModelRef(f"{project}/net.py:make", origin=origin_sha256(f"{project}/net.py:make"))
    build_target(ref, None, "cpu")
    (project / "helper.py").write_text("def scale(x):\n    return 1 - x\n")
    with pytest.raises(ValueError, match="has changed since the sweep began"):
        build_target(ref, None, "cpu")


@pytest.mark.parametrize("lost", ["records/*.json", "verdicts/*.parquet", "examples/*.safetensors"])
@pytest.mark.parametrize("how", [Path.unlink, lambda path: path.write_bytes(b"{")], ids=["gone", "damaged"])
def test_a_result_whose_files_are_gone_is_computed_again(
    project: Path, lost: str, how: Callable[[Path], object]
) -> None:
    wide = {"limit": 60, "threats": ["linf:0.3"]}
    first = sweep(project, **wide)
    (file,) = (project / "out").glob(lost)
    how(file)
    again = sweep(project, **wide)
    assert (again.computed, again.failures, again.missing, again.stopped) == (1, [], [], None)
    assert file.stat().st_size > 1
    assert sweep(project, **wide).records[0].id == first.records[0].id


@pytest.mark.parametrize("suffix", ["json", "parquet"])
@pytest.mark.parametrize(
    "harm",
    [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9]), lambda path: path.write_text("{}")],
    ids=["gone", "cut", "of another form"],
)
def test_a_curve_whose_files_are_gone_or_damaged_is_computed_again(
    project: Path, harm: Callable[[Path], object], suffix: str
) -> None:
    curves = {"threats": [], "curves": [{"norm": "linf", "eps": ["0.05", "0.1"], "suite": "fgsm"}]}
    sweep(project, **curves)
    (file,) = (project / "out" / "curves").glob(f"*.{suffix}")
    harm(file)
    assert sweep(project, **curves).computed == 1
    assert sweep(project, **curves).reused == 1


def test_errors_are_told_by_every_run_until_the_result_is_deleted(
    tmp_path: Path, inside: Callable[..., Outcome]
) -> None:
    (tmp_path / "net.py").write_text(SOMETIMES_NAN)
    (tmp_path / "plan.toml").write_text(
        'data = "builtin:digits"\nlimit = 20\nthreats = ["linf:0.1"]\nsuites = ["fgsm"]\n'
        '[[models]]\nspec = "net.py:make"\n[[curves]]\nnorm = "linf"\neps = ["0.05", "0.1"]\nsuite = "fgsm"\n'
    )
    runs = [inside("sweep", "plan.toml", "--out", "out", "--device", "cpu", cwd=tmp_path) for _ in range(2)]
    assert [done.returncode for done in runs] == [3, 3]
    told = [
        [line for line in done.stderr.splitlines() if line.startswith(("robust:", "  out/"))] for done in runs
    ]
    assert told[0] == told[1]
    assert "0 evaluations computed, 2 found" in runs[1].stdout
    assert "samples ended in an error" in told[1][0]
    assert "non-finite logits" in next((tmp_path / "out" / "failures").iterdir()).read_text()
    kept = [tmp_path / line.strip() for line in told[1] if line.startswith("  out/")]
    assert len(kept) == 2
    for file in kept:
        file.unlink()
    anew = inside("sweep", "plan.toml", "--out", "out", "--device", "cpu", cwd=tmp_path)
    assert "2 evaluations computed, 0 found" in anew.stdout


def test_given_weights_count_too(project: Path) -> None:
    weights = project / "w.safetensors"
    net = load_model(f"{project}/net.py:make")
    models = [{"spec": f"{project}/net.py:make", "weights": str(weights)}]
    for factor in (1.0, 2.0):
        with torch.no_grad():
            net.weight.mul_(factor)  # type: ignore[operator,union-attr]
        save_weights(net, weights)
        assert sweep(project, models=models).computed == 1
    assert sweep(project, models=models).reused == 1
