"""How the process of a command ends."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress
from typing import Final, NoReturn

INTERRUPTED: Final = 130


def leave(status: int) -> NoReturn:
    """End the process with this status.

    Once a GPU was used, native threads of libraries may outlive the interpreter; one that then asks for it ends in
    SIGABRT, and the status that a pipeline goes by is lost. And Python kills itself by SIGINT where Ctrl-C came while it ran
    code from text, as dataclasses do, whoever caught it. So the process ends after Python's own exit functions.
    """
    if not (_used_a_gpu() or status == INTERRUPTED) or _others_run():
        sys.exit(status)
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):  # a pipe that nobody reads any more, or a closed stream
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _used_a_gpu() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def _others_run() -> bool:
    """Whether Python would wait for another thread."""
    return any(
        not thread.daemon and thread is not threading.main_thread() for thread in threading.enumerate()
    )
