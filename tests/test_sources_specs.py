"""Models by SPEC: built-in names, other libraries' names, and what is no SPEC."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from refusals import refused
from torch import nn

import robust
from robust.errors import InputError, MissingDependencyError, UnknownNameError
from robust.sources import SmallCNN, TinyMLP, load_model, model_sha256, save_weights


def test_builtin() -> None:
    assert isinstance(load_model("builtin:mnist-cnn"), SmallCNN)
    refused(lambda: load_model("builtin:mnist-cn"), "did you mean 'mnist-cnn'", error=UnknownNameError)


@pytest.mark.parametrize("spec", ["net.py", "net.py:", "net.txt:make", "", "resnet18", "ftp:x", "builtin:"])
def test_specs_of_no_known_form(spec: str) -> None:
    refused(lambda: load_model(spec), "path/to/file.py:factory, builtin:NAME", repr(spec), error=InputError)


def test_torchvision_by_name(tmp_path: Path) -> None:
    pytest.importorskip("torchvision", exc_type=Exception)
    model = load_model("torchvision:squeezenet1_1")
    save_weights(model, tmp_path / "w.safetensors")
    again = load_model("torchvision:squeezenet1_1", tmp_path / "w.safetensors")
    assert model_sha256(again) == model_sha256(model)
    refused(lambda: load_model("torchvision:resnet81"), "did you mean 'resnet", error=UnknownNameError)


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_missing_libraries_are_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    refused(
        lambda: load_model(f"{package}:resnet18"),
        f"pip install {package}",
        "cannot be imported",
        error=MissingDependencyError,
    )


def test_a_library_that_fails_to_import_is_missing_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timm.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    refused(lambda: load_model("timm:resnet18"), "nms does not exist", error=MissingDependencyError)


def test_load_gives_a_target() -> None:
    target = robust.load("builtin:digits-mlp", normalize=(0.5, 0.5), device="cpu")
    assert isinstance(target, robust.Target)
    assert isinstance(target.model, TinyMLP)
    assert target.normalize == (0.5, 0.5)


def test_a_model_seeds_no_other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CUDA is not in use yet, torch would keep the seed, and set it once it is."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    first, second, other = (load_model("builtin:digits-mlp", seed=seed) for seed in (5, 5, 6))
    assert model_sha256(first) == model_sha256(second) != model_sha256(other)
    assert torch.equal(torch.get_rng_state(), before)
    assert seeded == []


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("net.onnx", "did you mean onnx:net.onnx?"),
        ("net.pt2", "did you mean export:net.pt2?"),
        ("net.py", "net.py:NAME"),
        ("net.safetensors", "--weights"),
        ("net.txt", "got 'net.txt'"),
    ],
)
def test_a_bare_file_is_told_how_it_is_written(spec: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"{re.escape(hint)}.*$"):
        load_model(spec)


def test_a_spec_that_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match=r"model: expected a SPEC, one of .*, got Sequential"):
        robust.load(nn.Sequential())  # type: ignore[arg-type]
