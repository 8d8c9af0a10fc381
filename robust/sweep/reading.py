"""A plan's file: TOML or YAML to a SweepConfig, and what is wrong with it in one line."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator
from datetime import date, time
from pathlib import Path
from reprlib import Repr
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from robust.errors import InputError, MissingDependencyError
from robust.files import why
from robust.sweep.config import SweepConfig

_YAML: Final = (".yaml", ".yml")
_NEEDS: Final = (
    "a sweep needs `data` (a SPEC), `models` (a list, each with a `spec`), and `threats` or `curves`; "
    "see docs/sweeps.md"
)
_FIRST_KEYS: Final = {"models": "spec", "defenses": "name", "exclude": "model", "curves": "norm"}
_KINDS: Final = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
}  # what was expected, by pydantic's name for the mistake
_EXAMPLES: Final = {
    "data": "builtin:digits:test",
    "train": "builtin:digits:train",
    "spec": "builtin:digits-mlp",
    "threats": "linf:8/255",
    "threat": "linf:8/255",
}  # of text that is expected under a key
_SHORT: Final = Repr()
_SHORT.maxstring = _SHORT.maxother = 120


def load_config(path: str | Path) -> SweepConfig:
    """Read a sweep from a TOML file, or a YAML file (.yaml, .yml).

    Raises:
        InputError: missing file, malformed text, unknown, repeated or ill-typed key (with its path and a suggestion).
        MissingDependencyError: a YAML file without PyYAML.
    """
    path = Path(path)
    raw = _read(path)
    if not isinstance(raw, dict) or not raw:
        got = "an empty file" if raw is None else "a list" if raw and isinstance(raw, list) else _shown(raw)
        raise InputError(f"sweep configuration {path}: expected keys and values, got {got}; {_NEEDS}")
    try:
        config = SweepConfig.model_validate(raw)
        config.model_dump_json()
    except ValidationError as error:
        raise InputError(f"sweep configuration {path}: {_first_problem(error, raw)}") from None
    except ValueError as error:  # bytes among options, or a value within itself
        raise InputError(
            f"sweep configuration {path}: expected values that JSON can hold, got others: {error}"
        ) from error
    return config


def _read(path: Path) -> Any:
    """What the file holds; None where that is nothing."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"sweep configuration: cannot read {path}: {why(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"sweep configuration: {path} is not text in UTF-8: {error}") from error
    try:
        return _read_yaml(path, text) if path.suffix.lower() in _YAML else _read_toml(path, text)
    except RecursionError:
        raise InputError(
            f"sweep configuration {path}: expected lists and keys a few deep, got them nested too deep to be read"
        ) from None


def _read_toml(path: Path, text: str) -> Any:
    try:
        return tomllib.loads(text) or None
    except ValueError as error:  # TOMLDecodeError, or of a number of thousands of digits
        hint = "" if path.suffix.lower() == ".toml" else "; a plan in YAML needs a name in .yaml or .yml"
        raise InputError(f"sweep configuration: {path} is not TOML: {error}{hint}") from error


def _read_yaml(path: Path, text: str) -> Any:
    try:
        import yaml
    except Exception as error:
        raise MissingDependencyError(
            f"sweep configuration: {path} needs PyYAML ({error}); pip install 'robust-harness[yaml]'"
        ) from error
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        repeated = _repeated_key(node)
        made = None if node is None or repeated else loader.construct_document(node)
    except RecursionError:
        raise
    except Exception as error:  # a date or number that is none is let through as whatever reading it raised
        reason = " ".join(str(error).split())
        raise InputError(f"sweep configuration: {path} is not YAML: {reason}") from error
    finally:
        if loader is not None:
            loader.dispose()
    if repeated:
        raise InputError(f"sweep configuration {path}: {repeated}")
    return made


def _repeated_key(root: Any) -> str:
    """Which key of a mapping below this node of YAML is there twice, and where; nothing where none is."""
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen or not isinstance(getattr(node, "value", None), list):
            continue
        seen.add(id(node))
        lines: dict[tuple[str, str], int] = {}
        for entry in node.value:
            key, *values = entry if isinstance(entry, tuple) else (None, entry)
            nodes.extend(values)
            if key is None or not isinstance(key.value, str):
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                return f"line {line}: {key.value} is there twice (before in line {lines[name]}); give it once"
            lines[name] = line
    return ""


def _first_problem(error: ValidationError, raw: Any) -> str:
    """The first mistake with its place; an unknown key goes before, as it may be why another is missing."""
    problems = error.errors()
    first = min(problems, key=lambda problem: problem["type"] not in ("extra_forbidden", "invalid_key"))
    if first["type"] in ("extra_forbidden", "invalid_key"):
        return _unknown_key(first)
    if first["type"] == "missing":
        where = ".".join(map(str, first["loc"]))
        return f"{where}: is missing; {_NEEDS if len(first['loc']) == 1 else 'give it'}"
    # Of one or the other, such as text or a list, pydantic tells what is wrong with each.
    start = _place(first["loc"], raw)
    below = [problem for problem in problems if _place(problem["loc"], raw)[: len(start)] == start]
    place = max((_place(problem["loc"], raw) for problem in below), key=len)
    message = _mistake([problem for problem in below if _place(problem["loc"], raw) == place])
    where = ".".join(map(str, place))
    return f"{where}: {message}" if where else message


def _place(loc: Iterable[str | int], raw: Any) -> list[str | int]:
    """The keys and positions of a place that are the file's, without the names that pydantic gives to kinds."""
    place: list[str | int] = []
    for step in loc:
        there = range(len(raw)) if isinstance(raw, list) else raw if isinstance(raw, dict) else ()
        if step in there:
            place.append(step)
            raw = raw[step]
    return place


def _mistake(problems: list[Any]) -> str:
    """What was expected at a place, what came, and what to write; any of the problems' kinds would do."""
    last = problems[-1]
    got, limits = last["input"], last.get("ctx", {})
    if last["type"] == "value_error":
        return str(last["msg"]).removeprefix("Value error, ")
    if last["type"] == "too_short":
        least = limits["min_length"]
        expected = f"at least {least} {'entry' if least == 1 else 'entries'}"
    elif last["type"] == "greater_than_equal":
        expected = f"at least {limits['ge']}"
    elif last["type"] in _KINDS:
        expected = " or ".join(dict.fromkeys(_KINDS[p["type"]] for p in problems if p["type"] in _KINDS))
    else:
        expected = str(last["msg"]).removeprefix("Input should be ")
    return f"expected {expected}{_such_as(last, expected)}, got {_shown(got)}{_to_write(expected, last)}"


def _such_as(problem: Any, expected: str) -> str:
    """How text is written under this key, or an entry of a list that was given as a bare name."""
    if expected == "text" and (example := _example(problem)):
        return f" such as {example}"
    keys = [_FIRST_KEYS[place] for place in problem["loc"] if place in _FIRST_KEYS]
    bare = isinstance(problem["input"], str) and isinstance(problem["loc"][-1], int) and keys
    return f" such as {keys[-1]}: {problem['input']}" if bare else ""


def _example(problem: Any) -> str | None:
    return next((_EXAMPLES[step] for step in reversed(problem["loc"]) if step in _EXAMPLES), None)


def _shown(value: Any) -> str:
    """A value that came, in few words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date | time):
        return f"the {type(value).__name__} {value}"
    if value in ([], {}):
        return "an empty list" if value == [] else "no keys"
    return _SHORT.repr(value)


def _to_write(expected: str, problem: Any) -> str:
    """How it would be text, where YAML took what came for something else."""
    got = problem["input"]
    if expected != "text":
        return ""
    if isinstance(got, date | time) or (isinstance(got, bool | int | float) and not _example(problem)):
        return "; put it in quotes"
    key, value = next(iter(got.items())) if isinstance(got, dict) and len(got) == 1 else (None, None)
    if isinstance(key, str) and isinstance(value, str | int | float):
        return f"; write {key}:{value} without a blank"
    return ""


def _unknown_key(problem: Any) -> str:
    where, known = ".".join(map(str, problem["loc"])), _fields_at(SweepConfig, problem["loc"][:-1])
    near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.5)
    return f"{where}: unknown key; " + (
        f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
    )


def _fields_at(model: type[BaseModel], where: Iterable[str | int]) -> list[str]:
    """The keys that are known at a place such as ("models", 0, "defenses", 1)."""
    for step in where:
        if isinstance(step, int) or step not in model.model_fields:
            continue
        inner = [kind for kind in _parts(model.model_fields[step].annotation) if isinstance(kind, type)]
        model = next((kind for kind in inner if issubclass(kind, BaseModel)), model)
    return list(model.model_fields)


def _parts(annotation: Any) -> Iterator[Any]:
    """A type and all types that it is made of."""
    yield annotation
    for argument in get_args(annotation):
        yield from _parts(argument)
