"""A model from a factory in a user's Python file."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torch import nn

from robust.errors import ModelError


def model_from_file(path: Path, factory: str) -> nn.Module:
    """Import one file, call its factory without arguments, and return the model.

    The file can import its neighbours; its folder is on sys.path only meanwhile.

    Raises:
        ModelError: no such file, the import or the factory fails, there is no such factory, or it returns
            something other than an nn.Module.
    """
    if not path.is_file():
        raise ModelError(f"model {path}: no such file")
    with _importable(path.resolve().parent):
        module = _import(path)
        make = getattr(module, factory, None)
        if not callable(make):
            raise ModelError(_no_factory(module, path, factory))
        if isinstance(make, nn.Module):
            raise ModelError(
                f"model {path}: {factory} is a module, not a factory; write def make(): return {factory}"
            )
        try:
            model = make()
        except (Exception, SystemExit) as e:
            raise ModelError(
                f"model {path}: {factory}() raised {type(e).__name__}: {e}; "
                "the factory is called without arguments"
            ) from e
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model {path}: expected {factory}() to return a torch.nn.Module, got {type(model).__name__}"
        )
    return model


def _import(path: Path) -> ModuleType:
    name = f"_robust_model_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"model {path}: expected a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and inspect look their module up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:
        del sys.modules[name]
        raise ModelError(f"model {path}: importing it raised {type(e).__name__}: {e}") from e
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put `folder` on sys.path for a while; then forget the neighbours that were imported from it.

    Two projects both have a models.py: were the first one's kept in sys.modules, the second would get it.
    """
    entry = str(folder)
    if entry in sys.path:
        yield
        return
    before = {name.partition(".")[0] for name in sys.modules}
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
        for name in list(sys.modules):
            top = name.partition(".")[0]
            if top not in before and _found_in(folder, top):
                del sys.modules[name]
        importlib.invalidate_caches()


def _found_in(folder: Path, top: str) -> bool:
    return (folder / f"{top}.py").is_file() or (folder / top).is_dir()


def _no_factory(module: ModuleType, path: Path, factory: str) -> str:
    found = sorted(
        name
        for name, value in vars(module).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", "") == module.__name__
    )
    near = difflib.get_close_matches(factory, found, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"model {path}: no callable {factory!r}; {hint}callables in it: {', '.join(found) or 'none'}"
