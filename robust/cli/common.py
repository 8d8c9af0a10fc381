"""What the commands share: option types, reading NAME=VALUE, progress on standard error."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from robust.files import why

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from robust.in_front import Normalization
    from robust.sources import Samples
    from robust.target import Target

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="SPEC",
        help="path/to/file.py:factory, builtin:, torchvision: or timm:NAME, hf:ORG/NAME, onnx:, "
        "onnxruntime:, torchscript: or export:FILE",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option("--weights", metavar="FILE", help="safetensors, or a state dict that loads weights-only"),
]
DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="SPEC",
        help="FILE.npz, FILE.parquet, FILE.tar, folder:DIR, builtin:, torchvision: or hf:NAME[:SPLIT]",
    ),
]
ThreatOption = Annotated[
    str,
    typer.Option(
        "--threat",
        metavar="NORM:EPS",
        help="linf:8/255, l2:0.5, spatial:30,0.1, corruptions:3, patch:5x5, ...",
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="an option of it; may be repeated")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", metavar="N", help="only N samples, a seeded fair subset")
]
SeedOption = Annotated[int, typer.Option("--seed", help="of all random draws")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N")]
NormalizeOption = Annotated[
    tuple[str, str] | None,
    typer.Option(
        "--normalize",
        metavar="MEAN STD",
        help="what the model expects: 0.13 0.31, or 0.5,0.5,0.5 0.2,0.2,0.2; 0 1 for none "
        "[default: what the model's source declares]",
    ),
]


def fail(message: str, status: int = 2) -> NoReturn:
    """One line on standard error, and the end."""
    print(f"robust: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def write_all(*writers: Callable[[], object]) -> str:
    """Write all that can be written; returns what could not.

    Raises:
        BrokenPipeError: in the end, where whoever read the output has left.
    """
    from robust.errors import RobustError

    unwritten: list[str] = []
    left: BrokenPipeError | None = None
    for write in writers:
        try:
            write()
        except RobustError as error:
            unwritten.append(str(error))
        except BrokenPipeError as error:
            left = error
        except OSError as error:
            unwritten.append(unprinted(error))
    if left is not None:
        raise left
    return "; ".join(unwritten)


def unprinted(error: OSError) -> str:
    """What is told where standard output cannot be written.

    Raises:
        OSError: the error itself, which is of a file and not of the output.
    """
    if error.filename is not None or error.errno not in _FULL:
        raise error
    return f"output: cannot be written ({why(error)})"


def write_json(path: str, text: str) -> None:
    """The file of --json.

    Raises:
        StoreError: it cannot be written.
    """
    from robust.errors import StoreError

    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"--json: cannot write {path}: {why(error)}") from error


@contextmanager
def resumable(how: str = "") -> Iterator[None]:
    """Within, Ctrl-C ends a command that goes on where it was; `how`: what to run it again with."""
    try:
        yield
    except KeyboardInterrupt:
        fail(f"interrupted; what was done is kept, run it again{how} to go on", 130)


@contextmanager
def naming_theirs(work: str) -> Iterator[None]:
    """Within, what code of the user's raises, such as a model's forward, is told in a line; else it is this program's defect."""
    from robust.errors import ModelError, RobustError, origin, told

    try:
        yield
    except RobustError:
        raise
    except Exception as error:
        if origin(error) is None:
            raise
        raise ModelError(f"model: fails in {work} ({told(error)})") from error


def wrapped(text: str, indent: str = "    ", width: int = 80) -> str:
    """Lines of at most so many columns, where words allow it: none is broken, for it may be what a user is to type."""
    from textwrap import fill

    lines = [
        fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        for line in text.splitlines()
    ]
    return "\n".join(lines)


def described(item: object) -> str:
    """The docstring of an item in at most 80 columns: paragraphs, and a hanging entry per argument."""
    import inspect

    entries: list[str] = []
    for line in (inspect.getdoc(item) or "").splitlines():
        depth = len(line) - len(line.lstrip())
        before = entries[-1] if entries else ""
        level = len(before) - len(before.lstrip())
        if line and before and not before.endswith(":") and (depth > level or depth == level == 0):
            entries[-1] = f"{before} {line.strip()}"
        else:
            entries.append(line)
    return "\n".join(
        wrapped(line, " " * (len(line) - len(line.lstrip()) + 4 * line.startswith(" "))) for line in entries
    )


def settings(pairs: Iterable[str] | None, option: str = "--set") -> dict[str, str]:
    """Read NAME=VALUE options."""
    from robust.errors import InputError

    found = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"{option}: expected NAME=VALUE, got {pair!r}")
        found[name.strip().replace("-", "_")] = value.strip()
    return found


def normalization(pair: tuple[str, str] | None) -> Normalization | None:
    """Read --normalize: numbers, or comma-separated numbers per channel."""
    from robust.errors import InputError

    if pair is None:
        return None
    try:
        mean, std = ([float(part) for part in text.split(",")] for text in pair)
    except ValueError:
        raise InputError(
            f"--normalize: expected numbers such as '0.49,0.48,0.45', got {' '.join(pair)!r}"
        ) from None
    return mean, std


def target(
    spec: str,
    weights: str | None,
    normalize: tuple[str, str] | None,
    device: str,
    seed: int = 0,
    *,
    to_train: bool = False,
    transform: str | None = None,
) -> Target:
    """Load a model with the preprocessing that it declares, and say which, or with --normalize.

    One that nothing has trained is told, unless that is what is to be done.

    Args:
        transform: what is in front of it, such as "jpeg,quality=50".
    """
    from robust.sources import load, untrained

    given = normalization(normalize)
    options: dict[str, Any] = {
        "normalize": "declared" if given is None else given, "device": device, "seed": seed,
    }  # fmt: skip
    if transform is None:
        found = load(spec, weights, **options)
    else:
        from robust.behind import load_behind, read_transform

        found = load_behind(read_transform(transform), spec, weights, **options)
    if found.preprocessing is not None:
        print(f"robust: preprocessing: {found.preprocessing}", file=sys.stderr)
    if weights is None and untrained(spec) and not to_train:
        print(
            f"robust: {spec} has initial weights, which nothing has trained; give --weights", file=sys.stderr
        )
    return found


def batch(text: str) -> int | str:
    """Read --batch-size."""
    from robust.errors import InputError

    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--batch-size: expected 'auto' or a positive integer, got {text!r}")
    return int(text)


def samples(spec: str, limit: int | None, model: Target | None = None, groups: str | None = None) -> Samples:
    """Load data, cut to --limit; images of a file are resized and cropped as the model declares."""
    from robust.sources import load_data

    return load_data(spec, fit=None if model is None else model.preprocessing, groups=groups).limit(limit)


def writable_folder(path: Path, option: str = "--out") -> None:
    """Say at once why a folder could not be made or written, before any passes are spent; it is not made yet.

    Raises:
        StoreError: it could not.
    """
    from robust.errors import StoreError

    try:
        there = next(place for place in (path, *path.absolute().parents) if _is_there(place))
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is no folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"no permission to write to {there}")
    except OSError as error:
        raise StoreError(f"{option}: cannot make the folder {path}: {why(error)}") from error


def writable_file(name: str | None, option: str = "--json", *, folders: Iterable[Path | None] = ()) -> None:
    """Say at once why a file could not be written, before any passes are spent; None and - are none.

    Args:
        folders: those of the command, which will have been made by then.

    Raises:
        StoreError: it could not.
    """
    from robust.errors import StoreError

    if name is None or name == "-":
        return
    path = Path(name)
    folder = path.absolute().parent
    if path.is_dir():
        reason = "a folder, not a file"
    elif any(made is not None and made.absolute() == folder for made in folders):
        return
    elif not folder.is_dir():
        reason = f"no such folder {folder}"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        reason = "no permission"
    else:
        return
    raise StoreError(f"{option}: cannot write {name}: {reason}")


def _is_there(place: Path) -> bool:
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def duration(seconds: float) -> str:
    """Seconds as one would say them: 4.2 s, 3 min, 1 h 40 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def bars() -> Iterator[Bars]:
    """Progress bars on standard error; silent where that is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with showing(progress):
        yield progress


def showing(progress: Bars) -> AbstractContextManager[Any]:
    """The bars, shown until the context ends. Silent ones are not even begun: rich before 14.3 ends them with an empty line."""
    return nullcontext(progress) if progress.disable else progress
