"""Models by name: known parameter counts, every form loaded, every bad file refused without running it."""

from __future__ import annotations

import os
import pickle
import re
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import robust
from robust.errors import (
    InputError,
    MissingDependencyError,
    ModelError,
    StoreError,
    UnknownNameError,
)
from robust.sources import (
    MODELS,
    PreActResNet18,
    ResNet18,
    SmallCNN,
    TinyMLP,
    WideResNet,
    load_model,
    load_weights,
    model_sha256,
    save_weights,
)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).eval()


def refused(call: object, *words: str, error: type[Exception] = ModelError) -> None:
    with pytest.raises(error) as caught:
        call()  # type: ignore[operator]
    for word in words:
        assert word in str(caught.value), f"{word!r} not in {caught.value}"


class Bomb:
    """Makes a folder when it is unpickled the ordinary way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


# --- architectures


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mnist-cnn", 166_406),
        ("digits-mlp", 8_970),
        ("cifar-resnet18", 11_173_962),
        ("cifar-preactresnet18", 11_172_170),
        ("cifar-wrn28-10", 36_479_194),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = MODELS[name]()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len((MODELS[name].__doc__ or "").splitlines()[0]) > 20


def test_every_registered_model_is_counted_above() -> None:
    assert list(MODELS) == [
        "cifar-preactresnet18",
        "cifar-resnet18",
        "cifar-wrn28-10",
        "digits-mlp",
        "mnist-cnn",
    ]


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (SmallCNN(), (1, 28, 28)),
        (SmallCNN(7, in_channels=3, image_size=8), (3, 8, 8)),
        (SmallCNN(7, image_size=5), (1, 5, 5)),
        (TinyMLP(), (1, 8, 8)),
        (TinyMLP(4, in_channels=2, image_size=3), (2, 3, 3)),
        (ResNet18(7, in_channels=1), (1, 16, 16)),
        (PreActResNet18(7), (3, 8, 8)),
        (WideResNet(7, depth=10, widen=1), (3, 32, 32)),
        (WideResNet(7, in_channels=1, depth=16, widen=2), (1, 20, 20)),
    ],
)
def test_logits_per_sample_and_gradients_everywhere(model: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.random.fork_rng():  # else one draw in sixteen gives four positive logits
        torch.manual_seed(1)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    model.eval()
    logits = model(x)
    classes = list(model.parameters())[-1].shape[0]
    assert logits.shape == (3, classes)
    assert torch.allclose(model(x[1:2]), logits[1:2], atol=1e-5)
    assert (logits < 0).any()  # neither probabilities nor a final ReLU
    logits.square().sum().backward()
    assert (x.grad.flatten(1).abs().amax(1) > 0).all()
    assert all(p.grad is not None for p in model.parameters())


def test_resnet_stages_halve_the_image_three_times() -> None:
    sizes = []
    model = ResNet18().eval()
    for stage in model.stages:
        stage.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:])))
    model(torch.zeros(1, 3, 32, 32))
    assert sizes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_sizes_that_no_network_takes() -> None:
    refused(lambda: MODELS["mnist-cnn"](image_size=3), "at least 4, got 3")
    refused(lambda: MODELS["cifar-resnet18"](image_size=4), "at least 8, got 4")
    refused(lambda: WideResNet(depth=27), "6 n + 4", "got 27")
    refused(lambda: WideResNet(widen=0), "widen", "got 0")


# --- built-ins and Python files


def test_builtin() -> None:
    assert isinstance(load_model("builtin:mnist-cnn"), SmallCNN)
    refused(lambda: load_model("builtin:mnist-cn"), "did you mean 'mnist-cnn'", error=UnknownNameError)


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


@pytest.mark.parametrize("spec", ["net.py", "net.py:", "net.txt:make", "", "resnet18", "ftp:x", "builtin:"])
def test_specs_of_no_known_form(spec: str) -> None:
    refused(lambda: load_model(spec), "path/to/file.py:factory, builtin:NAME", repr(spec), error=InputError)


# --- other libraries


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


# --- graphs in files


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


def test_load_gives_a_target() -> None:
    target = robust.load("builtin:digits-mlp", normalize=(0.5, 0.5), device="cpu")
    assert isinstance(target, robust.Target)
    assert isinstance(target.model, TinyMLP)
    assert target.normalize == (0.5, 0.5)


# --- weights


def test_every_file_form_of_weights_round_trips(tmp_path: Path) -> None:
    model = small()
    model[2].running_mean.fill_(0.25)
    state = model.state_dict()
    save_weights(model, tmp_path / "new" / "w.safetensors")
    forms = {
        "plain.pt": state,
        "state.pt": {"state_dict": state, "epoch": 3},
        "model.pth": {"model": dict(state), "lr": 0.1},
        "parallel.pt": {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        "compiled.pt": {f"module._orig_mod.{k}": v for k, v in state.items()},
        "double.pt": {k: v.double() for k, v in state.items()},
        "uncounted.pt": {k: v for k, v in state.items() if "num_batches" not in k},
    }
    for name, content in forms.items():
        torch.save(content, tmp_path / name)
    for file in [tmp_path / "new" / "w.safetensors", *(tmp_path / name for name in forms)]:
        fresh = small()
        assert model_sha256(fresh) != model_sha256(model)
        load_weights(fresh, file)
        assert model_sha256(fresh) == model_sha256(model), file
        assert all(p.requires_grad for p in fresh.parameters())


def test_a_prefix_of_the_models_own_stays(tmp_path: Path) -> None:
    model = nn.DataParallel(nn.Linear(2, 2))
    save_weights(model, tmp_path / "w.safetensors")
    fresh = nn.DataParallel(nn.Linear(2, 2))
    load_weights(fresh, tmp_path / "w.safetensors")
    assert model_sha256(fresh) == model_sha256(model)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_tied_weights(tmp_path: Path) -> None:
    model = Tied()
    save_weights(model, tmp_path / "all.safetensors")
    safetensors.torch.save_model(model, str(tmp_path / "once.safetensors"))
    assert len(safetensors.torch.load_file(tmp_path / "once.safetensors")) == 3
    for name in ("all", "once"):
        fresh = Tied()
        load_weights(fresh, tmp_path / f"{name}.safetensors")
        assert model_sha256(fresh) == model_sha256(model)
        assert fresh.first.weight is fresh.second.weight


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("1.weight"), ("1 missing: 1.weight",)),
        (lambda s: s.update(extra=torch.zeros(1)), ("1 unexpected: extra",)),
        (lambda s: s.update({"4.weight": torch.zeros(9, 5)}), ("4.weight (9, 5) for (3, 5)",)),
        (lambda s: s.update({f"x{i}": torch.zeros(1) for i in range(9)}), ("9 unexpected: x0, x1", "...")),
        (lambda s: s.clear(), ("an empty one",)),
    ],
)
def test_weights_that_do_not_fit_leave_the_model_alone(
    tmp_path: Path, change, words: tuple[str, ...]
) -> None:
    state = small().state_dict()
    change(state)
    torch.save(state, tmp_path / "w.pt")
    model = small()
    before = model_sha256(model)
    refused(lambda: load_weights(model, tmp_path / "w.pt"), "w.pt", *words)
    assert model_sha256(model) == before


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2), {"epoch": 3}, {"state_dict": {"a": 1}}])
def test_things_that_are_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    refused(lambda: load_weights(small(), tmp_path / "w.pt"), "expected a state dict")


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: {"state_dict": {"w": b}}])
@pytest.mark.parametrize("form", ["torch", "pickle", "safetensors"])
def test_pickles_offered_as_weights_never_run(tmp_path: Path, wrap, form: str) -> None:
    marker = tmp_path / "ran"
    file = tmp_path / f"bomb.{'safetensors' if form == 'safetensors' else 'pt'}"
    if form == "torch":
        torch.save(wrap(Bomb(marker)), file)
    else:
        file.write_bytes(pickle.dumps(wrap(Bomb(marker))))
    words = () if form == "safetensors" else ("would run code", "re-save the state dict as safetensors")
    refused(lambda: load_weights(small(), file), str(file), *words)
    assert not marker.exists()
    if form != "safetensors":
        if form == "torch":
            torch.load(file, weights_only=False)
        else:
            pickle.loads(file.read_bytes())  # noqa: S301
        assert marker.exists()  # the bomb was live


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_weights(tmp_path: Path, suffix: str, keep: float) -> None:
    file = tmp_path / f"w.{suffix}"
    if suffix == "pt":
        torch.save(small().state_dict(), file)
    else:
        save_weights(small(), file)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    refused(lambda: load_weights(small(), file), "truncated, damaged")


def test_a_model_seeds_no_other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CUDA is not in use yet, torch would keep the seed, and set it once it is."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    first, second, other = (load_model("builtin:digits-mlp", seed=seed) for seed in (5, 5, 6))
    assert model_sha256(first) == model_sha256(second) != model_sha256(other)
    assert torch.equal(torch.get_rng_state(), before)
    assert seeded == []


def test_missing_weights(tmp_path: Path) -> None:
    refused(lambda: load_weights(small(), tmp_path / "none.pt"), "none.pt: no such file")
    refused(lambda: load_model("builtin:digits-mlp", tmp_path), "a folder, not a file")


def test_saving_replaces_at_once_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    model = small()
    save_weights(model, file)
    save_weights(small(), file)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    assert file.stat().st_mode & 0o777 == 0o666 & ~_umask()
    (tmp_path / "taken.safetensors").mkdir()
    blocked = tmp_path / "taken.safetensors"
    refused(lambda: save_weights(model, blocked), "cannot be written", error=StoreError)
    refused(lambda: save_weights(model, file / "sub.safetensors"), "cannot be written", error=StoreError)
    refused(lambda: save_weights(model, tmp_path / "w.pt"), "ending in .safetensors", error=InputError)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken.safetensors", "w.safetensors"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_model_hash_sees_values_names_types_and_buffers_only() -> None:
    model = small()
    digest = model_sha256(model)
    copy = small()
    copy.load_state_dict(model.state_dict())
    copy.train().requires_grad_(False)
    assert model_sha256(copy) == digest
    copy[2].running_var[0] += 1
    assert model_sha256(copy) != digest
    assert model_sha256(small().load_state_dict(model.state_dict()) and model.double()) != digest
    first, second = nn.ModuleDict({"a": nn.Linear(2, 2)}), nn.ModuleDict({"b": nn.Linear(2, 2)})
    second["b"].load_state_dict(first["a"].state_dict())
    assert model_sha256(first) != model_sha256(second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool])
def test_model_hash_takes_every_type(dtype: torch.dtype) -> None:
    model = nn.Module()
    model.register_buffer("scalar", torch.tensor(1).to(dtype))
    model.register_buffer("empty", torch.zeros(0, 3, dtype=dtype))
    model.register_buffer("strided", torch.ones(4, 6, dtype=dtype)[:, ::2].t())
    digest = model_sha256(model)
    model.scalar.zero_()
    assert model_sha256(model) != digest


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
