"""A model through every form in which it can be had: the same logits and verdicts; large ones at 224 x 224."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import robust
from robust.sources import load_model, save_weights
from robust.sources.models import _LOADERS

FILE = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10),
    )
"""
Digits = tuple[Tensor, Tensor]


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


def onnx(net: nn.Module, folder: Path, scheme: str = "onnx") -> nn.Module:
    for package in ("onnx", "onnx2fx", "onnxruntime"):
        pytest.importorskip(package, exc_type=Exception)
    file, rows = folder / "net.onnx", {"x": {0: "batch"}}
    torch.onnx.export(
        net, (torch.zeros(2, 1, 8, 8),), str(file), dynamo=False, input_names=["x"], dynamic_axes=rows
    )
    return load_model(f"{scheme}:{file}")


def onnxruntime(net: nn.Module, folder: Path) -> nn.Module:
    return onnx(net, folder, "onnxruntime")


FILES = {
    "file.py": python_file, "torchscript": torchscript, "export": exported, "onnx": onnx, "onnxruntime": onnxruntime,
}  # fmt: skip


def apart(loaded: nn.Module, plain: nn.Module, x: Tensor) -> float:
    """The largest difference between their logits."""
    with torch.no_grad():
        return float((loaded.eval()(x) - plain.eval()(x)).abs().max())


def verdicts(model: nn.Module, data: Digits, threat: str, *attacks: object) -> pd.DataFrame:
    return robust.evaluate(
        model, data, threat=threat, suite=attacks, device="cpu", precision="float32"
    ).verdicts


@pytest.mark.parametrize("form", FILES)
@pytest.mark.filterwarnings("ignore")
def test_a_trained_net_from_every_kind_of_file(
    form: str, net: nn.Module, digits: Digits, tmp_path: Path
) -> None:
    loaded = FILES[form](net, tmp_path)
    assert apart(loaded, net, digits[0]) <= 1e-5
    square = robust.attacks.Square(queries=60)
    attacks = (
        [square] if form == "onnxruntime" else ["fgsm", robust.attacks.PGD(steps=10, loss="margin"), square]
    )
    threat = "linf:0.2" if form == "onnxruntime" else "linf:0.1"
    found, wanted = (verdicts(model, digits, threat, *attacks) for model in (loaded, net))
    assert found["status"].tolist() == wanted["status"].tolist()
    assert {"broken", "survived"} <= set(found["status"])


def builtin(folder: Path) -> tuple[nn.Module, nn.Module, int]:
    from robust.sources import TinyMLP

    plain = TinyMLP()
    save_weights(plain, folder / "w.safetensors")
    return load_model("builtin:digits-mlp", folder / "w.safetensors"), plain, 0


def torchvision(folder: Path) -> tuple[nn.Module, nn.Module, int]:
    models = pytest.importorskip("torchvision.models", exc_type=Exception)
    plain = models.mobilenet_v3_small(weights=None)
    save_weights(plain, folder / "w.safetensors")
    return load_model("torchvision:mobilenet_v3_small", folder / "w.safetensors"), plain, 64


def timm(folder: Path) -> tuple[nn.Module, nn.Module, int]:
    library = pytest.importorskip("timm", exc_type=Exception)
    plain = library.create_model("resnet10t")
    save_weights(plain, folder / "w.safetensors")
    return load_model("timm:resnet10t", folder / "w.safetensors"), plain, 64


def hub_timm(folder: Path) -> tuple[nn.Module, nn.Module, int]:
    library = pytest.importorskip("timm", exc_type=Exception)
    plain = library.create_model("resnet10t", num_classes=5)
    library.models.save_for_hf(plain, folder / "net", safe_serialization=True)
    return load_model(f"hf:{folder}/net"), plain, 64


class Logits(nn.Module):
    """The logits among what a model of transformers returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(pixel_values=x).logits
        return out


def hub_transformers(folder: Path) -> tuple[nn.Module, nn.Module, int]:
    library = pytest.importorskip("transformers", exc_type=Exception)
    config = library.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3, layer_type="basic"
    )
    plain = library.AutoModelForImageClassification.from_config(config)
    plain.save_pretrained(folder / "net")
    return load_model(f"hf:{folder}/net"), Logits(plain), 32


NAMES: dict[str, tuple[str, Callable[[Path], tuple[nn.Module, nn.Module, int]]]] = {
    "builtin": ("builtin", builtin), "torchvision": ("torchvision", torchvision), "timm": ("timm", timm),
    "hf-timm": ("hf", hub_timm), "hf-transformers": ("hf", hub_transformers),
}  # fmt: skip


@pytest.mark.parametrize("form", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_an_architecture_by_every_kind_of_name(form: str, digits: Digits, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loaded, plain, side = NAMES[form][1](tmp_path)
    x = torch.rand((6, 3, side, side), generator=torch.Generator().manual_seed(1)) if side else digits[0]
    assert apart(loaded, plain, x) <= 1e-5
    with torch.no_grad():
        y = plain(x).argmax(1)
    y[0] = (y[0] + 1) % 3  # a mistake
    found, wanted = (verdicts(m, (x, y), "linf:0.3", robust.attacks.PGD(steps=5)) for m in (loaded, plain))
    assert found["status"].tolist() == wanted["status"].tolist()
    assert found["status"][0] == "misclassified"
    spread = max(1.0, float(wanted["margin"].abs().max()))
    assert (found["margin"] - wanted["margin"]).abs().max() <= 1e-4 * spread


def test_no_form_is_left_out() -> None:
    files = {"file.py": None, **FILES}
    assert {*_LOADERS, "file.py"} == {*files, *(scheme for scheme, _ in NAMES.values())}


@pytest.mark.parametrize(
    "spec", ["torchvision:mobilenet_v3_small", "timm:resnet10t", "timm:vit_tiny_patch16_224"]
)
def test_imagenet_architectures_are_attacked_at_224(spec: str) -> None:
    """From a SPEC to audited verdicts, on images of 3 x 256 x 256 that the Target scales to 224 x 224."""
    pytest.importorskip(spec.partition(":")[0], exc_type=Exception)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = robust.load(spec, device="cpu")
    assert target.normalize is not None
    target.size = (224, 224)  # timm declares 176 for one of them
    x = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with target, torch.no_grad():
        y = target.logits(x).argmax(1)
    report = robust.evaluate(
        target, (x, y), threat="linf:0.3", suite=["pgd"], batch_size=2, precision="float32"
    )
    assert report.clean_correct == 2
    assert report.statuses["broken"] == 2
    assert report.model["preprocess"]["size"] == [224, 224]
