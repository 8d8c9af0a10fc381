"""`robust.harden` and `robust harden`: extra data labelled by a teacher, several processes, what is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Outcome
from torch import nn

import robust
from robust.cli.together import run_together
from robust.defenses import EpochResult, Trainer, TrainingOptions, make_defense
from robust.defenses.pseudo_labels import pseudo_labelled
from robust.errors import DataError, InputError
from robust.leaderboard import Store
from robust.sources import Samples, load_data, load_model, save_weights

QUICK = {"epochs": 30, "learning_rate": 0.01, "batch_size": 64}


def digits(start: int, stop: int) -> Samples:
    return load_data("builtin:digits:train").take(slice(start, stop))


def seeded() -> nn.Module:
    return load_model("builtin:digits-mlp", seed=0)


def trained(count: int) -> nn.Module:
    trainer = Trainer(TrainingOptions(epochs=20, learning_rate=0.01, device="cpu"))
    return make_defense("none").fit(seeded(), digits(0, count), threat=None, trainer=trainer)


def test_pseudo_labels_are_the_teachers_predictions() -> None:
    teacher, data = trained(600).train(), digits(600, 1000)
    wrong = Samples(data.x, torch.zeros_like(data.y), data.ids)
    found = pseudo_labelled(wrong, teacher, device="cpu")
    with torch.no_grad():
        expected = teacher(data.rows(slice(None))).argmax(1)
    assert torch.equal(found.y, expected)
    assert torch.equal(found.x, data.x)
    assert float((found.y == data.y).float().mean()) > 0.85
    assert teacher.training


def test_unlabelled_extra_data_helps_where_labels_are_few(tmp_path: Path) -> None:
    teacher, test = trained(200), load_data("builtin:digits:test")
    more = digits(200, 1200).rows(slice(None))
    accuracy = []
    for extra in (None, more):
        with_more = {} if extra is None else {"extra": extra, "pseudo_labels": teacher, "out": tmp_path}
        found = robust.harden(
            seeded(), digits(0, 60), defense="none", training=QUICK, device="cpu", **with_more
        )
        with torch.no_grad():
            right = found.model(test.rows(slice(None))).argmax(1) == test.y
        accuracy.append(float(right.float().mean()))
    assert accuracy[1] > accuracy[0] + 0.05
    assert json.loads((tmp_path / "config.json").read_text())["extra"]["spec"] == "memory"
    with pytest.raises(InputError, match="pseudo_labels: they are for extra data"):
        robust.harden(seeded(), digits(0, 60), defense="none", pseudo_labels=teacher)
    with pytest.raises(InputError, match="extra_share: it is the share of extra data"):
        robust.harden(seeded(), digits(0, 60), defense="none", training={"extra_share": 0.5})
    with pytest.raises(InputError, match="seed: expected an integer"):
        robust.harden(seeded(), digits(0, 60), defense="none", seed="1")  # type: ignore[arg-type]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-m", "robust", "harden", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


MISTYPED = {
    "a defense": ["--defense", "pgdat"],
    "an option of it": ["--set", "stpes=2"],
    "its value": ["--set", "steps=two"],
    "an option of the training": ["--train", "epoch=2"],
    "a device that cannot do it": ["--train", "precision=16-mixed"],
    "data that are not there": ["--validation", "nowhere.npz"],
    "a suite": ["--suite", "quik"],
    "an option of the command": ["--treat", "linf:0.1"],
    "no threat": ["--threat", ""],
}


@pytest.mark.parametrize("options", MISTYPED.values(), ids=MISTYPED)
def test_a_mistyped_command_leaves_no_folder_behind(
    tmp_path: Path, inside: Callable[..., Outcome], options: list[str]
) -> None:
    plain = ["--model", "builtin:digits-mlp", "--data", "builtin:digits:train", "--threat", "linf:0.1"]
    done = inside("harden", *plain, "--device", "cpu", "--out", "below/hardened", *options, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argument", ["validation", "extra"])
def test_samples_beside_the_training_data_are_named(
    tmp_path: Path, inside: Callable[..., Outcome], argument: str
) -> None:
    x, y = np.full((20, 1, 8, 8), 255, dtype=np.float32), np.zeros(20, dtype=np.int64)
    with pytest.raises(DataError, match=rf"^{argument}: x: expected values in \[0, 1\]"):
        robust.harden(
            load_model("builtin:digits-mlp"),
            "builtin:digits:train",
            defense="none",
            device="cpu",
            **{argument: (x, y)},
        )
    np.savez(tmp_path / "bright.npz", x=x, y=y)
    plain = ["--model", "builtin:digits-mlp", "--data", "builtin:digits:train", "--out", "hardened"]
    done = inside("harden", *plain, "--device", "cpu", f"--{argument}", "bright.npz", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"robust: --{argument}: x: expected values in [0, 1]")


@pytest.mark.parametrize("option", ["out", "recipe", "training"])
def test_an_option_of_another_type_is_named(option: str) -> None:
    data = load_data("builtin:digits:train")
    with pytest.raises(InputError, match=f"{option}: expected .* got 3"):
        robust.harden(load_model("builtin:digits-mlp"), data, defense="none", device="cpu", **{option: 3})  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["--set", "--train"])
def test_an_option_without_its_value_is_named(
    tmp_path: Path, inside: Callable[..., Outcome], option: str
) -> None:
    plain = ["--model", "builtin:digits-mlp", "--data", "builtin:digits:train", "--out", "hardened"]
    done = inside("harden", *plain, "--device", "cpu", option, "epochs", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"robust: {option}: expected NAME=VALUE, got 'epochs'\n")


def test_a_model_that_raises_in_training_is_told_in_a_line(
    tmp_path: Path, inside: Callable[..., Outcome]
) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Tired(nn.Linear):\n"
        "    left = 12\n"
        "    def forward(self, x):\n"
        "        self.left -= 1\n"
        "        if not self.left:\n"
        "            raise ValueError('enough')\n"
        "        return super().forward(x.flatten(1))\n"
        "def make():\n"
        "    return Tired(64, 10)\n"
    )
    plain = ["--model", "net.py:make", "--data", "builtin:digits:train", "--limit", "300", "--out", "out"]
    done = inside(
        "harden", *plain, "--threat", "linf:0.1", "--train", "epochs=2", "--device", "cpu", cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("robust: model: fails")
    assert "net.py, line 7" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_made_is_told_first(tmp_path: Path, inside: Callable[..., Outcome]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for out in ("file", "file/below", "link", "n" * 300):
        done = inside("harden", "--model", "nonsense", "--data", "nonsense", "--out", out, cwd=tmp_path)
        assert done.returncode == 2
        assert f"--out: cannot make the folder {out}: " in done.stderr


def test_a_run_that_is_refused_leaves_the_one_in_the_folder_as_it_was(tmp_path: Path) -> None:
    def harden(epochs: int) -> None:
        training = {**QUICK, "epochs": epochs}
        robust.harden(seeded(), digits(0, 60), defense="none", training=training, device="cpu", out=tmp_path)

    harden(epochs=1)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(InputError, match="is of another run: it differs in epochs"):
        harden(epochs=2)
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.slow
def test_two_processes_harden_and_one_of_them_evaluates_and_writes(tmp_path: Path) -> None:
    save_weights(trained(600), tmp_path / "teacher.safetensors")
    done = run(
        "--model", "builtin:digits-mlp", "--data", "builtin:digits:train", "--validation", "builtin:digits:test",
        "--threat", "linf:0.1", "--defense", "n-fgsm", "--suite", "quick", "--devices", "2", "--device", "cpu",
        "--train", "epochs=8", "--train", "learning_rate=0.01", "--out", "hardened",
        "--extra", "builtin:digits:train", "--pseudo-labels", "builtin:digits-mlp",
        "--pseudo-weights", "teacher.safetensors",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = (line for line in done.stdout.splitlines() if line.startswith(("before", "after")))
    assert before != after
    records = Store(tmp_path / "hardened").records()
    assert sorted(record.defense.name for record in records) == ["as given", "n-fgsm"]
    accuracy = {record.defense.name: record.robust.value for record in records}
    assert accuracy["n-fgsm"] > accuracy["as given"] + 0.3
    history = json.loads((tmp_path / "hardened" / "history.json").read_text())
    assert len(history) == 8
    assert history[-1]["robust_accuracy"] > 0.3


def test_what_several_processes_refuse_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    """Of a command that needs no torch, which would take seconds to import."""
    assert run_together(2, ["list", "suites", "nonsense"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("robust: ") == 1
    assert len(err.splitlines()) == 1
    assert run_together(2, ["--help"]) == 0
    assert capfd.readouterr().out.count("Usage:") == 1


def test_the_history_is_drawn_with_the_epochs_that_were_undone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    from robust.defenses.plots import plot_history

    good = EpochResult(1, 3, 1.0, 0.9, 0.6, 0.1, 0.0, 0.65, 0.9)
    history = [good, replace(good, epoch=2, robust_accuracy=0.1, rolled_back=True), replace(good, epoch=3)]
    pictures = []
    for name, results in (("undone", history), ("kept", [replace(r, rolled_back=False) for r in history])):
        assert plot_history(results, tmp_path / f"{name}.png")
        pictures.append((tmp_path / f"{name}.png").read_bytes())
    assert pictures[0].startswith(b"\x89PNG")
    assert pictures[0] != pictures[1]
    assert not plot_history([], tmp_path / "none.png")


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_script_hardens_as_the_model_that_it_was_made_of(ema: float | None) -> None:
    net = seeded()
    script = torch.jit.script(net)
    plain, scripted = (
        robust.harden(
            model,
            digits(0, 100),
            defense="pgd-at",
            threat="linf:0.05",
            validation=digits(100, 110),
            suite="fgsm",
            training={"epochs": 2, "ema": ema},
            device="cpu",
        )
        for model in (net, script)
    )
    assert scripted.before is not None
    assert plain.before is not None
    assert scripted.before.statuses == plain.before.statuses
    for (key, ours), theirs in zip(
        plain.model.state_dict().items(), scripted.model.state_dict().values(), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-4), key
    assert all(p.requires_grad and p.is_leaf for p in script.parameters())


def test_a_threat_brings_its_bounds_as_it_does_to_an_evaluation() -> None:
    data = digits(0, 500)
    x, y = data.rows(slice(None)) * 2 - 1, data.y
    done = robust.harden(
        seeded(), (x[:450], y[:450]), defense="pgd-at", threat=robust.Linf("0.1", (-1.0, 1.0)), validation=(x[450:], y[450:]),
        training={**QUICK, "epochs": 5}, suite="quick", device="cpu",
    )  # fmt: skip
    assert done.report is not None
    assert done.report.threat.bounds == (-1.0, 1.0)


def test_without_a_threat_the_data_lie_in_the_bounds_of_the_target() -> None:
    data, target = digits(0, 500), robust.Target(seeded(), bounds=(-1.0, 1.0), device="cpu")
    moved = data.rows(slice(None)) * 2 - 1, data.y
    done = robust.harden(target, moved, defense="gaussian", training={**QUICK, "epochs": 5}, device="cpu")
    assert done.report is None
    assert len(done.history) == 5
    with pytest.raises(InputError, match=r"threat: without one bit-depth is for inputs in \(0.0, 1.0\)"):
        robust.harden(target, moved, defense="bit-depth", device="cpu")


@pytest.mark.parametrize(
    ("defense", "trained"),
    [("pgd-at+awp", "linf:0.05"), ("pgd-at+bit-depth", "linf:0.05"), ("none+bit-depth", None)],
)
def test_a_record_says_what_the_defense_within_another_trained_against(
    defense: str, trained: str | None, tmp_path: Path
) -> None:
    robust.harden(
        load_model("builtin:digits-mlp"), "builtin:digits:train", defense=defense, threat="linf:0.05",
        validation=load_data("builtin:digits:test").limit(5), suite="fgsm", training={"epochs": 2}, out=tmp_path,
    )  # fmt: skip
    found = {record.defense.name: record for record in Store(tmp_path).records()}
    assert found[defense].defense.trained_threat == trained
    assert found[defense].defense.parameters["training options"] == {"epochs": 2}
    assert "training options" not in found["as given"].defense.parameters


def test_harden_trains_evaluates_and_keeps_everything(files: Path) -> None:
    done = run(
        "--model", "builtin:digits-mlp", "--data", "builtin:digits:train", "--validation", "builtin:digits:test",
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
