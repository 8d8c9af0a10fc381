"""TorchScript and exported programs: loaded as they were saved, and no pickle in them is run."""

from __future__ import annotations

import os
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from refusals import Bomb, refused, small
from torch import nn

import robust
from robust.sources import load_model, save_weights


def test_torchscript(tmp_path: Path) -> None:
    model, file = small(), tmp_path / "net.ts"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model, torch.zeros(2, 4)), file)
    x = torch.rand(6, 1, 2, 2)
    assert torch.equal(load_model(f"torchscript:{file}")(x), model(x))
    file.write_bytes(file.read_bytes()[:200])
    refused(lambda: load_model(f"torchscript:{file}"), "truncated, damaged or no TorchScript")
    refused(lambda: load_model(f"torchscript:{tmp_path}/none"), "no such file")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    model, file = small(), tmp_path_factory.mktemp("export") / "net.pt2"
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (torch.zeros(3, 1, 2, 2),), dynamic_shapes=({0: batch},))
    torch.export.save(program, file)
    return model, file


def test_exported_program(exported: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, file = exported
    loaded = load_model(f"export:{file}")
    x = torch.rand(6, 1, 2, 2, requires_grad=True)
    assert torch.allclose(loaded(x), model(x))
    assert torch.autograd.grad(loaded(x).sum(), x)[0].shape == x.shape
    assert loaded.train().training
    assert not loaded.eval().training  # torch's own wrapper refuses both
    other = small()
    save_weights(other, tmp_path / "other.safetensors")
    assert torch.allclose(load_model(f"export:{file}", tmp_path / "other.safetensors")(x), other(x))


@pytest.mark.parametrize("front", [[], [nn.Dropout(0.5)]])
def test_an_exported_program_is_attacked_as_it_is(front: list[nn.Module]) -> None:
    """What ExportedProgram.module() returns refuses train() and eval(), also within other modules."""
    net = small()
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(net, (torch.zeros(3, 1, 2, 2),), dynamic_shapes=(batch,)).module()
    model = nn.Sequential(*front, program)
    x, y = torch.rand(12, 1, 2, 2), torch.arange(12) % 2
    reports = [robust.evaluate(each, (x, y), threat="linf:0.1", suite="quick") for each in (model, net)]
    assert reports[0].verdicts.equals(reports[1].verdicts)
    assert robust.evaluate(program, (x, y), threat="linf:0.1", suite="quick").n == 12
    assert all(module.training for module in (model, *front, program))
    with pytest.raises(NotImplementedError):
        program.eval()


def test_pickles_in_an_exported_program_never_run(exported: tuple[nn.Module, Path], tmp_path: Path) -> None:
    marker, bad = tmp_path / "ran", tmp_path / "bad.pt2"
    torch.save((Bomb(marker),), tmp_path / "bomb.pt")
    with zipfile.ZipFile(exported[1]) as source, zipfile.ZipFile(bad, "w") as target:
        for item in source.namelist():
            content = source.read(item)
            if item.endswith((".pt", "weight_0")):
                content = (tmp_path / "bomb.pt").read_bytes()
            elif item.endswith("weights_config.json"):
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true')
            target.writestr(item, content)
    before = dict(os.environ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(lambda: load_model(f"export:{bad}"), "without pickled objects")
    assert not marker.exists()
    assert dict(os.environ) == before
