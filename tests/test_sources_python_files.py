"""Models from Python files: their own neighbours are imported, nothing is left behind, bad factories are told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from refusals import refused

from robust.sources import load_model

FILE = """
from dataclasses import dataclass
import torch
from torch import nn
from neighbour import WIDTH

@dataclass
class Config:
    width: int = WIDTH

def make():
    import late
    return nn.Linear(Config().width, late.CLASSES)

def number():
    return 3

def broken():
    raise RuntimeError("no weights here")

def needy(width):
    return nn.Linear(width, 1)

def leave():
    raise SystemExit(4)

ready = nn.Linear(1, 1)
"""


def project(folder: Path, width: int) -> Path:
    folder.mkdir()
    (folder / "net.py").write_text(FILE)
    (folder / "neighbour.py").write_text(f"WIDTH = {width}")
    (folder / "late.py").write_text("CLASSES = 2")
    return folder / "net.py"


def test_python_files_import_their_own_neighbours(tmp_path: Path) -> None:
    path, modules = list(sys.path), set(sys.modules)
    for name, width in (("one", 3), ("two", 7)):
        model = load_model(f"{project(tmp_path / name, width)}:make")
        assert model.weight.shape == (2, width)
    assert sys.path == path
    assert not {"neighbour", "late", "net"} & set(sys.modules)
    assert all(name.startswith("_robust_model_") for name in set(sys.modules) - modules)


def test_a_folder_that_is_on_the_path_already_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = project(tmp_path / "one", 3)
    monkeypatch.syspath_prepend(str(file.parent.resolve()))
    load_model(f"{file}:make")
    assert str(file.parent.resolve()) in sys.path
    assert sys.modules.pop("neighbour").WIDTH == 3
    assert sys.modules.pop("late").CLASSES == 2


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("mak", ("did you mean 'make'", "callables in it: Config, broken, leave, make, needy, number")),
        ("zzz", ("callables in it: Config, broken",)),
        ("number", ("number() to return a torch.nn.Module, got int",)),
        ("broken", ("broken() raised RuntimeError: no weights here",)),
        ("needy", ("TypeError", "width", "without arguments")),
        ("leave", ("raised SystemExit: 4",)),
        ("ready", ("a module, not a factory",)),
    ],
)
def test_bad_factories(tmp_path: Path, factory: str, words: tuple[str, ...]) -> None:
    file = project(tmp_path / "one", 3)
    path = list(sys.path)
    refused(lambda: load_model(f"{file}:{factory}"), str(file), *words)
    assert sys.path == path


def test_bad_python_files(tmp_path: Path) -> None:
    refused(lambda: load_model(f"{tmp_path}/none.py:make"), "none.py: no such file")
    bad = tmp_path / "bad.py"
    for source, words in (
        ("def make(:", "SyntaxError"),
        ("import no_such_module_here", "ModuleNotFoundError"),
    ):
        bad.write_text(source)
        refused(lambda: load_model(f"{bad}:make"), "importing it raised", words)
    assert not [name for name in sys.modules if getattr(sys.modules[name], "__file__", None) == str(bad)]
