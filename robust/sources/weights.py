"""Reading, writing and hashing the weights of a model; no pickle is ever executed."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from robust.errors import InputError, ModelError, StoreError
from robust.files import given_path, replacing, why_unwritten
from robust.sources.digest import add_tensor
from robust.sources.limits import MODEL_BYTES, check_size

_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile
_SHOWN = 5


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a state dict into `model`: safetensors, or a file that loads with weights_only.

    {"state_dict": ...} and {"model": ...} are unwrapped one level, and a prefix "module." common to all
    names goes. The model is left alone unless every name and shape fits.

    Raises:
        ModelError: no such file, a pickle that would run code, a damaged file, something other than a
            state dict, or names or shapes that do not fit.
        InputError: no path.
    """
    path = given_path("weights", "a file", path)
    if not path.is_file():
        raise ModelError(f"weights {path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    check_size(f"weights {path}", path.stat().st_size, MODEL_BYTES, ModelError)
    read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    own = _tensors(model)
    state = _unprefixed(_unwrapped(read(path), path), own)
    _check_fit(own, state, path)
    model.load_state_dict(dict(state), strict=False)  # _check_fit was stricter, but for tied names


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the state dict as safetensors, at once or not at all; missing folders are made.

    Tied tensors are written under each of their names, so that any reader finds all names.

    Raises:
        InputError: a name that does not end in .safetensors.
        StoreError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"weights {path}: expected a file name ending in .safetensors")
    # safetensors refuses tensors that share memory.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _tensors(model).items()}
    try:
        with replacing(path) as partial:
            partial.write_bytes(safetensors.torch.save(state, metadata={"format": "pt"}))
    except OSError as e:
        raise StoreError(f"weights {path}: cannot be written ({why_unwritten(e)})") from e


def model_sha256(model: nn.Module) -> str:
    """Hash of the state dict: sorted names, dtypes, shapes and bytes; the same on every device.

    It tells weights and buffers apart, not the code around them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(model).items()):
        add_tensor(digest, name, tensor)
    return digest.hexdigest()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without extra state that is no tensor."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _read_safetensors(path: Path) -> object:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except (SafetensorError, OSError) as e:
        raise ModelError(f"weights {path}: truncated, damaged or no safetensors file ({e})") from e


def _check_archive(path: Path) -> None:
    """torch stores what it saves as it is, where a compressed record may inflate to any size, and compares no checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
            altered = None if packed else archive.testzip()
    except Exception:
        return  # the form before torch 1.6, or damaged: torch says so
    if packed:
        raise ModelError(
            f"weights {path}: {packed[0]} is compressed, which torch never does; refused: save it again as safetensors"
        )
    if altered is not None:
        raise ModelError(
            f"weights {path}: damaged ({altered} does not match its checksum); get the file again, or, where it was saved "
            "without checksums, save it again as safetensors"
        )


def _read_torch(path: Path) -> object:
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on pickle protocols, before it refuses
            return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as e:
        raise ModelError(
            f"weights {path}: expected a state dict; this is a pickle that would run code when loaded, "
            "or no weights file at all, and it was not run; where you trust it, load it in its own project "
            "and re-save the state dict as safetensors: safetensors.torch.save_file(model.state_dict(), FILE)"
        ) from e
    except Exception as e:  # a damaged archive or pickle fails in as many ways as there are files
        reason = str(e).split(". ")[0].splitlines()[0] if str(e) else type(e).__name__
        raise ModelError(
            f"weights {path}: truncated, damaged or no state dict ({reason}); save it again as safetensors"
        ) from e


def _unwrapped(loaded: object, path: Path) -> Mapping[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded:
        raise ModelError(f"weights {path}: expected a state dict (names to tensors), got {_kind(loaded)}")
    odd = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if odd:
        raise ModelError(
            f"weights {path}: expected a state dict (names to tensors); not tensors: {_few(odd)}; "
            'save the state dict alone, or under the key "state_dict"'
        )
    return loaded


def _kind(loaded: object) -> str:
    return "an empty one" if isinstance(loaded, Mapping) else type(loaded).__name__


def _unprefixed(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state) and not any(n.startswith(prefix) for n in own):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    loaded = {_place(own[name]) for name in state if name in own}
    missing = [
        name
        for name, tensor in own.items()
        # A tied tensor may be stored under one of its names; files of before torch 0.4.1 lack the counter.
        if name not in state and _place(tensor) not in loaded and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    faults = [f"{len(names)} {kind}: {_few(names)}" for kind, names in kinds.items() if names]
    if faults:
        raise ModelError(f"weights {path}: do not fit the model; {'; '.join(faults)}; {_hint(unexpected)}")


def _hint(unexpected: list[str]) -> str:
    if any(name.startswith("front.") for name in unexpected):
        return "they were saved with an input transform in front of the model: `robust attack --transform NAME` takes them"
    return "give the architecture that the weights were saved from"


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Tensors of equal place share memory; an empty one shares it with nobody."""
    return (tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride())


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
