"""Models by name."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust.errors import InputError, MissingDependencyError, ModelError, UnknownNameError, UnsupportedError
from robust.sources.architectures import MODELS, Architecture
from robust.sources.pyfile import model_from_file
from robust.sources.samples import UNIT, Bounds
from robust.sources.weights import load_weights, model_sha256, save_weights
from robust.target import Normalization, Target

__all__ = ["MODELS", "Architecture", "load", "load_model", "load_weights", "model_sha256", "save_weights"]

FORMS = (
    "path/to/file.py:factory, builtin:NAME, torchvision:NAME, timm:NAME, torchscript:FILE, export:FILE.pt2"
)


def load_model(spec: str, weights: str | Path | None = None, *, seed: int = 0) -> nn.Module:
    """The model that a SPEC names, on the CPU.

    `path/to/file.py:factory` runs that file. `torchscript:` and `export:` run the graph stored in the
    file, and torch evaluates expressions found there: load only files that you trust. Nothing is
    downloaded: without weights the builtin:, torchvision: and timm: models are freshly initialised.

    Args:
        spec: path/to/file.py:factory, builtin:NAME, torchvision:NAME, timm:NAME, torchscript:FILE or
            export:FILE.pt2.
        weights: a state dict to load into it (see load_weights).
        seed: of the initial weights, where no others are loaded; the global random state stays as it is.

    Raises:
        InputError: a SPEC of unknown form.
        UnsupportedError: a form that this version does not offer.
        UnknownNameError: no such built-in, torchvision or timm model.
        ModelError: a file that is missing, damaged or does not give an nn.Module; weights that do not fit.
        MissingDependencyError: torchvision or timm cannot be imported.
    """
    scheme, _, name = spec.partition(":")
    loaders: dict[str, Callable[[str], nn.Module]] = {
        "builtin": lambda n: MODELS[n](),
        "torchvision": _torchvision,
        "timm": _timm,
        "torchscript": _torchscript,
        "export": _exported,
    }
    if scheme in ("hf", "onnx"):
        raise UnsupportedError(f"model {spec!r}: {scheme}: is not offered in this version; use {FORMS}")
    if scheme in loaders and not name:
        raise InputError(f"model: expected a name after {scheme}:, got {spec!r}; the forms are {FORMS}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = loaders[scheme](name) if scheme in loaders else _from_python(spec)
    if weights is not None:
        # An exported program's names are those of the model it was made from, without the wrapper's.
        load_weights(model.program if isinstance(model, ExportedModel) else model, weights)
    return model


def load(
    spec: str,
    weights: str | Path | None = None,
    *,
    normalize: Normalization | None = None,
    bounds: Bounds = UNIT,
    device: str | torch.device = "auto",
) -> Target:
    """The model that a SPEC names, as a Target: load_model, then normalisation, bounds and device.

    Raises:
        InputError: as load_model does, and for an unusable normalisation or device.
    """
    return Target(load_model(spec, weights), normalize=normalize, bounds=bounds, device=device)


def _from_python(spec: str) -> nn.Module:
    path, colon, factory = spec.rpartition(":")
    if not colon or not factory or Path(path).suffix != ".py":
        raise InputError(f"model: expected one of {FORMS}, got {spec!r}")
    return model_from_file(Path(path), factory)


def _torchvision(name: str) -> nn.Module:
    models = _optional("torchvision", "torchvision.models")
    _check_name("torchvision", name, models.list_models())
    model: nn.Module = models.get_model(name, weights=None)
    return model


def _timm(name: str) -> nn.Module:
    timm = _optional("timm", "timm")
    _check_name("timm", name, timm.list_models())
    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def _optional(package: str, module: str) -> Any:
    try:
        return import_module(module)
    except Exception as e:  # torchvision next to a torch of another release raises RuntimeError
        raise MissingDependencyError(
            f"model {package}:NAME needs the package {package}, which cannot be imported "
            f"({type(e).__name__}: {e}); pip install {package} in the release that fits "
            f"torch {torch.__version__}"
        ) from e


def _check_name(package: str, name: str, known: list[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {len(known)} others"
        raise UnknownNameError(f"unknown {package} model {name!r}; {hint}")


def _torchscript(name: str) -> nn.Module:
    path = _existing(name)
    read: Callable[..., nn.Module] = torch.jit.load
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # deprecated, and still what the file needs
            warnings.simplefilter("ignore", DeprecationWarning)
            return read(str(path), map_location="cpu")
    except (RuntimeError, ValueError) as e:
        reason = str(e).partition("\n")[0]
        raise ModelError(
            f"model torchscript:{path}: truncated, damaged or no TorchScript file ({reason})"
        ) from e


def _exported(name: str) -> nn.Module:
    path = _existing(name)
    try:
        with _no_pickles():
            program = torch.export.load(path)
    except Exception as e:  # parsing fails in as many ways as there are files
        raise ModelError(
            f"model export:{path}: cannot be loaded ({type(e).__name__}: {str(e).partition(chr(10))[0]}); "
            "expected a file of torch.export.save without pickled objects"
        ) from e
    return ExportedModel(program.module())


class ExportedModel(nn.Module):
    """An exported program as an ordinary module.

    A program is fixed to the mode in which it was exported, and torch's own wrapper refuses train() and
    eval(). Here they have no effect.

    Args:
        program: what ExportedProgram.module() returns.
    """

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, x: Tensor) -> Any:
        """Whatever the program returns for x."""
        return self.program(x)

    def train(self, mode: bool = True) -> ExportedModel:
        """Record the mode; the program itself has none."""
        self.training = mode
        return self


@contextmanager
def _no_pickles() -> Iterator[None]:
    """Forbid what torch.export.load otherwise does: run pickles found in the file."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _existing(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise ModelError(f"model {path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    return path
