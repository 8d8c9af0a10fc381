"""The files that a model is read from, and a hash of them: weights alone do not tell a model apart."""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_NAMING: Final = {"surrogate", "weights", "teacher", "teacher_weights"}
GRAPHS: Final = ("onnx", "onnxruntime", "torchscript", "export")


def origin_sha256(spec: str) -> str | None:
    """Hash of the files that a SPEC's model is read from; None where it names no file.

    Of a .py file also the neighbours that it imports, and theirs: modules and packages in its folder that import
    statements name, but not what is installed, imported by a computed name, or read as data. Of hf:FOLDER its JSON
    files. It depends on contents and on names within the folder, not on where that lies.
    """
    return _digest(_files(spec))


def _digest(files: Sequence[Path]) -> str | None:
    if not files:
        return None
    digest, folder = hashlib.sha256(), files[0].parent
    for name, file in sorted((os.path.relpath(file, folder), file) for file in files):
        digest.update(f"{name}\0{_sha256(file)}\n".encode())
    return digest.hexdigest()


def named_sha256(options: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the files that options of an attack or a defense name, as the SPEC of a model or its weights.

    They cover the weights too that such a SPEC brings: those of a model under test are hashed once it is loaded.
    """
    found = {}
    for option in _NAMING & options.keys():
        value = options[option]
        if isinstance(value, str) and (sha256 := _digest(_with_weights(value)) or _of_weights(value)):
            found[option] = sha256
    return dict(sorted(found.items()))


def _with_weights(spec: str) -> list[Path]:
    scheme, _, name = spec.partition(":")
    return [*_files(spec), *(sorted(Path(name).glob("*.safetensors")) if scheme == "hf" else [])]


def _of_weights(name: str) -> str | None:
    return _sha256(Path(name)) if Path(name).is_file() else None


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _files(spec: str) -> list[Path]:
    """The file that a SPEC names first, then what else belongs to it."""
    scheme, _, name = spec.partition(":")
    if scheme in GRAPHS:
        return [Path(name)] if Path(name).is_file() else []
    if scheme == "hf":
        return sorted(Path(name).glob("*.json"))
    path = Path(spec.rpartition(":")[0])
    return _with_neighbours(path.resolve()) if path.suffix == ".py" and path.is_file() else []


def _with_neighbours(path: Path) -> list[Path]:
    """A Python file, then every module in its folder that it imports, or that one of those does."""
    found: dict[Path, None] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found[file] = None
            waiting += _imported(file, path.parent)
    return list(found)


def _imported(file: Path, folder: Path) -> Iterator[Path]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # it can be imported by nobody
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _modules(folder, alias.name)
        elif isinstance(node, ast.ImportFrom):
            start = file.parents[node.level - 1] if node.level else folder
            for alias in node.names:
                yield from _modules(start, f"{node.module}.{alias.name}" if node.module else alias.name)


def _modules(folder: Path, dotted: str) -> Iterator[Path]:
    """What importing `dotted` from a folder runs: packages on the way, and the module."""
    place = folder
    for part in dotted.split("."):
        place /= part
        yield from (file for file in (Path(f"{place}.py"), place / "__init__.py") if file.is_file())
