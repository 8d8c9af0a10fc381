"""Models by name."""

from __future__ import annotations

import difflib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from robust.errors import InputError, MissingDependencyError, ModelError, UnknownNameError
from robust.in_front import Normalization
from robust.quantized import attackable
from robust.randomness import own_torch_randomness
from robust.rng import checked_seed
from robust.sources.architectures import MODELS, Architecture
from robust.sources.hub import read_hub
from robust.sources.onnx_model import read_onnx, read_onnx_runtime
from robust.sources.preprocess import Preprocessing, beside, of_metadata, of_timm, of_torchvision
from robust.sources.pyfile import model_from_file
from robust.sources.samples import UNIT, Bounds
from robust.sources.weights import load_weights, model_sha256, save_weights
from robust.target import Target

__all__ = [
    "MODELS", "Architecture", "Opened", "load", "load_model", "load_weights", "model_form", "model_sha256",
    "open_model", "save_weights", "untrained",
]  # fmt: skip

FORMS = (
    "path/to/file.py:factory, builtin:NAME, torchvision:NAME, timm:NAME, hf:ORG/NAME, onnx:FILE, "
    "onnxruntime:FILE, torchscript:FILE, export:FILE.pt2"
)
DECLARED: Final = "declared"


@dataclass(frozen=True)
class Opened:
    """A model and what its source says of it.

    Args:
        model: on the CPU.
        preprocessing: what it wants done to its images; None where the source does not say.
        class_names: names of classes 0, 1, ..., where the source has them.
    """

    model: nn.Module
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None


def load_model(spec: str, weights: str | Path | None = None, *, seed: int = 0) -> nn.Module:
    """The model that a SPEC names, on the CPU.

    `path/to/file.py:factory` runs that file. `onnx:`, `onnxruntime:`, `torchscript:` and `export:` run the
    graph stored in the file, and torch evaluates expressions found in the last two: load only files that
    you trust. Only `hf:` fetches anything, and only JSON and safetensors; without weights the builtin:,
    torchvision: and timm: models are freshly initialised.

    Args:
        spec: path/to/file.py:factory, builtin:NAME, torchvision:NAME, timm:NAME, hf:ORG/NAME[@REVISION]
            or hf:FOLDER, onnx:FILE (converted, with gradients), onnxruntime:FILE (as it is, without),
            torchscript:FILE or export:FILE.pt2.
        weights: a state dict to load into it (see load_weights).
        seed: of the initial weights, where no others are loaded; the global random state stays as it is.

    Raises:
        InputError: a SPEC of unknown form.
        UnsupportedError: an ONNX operator that cannot be converted.
        UnknownNameError: no such built-in, torchvision or timm model.
        ModelError: a file that is missing, damaged or does not give an nn.Module; weights that do not fit.
        MissingDependencyError: a package that the form needs cannot be imported.
    """
    return open_model(spec, weights, seed=seed).model


def open_model(spec: str, weights: str | Path | None = None, *, seed: int = 0) -> Opened:
    """The model that a SPEC names, with the preprocessing and class names that its source declares.

    Raises:
        InputError and its kin: as load_model does.
    """
    if not isinstance(spec, str):
        raise InputError(f"model: expected a SPEC, one of {FORMS}, got {type(spec).__name__}")
    form, (_, _, name) = model_form(spec), spec.partition(":")
    with own_torch_randomness():
        # torch.manual_seed reseeds other devices too, or will once they are in use.
        torch.default_generator.manual_seed(checked_seed(seed))
        opened = _LOADERS[form](name) if form in _LOADERS else Opened(_from_python(spec))
    model = opened.model
    if weights is not None:
        # An exported program's names are those of the model it was made from, without the wrapper's.
        load_weights(model.program if isinstance(model, ExportedModel) else model, weights)
    return opened


def model_form(spec: str) -> str:
    """What a model SPEC begins with, such as "onnx"; ".py" of path/to/file.py:factory.

    Raises:
        InputError: a SPEC of unknown form.
    """
    scheme, _, name = spec.partition(":")
    if scheme in _LOADERS:
        if not name:
            raise InputError(f"model: expected a name after {scheme}:, got {spec!r}; the forms are {FORMS}")
        return scheme
    path, colon, factory = spec.rpartition(":")
    if not colon or not factory or Path(path).suffix != ".py":
        raise InputError(f"model: expected one of {FORMS}, got {spec!r}{_meant(spec)}")
    return ".py"


def untrained(spec: str) -> bool:
    """Whether the SPEC's source has nothing but initial weights, so that others must be loaded, or trained."""
    scheme, _, name = spec.partition(":")
    if scheme == "builtin":
        return name in MODELS and MODELS[name].__module__.startswith("robust.")  # others may bring theirs
    return scheme in ("torchvision", "timm")


def load(
    spec: str,
    weights: str | Path | None = None,
    *,
    normalize: Normalization | Literal["declared"] | None = DECLARED,
    bounds: Bounds = UNIT,
    device: str | torch.device = "auto",
    seed: int = 0,
) -> Target:
    """The model that a SPEC names, as a Target: load_model, then preprocessing, bounds and device.

    Args:
        spec, weights, seed: as for load_model.
        normalize: (mean, std); "declared" takes what the source declares, with the image size; None
            nothing.

    Raises:
        InputError: as load_model does, and for an unusable normalisation or device.
    """
    opened = open_model(spec, weights, seed=seed)
    declared = opened.preprocessing if normalize == DECLARED else None
    given = normalize if normalize != DECLARED else None if declared is None else declared.normalize
    return Target(
        attackable(opened.model),
        normalize=given,
        size=None if declared is None else declared.size,
        bounds=bounds,
        device=device,
        preprocessing=declared,
    )


def _from_python(spec: str) -> nn.Module:
    path, _, factory = spec.rpartition(":")
    return model_from_file(Path(path), factory)


def _meant(spec: str) -> str:
    """What a bare file's name was probably meant to be."""
    suffix = Path(spec).suffix.lower()
    if suffix == ".py":
        return f"; {spec}:NAME, with the name of what makes the model"
    if suffix in (".onnx", ".pt2"):
        return f"; did you mean {'onnx' if suffix == '.onnx' else 'export'}:{spec}?"
    if suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".bin"):
        return "; a state dict goes to weights (--weights), beside the model that it belongs to"
    return ""


def _torchvision(name: str) -> Opened:
    models = _optional("torchvision", "torchvision.models")
    _check_name("torchvision", name, models.list_models())
    return Opened(models.get_model(name, weights=None), of_torchvision(models, name))


def _timm(name: str) -> Opened:
    timm = _optional("timm", "timm")
    _check_name("timm", name.partition(".")[0], timm.list_models())
    model: nn.Module = timm.create_model(name, pretrained=False)
    return Opened(model, of_timm(getattr(model, "pretrained_cfg", {}), f"timm's configuration of {name}"))


def _onnx(name: str) -> Opened:
    return _with_metadata(_existing(name), *read_onnx(_existing(name)))


def _onnxruntime(name: str) -> Opened:
    return _with_metadata(_existing(name), *read_onnx_runtime(_existing(name)))


def _with_metadata(path: Path, model: nn.Module, entries: dict[str, str]) -> Opened:
    return Opened(model, of_metadata(entries, f"metadata of {path}") or beside(path))


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


def _torchscript(name: str) -> Opened:
    path = _existing(name)
    read: Callable[..., nn.Module] = torch.jit.load
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # deprecated, and still what the file needs
            warnings.simplefilter("ignore", DeprecationWarning)
            return Opened(read(str(path), map_location="cpu"), beside(path))
    except Exception as e:  # a damaged archive or code in it fails in as many ways as there are files
        reason = str(e).partition("\n")[0]
        raise ModelError(
            f"model torchscript:{path}: truncated, damaged or no TorchScript file ({reason})"
        ) from e


def _exported(name: str) -> Opened:
    path = _existing(name)
    try:
        with _no_pickles(), _silent():
            program = torch.export.load(path)
    except Exception as e:  # parsing fails in as many ways as there are files
        reason = f"{type(e).__name__}: {str(e).partition(chr(10))[0]}"
        if "warnings above" in reason:  # which are not shown
            reason = "damaged, or of another kind"
        raise ModelError(
            f"model export:{path}: cannot be loaded ({reason}); "
            "expected a file of torch.export.save without pickled objects"
        ) from e
    return Opened(ExportedModel(program.module()), beside(path))


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


@contextmanager
def _silent() -> Iterator[None]:
    """Keep a library's loggers, some of which are made on the way, from what is about to be told in a line."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(before)


def _existing(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise ModelError(f"model {path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    return path


_LOADERS: dict[str, Callable[[str], Opened]] = {
    "builtin": lambda name: Opened(MODELS[name]()),
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": lambda name: Opened(*read_hub(name)),
    "onnx": _onnx,
    "onnxruntime": _onnxruntime,
    "torchscript": _torchscript,
    "export": _exported,
}
