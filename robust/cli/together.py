"""A command as several processes on this machine that train together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Final

_LOOK: Final = 0.05  # seconds between looks at the processes
_GRACE: Final = 10.0  # seconds to end in, before they are made to


def run_together(count: int, arguments: Sequence[str]) -> int:
    """Run `robust ARGUMENTS` in `count` processes; only the first one is heard.

    Returns:
        The exit status: of a process that fails, and then the others are ended; else 0. What the others
        than the first say on standard error is shown where one of them fails and the first does not.
    """
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    environment |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "NODE_RANK": "0"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    with tempfile.TemporaryFile("w+") as said:
        started: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(count):
                own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                heard = {} if rank == 0 else {"stdout": subprocess.DEVNULL, "stderr": said}
                command = [sys.executable, "-m", "robust", *arguments]
                started.append(subprocess.Popen(command, env=own, **heard))  # type: ignore[call-overload]
            return _watch(started, said)
        finally:
            _end(started)


def _watch(started: Sequence[subprocess.Popen[bytes]], said: IO[str]) -> int:
    while True:
        states = [process.poll() for process in started]
        if any(states):
            break
        if all(state == 0 for state in states):
            return 0
        time.sleep(_LOOK)
    first = started[0]
    with suppress(subprocess.TimeoutExpired):  # what stops one mostly stops all, and the first one says it
        first.wait(_GRACE)
    if not first.returncode:
        said.seek(0)
        print(said.read().rstrip(), file=sys.stderr)
    status = first.returncode or next(state for state in states if state)
    return status if status > 0 else 128 - status


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in started:
        if process.poll() is None:
            process.terminate()
    until = time.monotonic() + _GRACE
    for process in started:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
        if process.poll() is None:
            process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
