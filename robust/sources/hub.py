"""Image classifiers from the Hugging Face hub, or from a local snapshot of one: transformers and timm."""

from __future__ import annotations

import re
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from robust.errors import InputError, MissingDependencyError, ModelError
from robust.sources.preprocess import SIDECAR, Preprocessing, of_processor, of_timm, read_json
from robust.sources.weights import load_weights

_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")
_FETCHED: Final = ["*.json", "*.safetensors"]  # never a pickle, never code


def read_hub(name: str) -> tuple[nn.Module, Preprocessing | None, tuple[str, ...] | None]:
    """The classifier of a hub repository, its preprocessing and its class names.

    Weights come from safetensors only and code only from the installed libraries: a repository that
    offers pickled weights or brings its own code is refused.

    Args:
        name: ORG/NAME, ORG/NAME@REVISION, or a folder that holds a snapshot (./folder, /folder).

    Raises:
        InputError: neither a repository's name nor a folder.
        ModelError: not to be had, no image classifier, its own code, or no safetensors.
        MissingDependencyError: transformers, timm or huggingface_hub cannot be imported.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = _snapshot(name)
    config = read_json(folder / "config.json")
    _check_safe(folder, name, config)
    if "architecture" in config or "pretrained_cfg" in config:
        return _timm(folder, name, config)
    return _transformers(folder, name, config)


class HubClassifier(nn.Module):
    """An image classifier of transformers that returns its logits: (N, C, H, W) -> (N, classes)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pixel values."""
        logits: Tensor = self.network(pixel_values=x).logits
        return logits


def _snapshot(name: str) -> Path:
    """Folder of a repository: from the cache, else fetched."""
    if not _REPOSITORY.fullmatch(name):
        raise InputError(f"model hf:{name}: expected ORG/NAME, ORG/NAME@REVISION or an existing folder")
    hub = _optional("huggingface_hub")
    repository, _, revision = name.partition("@")
    options = {"revision": revision or None, "allow_patterns": _FETCHED}
    try:
        return Path(hub.snapshot_download(repository, local_files_only=True, **options))
    except Exception:  # not in the cache, in any of the library's words for it
        pass
    try:
        return Path(hub.snapshot_download(repository, **options))
    except Exception as e:
        raise ModelError(
            f"model hf:{name}: neither in the cache nor to be fetched ({type(e).__name__}: "
            f"{str(e).strip().partition(chr(10))[0]}); download it elsewhere and give its folder: hf:./FOLDER"
        ) from e


def _check_safe(folder: Path, name: str, config: dict[str, Any]) -> None:
    if "auto_map" in config:
        raise ModelError(
            f"model hf:{name}: brings its own code (auto_map in config.json), which is never run; "
            "read it, then load it from a file of yours: path/to/file.py:factory"
        )
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(
            p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern)
        )
        found = f"only pickled weights ({', '.join(pickles)})" if pickles else "no weights"
        raise ModelError(
            f"model hf:{name}: expected weights in safetensors, found {found}; pickles are never loaded: "
            "convert them where you trust them, with safetensors.torch.save_file"
        )
    # A cached snapshot is links into its own repository's blobs; nothing else may be followed.
    home = folder.resolve().parent.parent if folder.resolve().parent.name == "snapshots" else folder.resolve()
    for file in folder.rglob("*"):
        if file.is_symlink() and not file.resolve().is_relative_to(home):
            raise ModelError(f"model hf:{name}: {file.name} is a link to {file.resolve()}, outside; refused")


def _transformers(
    folder: Path, name: str, config: dict[str, Any]
) -> tuple[nn.Module, Preprocessing | None, tuple[str, ...] | None]:
    transformers = _optional("transformers")
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network, report = transformers.AutoModelForImageClassification.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, **options
            )
    except Exception as e:
        raise ModelError(
            f"model hf:{name}: transformers cannot load it as an image classifier ({type(e).__name__}: "
            f"{str(e).strip().partition(chr(10))[0][:200]})"
        ) from e
    if missing := sorted(report.get("missing_keys") or ()):
        raise ModelError(
            f"model hf:{name}: its weights lack {', '.join(missing[:5])}, which would be random; "
            "give a repository of a classifier that was trained to the end"
        )
    file = folder / SIDECAR
    declared = of_processor(read_json(file), f"{SIDECAR} of {name}") if file.is_file() else None
    return HubClassifier(network), declared, _names(config)


def _timm(
    folder: Path, name: str, config: dict[str, Any]
) -> tuple[nn.Module, Preprocessing | None, tuple[str, ...] | None]:
    timm = _optional("timm")
    try:
        model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=False)
    except Exception as e:
        raise ModelError(
            f"model hf:{name}: timm cannot make it ({type(e).__name__}: {str(e).strip()[:200]})"
        ) from e
    file = folder / "model.safetensors"
    load_weights(model, file if file.is_file() else next(iter(sorted(folder.glob("*.safetensors")))))
    declared = config.get("pretrained_cfg") or config
    names = declared.get("label_names") or config.get("label_names")
    return (
        model,
        of_timm(declared, f"config.json of {name}"),
        tuple(map(str, names)) if isinstance(names, list) else None,
    )


def _names(config: dict[str, Any]) -> tuple[str, ...] | None:
    """Class names in the order of their numbers, where every number has one."""
    table = config.get("id2label")
    if not isinstance(table, dict) or {str(i) for i in range(len(table))} != set(table):
        return None
    return tuple(str(table[str(i)]) for i in range(len(table)))


def _optional(package: str) -> Any:
    try:
        return import_module(package)
    except Exception as e:
        raise MissingDependencyError(
            f"model hf:ORG/NAME needs the package {package}, which cannot be imported "
            f'({type(e).__name__}: {e}); pip install "robust-harness[hf]"'
        ) from e
