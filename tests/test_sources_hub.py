"""Hub snapshots written by the test itself: transformers and timm, their preprocessing, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import robust
from robust.errors import InputError, MissingDependencyError, ModelError
from robust.sources import load_model
from robust.sources.hub import read_hub

SPAN = 0.5
PROCESSOR = {
    "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.5], "do_rescale": True,
    "rescale_factor": 1 / 255, "do_resize": True, "size": {"shortest_edge": 40}, "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32}, "resample": 3,
}  # fmt: skip


def refused(spec: str, *words: str, error: type[Exception] = ModelError) -> None:
    with pytest.raises(error) as caught:
        load_model(spec)
    for word in words:
        assert word in str(caught.value), f"{word!r} not in {caught.value}"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    transformers = pytest.importorskip("transformers", exc_type=Exception)
    folder = tmp_path_factory.mktemp("hub") / "resnet"
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3, layer_type="basic",
        id2label={0: "cat", 1: "dog", 2: "owl"}, label2id={"cat": 0, "dog": 1, "owl": 2},
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForImageClassification.from_config(config).eval()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model, folder


@pytest.fixture
def snapshot(written: tuple[nn.Module, Path], tmp_path: Path) -> tuple[nn.Module, Path]:
    folder = tmp_path / "resnet"
    shutil.copytree(written[1], folder)
    return written[0], folder


def test_transformers(snapshot: tuple[nn.Module, Path]) -> None:
    model, folder = snapshot
    target = robust.load(f"hf:{folder}", device="cpu")
    x = torch.rand(4, 3, 32, 32, requires_grad=True)
    mean, std = (torch.tensor(PROCESSOR[f"image_{k}"]).view(3, 1, 1) for k in ("mean", "std"))
    with target:
        assert torch.allclose(target.logits(x), model(pixel_values=(x - mean) / std).logits, atol=1e-5)
    assert target.normalize == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    assert target.size == (32, 32)
    assert "shorter side 40 (bicubic), input 32x32, mean 0.5,0.4,0.3" in str(target.preprocessing)
    assert read_hub(str(folder))[2] == ("cat", "dog", "owl")
    assert torch.autograd.grad(target.logits(x).square().sum(), x)[0].abs().sum() > 0


def test_verdicts_are_the_plain_models(snapshot: tuple[nn.Module, Path]) -> None:
    model, folder = snapshot

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x).logits

    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (tuple(PROCESSOR[f"image_{k}"]) for k in ("mean", "std"))
    targets = [
        robust.load(f"hf:{folder}", device="cpu"),
        robust.Target(Plain(), normalize=(mean, std), device="cpu"),
    ]
    with targets[0]:
        y = targets[0].logits(x).argmax(1)
    tables = [robust.evaluate(t, (x, y), threat="linf:0.02", suite=["pgd"]).verdicts for t in targets]
    assert tables[0]["status"].tolist() == tables[1]["status"].tolist()


def test_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", exc_type=Exception)
    hub = pytest.importorskip("timm.models", exc_type=Exception)
    model = timm.create_model("resnet10t", num_classes=3).eval()
    hub.save_for_hf(model, tmp_path / "net", safe_serialization="both")
    (tmp_path / "net" / "pytorch_model.bin").write_bytes(b"never read")
    target = robust.load(f"hf:{tmp_path / 'net'}", device="cpu")
    x = torch.rand(2, 3, 64, 64)
    target.size = None
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    with target, torch.no_grad():
        assert torch.allclose(target.logits(x), model((x - mean) / std), atol=1e-5)
    by_name = robust.load("timm:resnet10t", device="cpu")
    assert by_name.normalize == target.normalize
    assert "timm's configuration of resnet10t" in str(by_name.preprocessing)


def test_a_repository_in_the_cache_needs_no_network(
    snapshot: tuple[nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants", exc_type=Exception)
    revision = "0" * 40
    repository = tmp_path / "cache" / "models--org--net"
    for file in snapshot[1].iterdir():
        blob = repository / "blobs" / file.name
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link = repository / "snapshots" / revision / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../../blobs/{file.name}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(load_model("hf:org/net")(x), snapshot[0](x).logits, atol=1e-5)
    refused("hf:org/none", "neither in the cache nor to be fetched", "hf:./FOLDER")


# --- refusals


def test_pickled_weights_are_refused(snapshot: tuple[nn.Module, Path]) -> None:
    model, folder = snapshot
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(f"hf:{folder}", "only pickled weights (pytorch_model.bin)", "pickles are never loaded")


def test_code_in_a_repository_is_never_run(snapshot: tuple[nn.Module, Path]) -> None:
    folder = snapshot[1]
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageClassification": "modeling.Net"}
    (folder / "config.json").write_text(json.dumps(config))
    marker = folder / "ran"
    (folder / "modeling.py").write_text(f"open({str(marker)!r}, 'w')")
    refused(f"hf:{folder}", "brings its own code", "never run")
    assert not marker.exists()


def test_links_out_of_the_folder_are_refused(snapshot: tuple[nn.Module, Path], tmp_path: Path) -> None:
    folder = snapshot[1]
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    refused(f"hf:{folder}", "outside; refused")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"{", ("cannot be read as JSON",)),
        ("config.json", b"[1]", ("expected a JSON object, got list",)),
        ("config.json", b'{"model_type": "bert"}', ("transformers cannot load it",)),
        ("config.json", b"[" * 100_000, ("cannot be read as JSON",)),
        ("model.safetensors", b"junk" * 9, ("transformers cannot load it",)),
        ("preprocessor_config.json", b'{"size": {"shortest_edge": 99999999}}', ("expected sides of 1 to",)),
        ("preprocessor_config.json", b'{"image_mean": "x", "image_std": 1}', ("expected numbers, got 'x'",)),
        ("preprocessor_config.json", b'{"size": {"depth": 3}}', ("expected height and width",)),
    ],
)
def test_damaged_snapshots(
    snapshot: tuple[nn.Module, Path], name: str, content: bytes, words: tuple[str, ...]
) -> None:
    (snapshot[1] / name).write_bytes(content)
    refused(f"hf:{snapshot[1]}", *words)


def test_weights_that_would_be_random_are_refused(snapshot: tuple[nn.Module, Path]) -> None:
    import safetensors.torch

    file = snapshot[1] / "model.safetensors"
    state = safetensors.torch.load_file(file)
    state.pop("classifier.1.weight")
    safetensors.torch.save_file(state, file, metadata={"format": "pt"})
    refused(f"hf:{snapshot[1]}", "its weights lack classifier.1.weight", "would be random")


@pytest.mark.parametrize("name", ["../x", "a/b/c", "a b", "/nowhere/x", "org/", "-x/y"])
def test_names_of_no_repository(name: str) -> None:
    refused(f"hf:{name}", "expected ORG/NAME", error=InputError)


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    refused(f"hf:{tmp_path}", "transformers", "robust-harness[hf]", error=MissingDependencyError)
