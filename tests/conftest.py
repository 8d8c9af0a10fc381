"""Small real models and data, and ways to run things, shared by the tests."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

import robust
from robust import engine
from robust.attacks.adapters.art import ART
from robust.cli import main
from robust.errors import MissingDependencyError
from robust.sources import save_weights

if TYPE_CHECKING:
    from sessions import Session

    from robust.leaderboard import Store
    from robust.report import Report
    from robust.sweep import SweepConfig, SweepResult

if os.environ.get("PYTEST_XDIST_WORKER"):  # a core each: threads that compete slow each other down
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start

_WORTH_A_LOOK = engine._PASS_WORTH["cpu"]

# With CI set a commit's properties are tried on the same examples each time; elsewhere on fresh ones.
settings.register_profile("robust", deadline=None, max_examples=60, derandomize="CI" in os.environ)
settings.load_profile("robust")

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = ["cpu", GPU]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The same draws of the global generators in whatever order tests run, and the same search on a busy machine.

    Whether a faster copy of a net pays is measured, and a copy rounds otherwise: only its own tests look for one.
    """
    engine._PASS_WORTH["cpu"] = _WORTH_A_LOOK if item.path.stem.startswith("test_engine_") else math.inf
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - where libraries draw from


def needs(*libraries: str) -> pytest.MarkDecorator:
    """Skip a test where one of these attack libraries is not installed: the extras bring them. None is imported."""
    absent = [library for library in libraries if importlib.util.find_spec(library) is None]
    return pytest.mark.skipif(bool(absent), reason=f"needs {', '.join(absent)}")


def need_art() -> None:
    """Skip where ART is missing. Imported as the adapters do it: two workers may be the first on a machine."""
    try:
        ART().load("art")
    except MissingDependencyError as error:
        pytest.skip(str(error), allow_module_level=True)


@functools.cache
def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from robust.sources import load_data

    train, test = load_data("builtin:digits:train"), load_data("builtin:digits:test")
    return train.rows(slice(None)), train.y, test.rows(slice(None)), test.y


@functools.cache
def _trained_state() -> dict[str, Tensor]:
    x, y, _, _ = _digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _small_net()
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(60):
            for rows in torch.randperm(len(x)).split(128):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
    return model.state_dict()


def _small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


@pytest.fixture
def digits() -> tuple[Tensor, Tensor]:
    """The first 64 test digits: x (64, 1, 8, 8) in [0, 1], y (64,)."""
    _, _, x, y = _digits()
    return x[:64].clone(), y[:64].clone()


@pytest.fixture
def net() -> nn.Module:
    """A small convolutional net trained on digits (97 % right), in eval mode."""
    model = _small_net()
    model.load_state_dict(_trained_state())
    return model.eval()


@pytest.fixture
def residual(digits: tuple[Tensor, Tensor]) -> nn.Module:
    """A small residual net, untrained."""
    from wrapped import Residual

    torch.manual_seed(0)
    model = Residual()
    for _ in range(5):  # statistics that folding must take up
        model(digits[0])
    return model.eval()


class Linear(nn.Module):
    """Logits W x + b of flattened inputs: every minimal perturbation is known in closed form."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


def evaluate(model: nn.Module, data: tuple[Tensor, Tensor], **options: Any) -> robust.Report:
    """An evaluation on the CPU in linf:0.1 where nothing else is said."""
    return robust.evaluate(model, data, **{"threat": "linf:0.1", "device": "cpu", **options})


class Outcome(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the command line in this process: for the many cases that need no process of their own."""

    def run_inside(*arguments: str, cwd: Path) -> Outcome:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["robust", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), out, err)

    return run_inside


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs `robust leaderboard` in this process: its status and what it wrote to either output."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["robust", "leaderboard", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return (int(stop.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def files(tmp_path: Path, net: nn.Module, digits: tuple[Tensor, Tensor]) -> Path:
    """A folder with a user's model file, weights and data."""
    (tmp_path / "my_model.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),\n"
        "        nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10))\n"
    )
    save_weights(net, tmp_path / "w.safetensors")
    x, y = digits
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())
    return tmp_path


@pytest.fixture
def sweep_config() -> SweepConfig:
    """A small plan: a model, two defenses, two threats."""
    from sweeps import read_plan

    return read_plan()


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepResult]:
    """That plan, carried out without any trouble: its folder, only to be read, and what came of it."""
    from sweeps import read_plan

    from robust.sweep import run_sweep

    out = tmp_path_factory.mktemp("swept")
    return out, run_sweep(read_plan(), out, device="cpu")


@pytest.fixture(scope="session")
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load all that a check loads late: inner sessions forget new modules, and numpy's load only once."""
    import hypothesis  # noqa: F401 - its own plugin loads it at the end of every session
    import toy

    from robust.gate.baseline import Baseline, compare
    from robust.gate.check import check, evaluate_some
    from robust.gate.evidence import keep

    data = toy.samples(60, 0.1)
    result = check(toy.Threshold(), data, threat=toy.EPS, at_least=0.9, device="cpu")
    keep(result.report, result.samples, tmp_path_factory.mktemp("warm"))
    report = evaluate_some(toy.Threshold(), data, threat=toy.EPS, suite="quick", device="cpu")
    compare(report, Baseline.of(report))


@pytest.fixture
def session(_loaded: None, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A folder in which tests of the plugin run sessions of their own."""
    from sessions import Session

    for name in ("GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    return Session(pytester)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of a few records, only to be read."""
    from sites import fill

    return fill(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def site(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That store, published: the folder, only to be read."""
    from robust.leaderboard.site import publish

    folder = tmp_path_factory.mktemp("site")
    publish(store, folder)
    return folder


@pytest.fixture(scope="session")
def means() -> nn.Module:
    """A linear classifier of digits: the nearest class mean."""
    from forgeries import nearest_mean

    return nearest_mean()


@pytest.fixture(scope="session")
def means_report(means: nn.Module) -> Report:
    """An evaluation of it on 60 digits, with its examples."""
    from forgeries import attacked

    return attacked(means)


@pytest.fixture(scope="session")
def means_filed(means_report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the record of that alone, its examples beside it; only to be read."""
    from forgeries import file_alone

    return file_alone(means_report, tmp_path_factory.mktemp("filed"))
