"""Every exception of the package, on one page.

RobustError
 +- InputError            an argument or file is wrong (command line: exit status 2)
 |   +- ThreatError       a threat model that cannot be read or makes no sense
 |   +- DataError         samples or labels
 |   +- ModelError        the model under test, its weights or its outputs
 |   +- UnknownNameError  a name that no registry knows
 |   +- UnsupportedError  a combination that the attack or defense does not offer
 +- MissingDependencyError  an optional package is not installed
 +- StoreError            a record or report cannot be written or read
 +- TrainingError         training diverged or collapsed

A message names the argument, what was expected, what came, and what to do.
"""

from __future__ import annotations

import linecache
import os
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_NOT_THEIRS: Final = (
    "site-packages",
    "dist-packages",
    sysconfig.get_path("stdlib") + os.sep,
    str(Path(__file__).parent) + os.sep,
    "<",  # no file: a notebook's or a console's
)


class RobustError(Exception):
    """Base of all errors raised on purpose by this package."""


class InputError(RobustError, ValueError):
    """An argument or an input file is wrong."""


class ThreatError(InputError):
    """A threat model cannot be parsed or makes no sense."""


class DataError(InputError):
    """Samples or labels are malformed."""


class ModelError(InputError):
    """The model, its weights or its outputs are not what an attack needs."""


class UnknownNameError(InputError, KeyError):
    """A name that the registry does not have."""

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0])


class UnsupportedError(InputError):
    """A combination that the attack or defense does not offer."""


class MissingDependencyError(RobustError, ImportError):
    """An optional package is missing or cannot be imported."""


class StoreError(RobustError, OSError):
    """A record or report cannot be written or read."""


class TrainingError(RobustError, RuntimeError):
    """Training diverged or collapsed."""


@contextmanager
def samples_of(argument: str) -> Iterator[None]:
    """Names the argument in what is wrong with its samples, where there are samples of others beside them."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{argument}: {error}") from error


def origin(error: BaseException) -> tuple[str, bool] | None:
    """Where code that is neither this package's nor an installed one's failed.

    Returns:
        "file.py, line 7", and whether a raise statement stands there; None where there is no such code.
    """
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not any(part in f.filename for part in _NOT_THEIRS)]
    if not theirs:
        return None
    file, line = theirs[-1].filename, theirs[-1].lineno or 0
    raised = theirs[-1] is frames[-1] and linecache.getline(file, line).strip().startswith("raise")
    return f"{Path(file).name}, line {line}", raised


def told(error: BaseException) -> str:
    """An error in a line: its type, what it says, and where in the user's code it comes from."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    at = origin(error)
    return f"{type(error).__name__}: {said}" + (f" ({at[0]})" if at else "")
