"""One trained model through every form of file: the same logits and verdicts; large architectures at 224 x 224."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robust
from robust.sources import load_model, save_weights

FILE = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10),
    )
"""


def python_file(net: nn.Module, folder: Path) -> nn.Module:
    (folder / "net.py").write_text(FILE)
    save_weights(net, folder / "w.safetensors")
    return load_model(f"{folder}/net.py:make", folder / "w.safetensors")


def torchscript(net: nn.Module, folder: Path) -> nn.Module:
    torch.jit.save(torch.jit.trace(net, torch.zeros(2, 1, 8, 8)), folder / "net.ts")
    return load_model(f"torchscript:{folder}/net.ts")


def exported(net: nn.Module, folder: Path) -> nn.Module:
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (torch.zeros(3, 1, 8, 8),), dynamic_shapes=shapes)
    torch.export.save(program, folder / "net.pt2")
    return load_model(f"export:{folder}/net.pt2")


@pytest.mark.parametrize("form", [python_file, torchscript, exported])
def test_the_same_logits_and_verdicts(
    form: Callable[[nn.Module, Path], nn.Module],
    net: nn.Module,
    digits: tuple[Tensor, Tensor],
    tmp_path: Path,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = form(net, tmp_path).eval()
    assert torch.allclose(loaded(digits[0]), net(digits[0]), atol=1e-5)
    tables = [
        robust.evaluate(m, digits, threat="linf:0.1", suite="quick", device="cpu").verdicts
        for m in (loaded, net)
    ]
    assert tables[0]["status"].tolist() == tables[1]["status"].tolist()
    assert {"broken", "survived"} <= set(tables[0]["status"])


@pytest.mark.parametrize("spec", ["torchvision:mobilenet_v3_small", "timm:resnet10t"])
def test_imagenet_architectures_are_attacked_at_224(spec: str) -> None:
    pytest.importorskip(spec.partition(":")[0], exc_type=Exception)
    target = robust.load(spec, device="cpu")
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    target.size = (224, 224)
    with target, torch.no_grad():
        y = target.logits(x).argmax(1)
    report = robust.evaluate(
        target, (x, y), threat="linf:0.3", suite=["pgd"], batch_size=2, precision="float32"
    )
    assert report.clean_correct == 2
    assert report.statuses["broken"] == 2
    assert target.normalize is not None
