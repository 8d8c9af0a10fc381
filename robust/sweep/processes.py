"""Workers that are processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from typing import Any, Final

from robust.run import Progress
from robust.sweep.executors import Told, usable_cores
from robust.sweep.tasks import Folder, ModelRef, Outcome, Task, Worker

_TELL_EVERY: Final = 0.2  # seconds between two messages of progress
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass
class _Hand:
    """A worker process, the driver's end of its pipe, and what it is doing."""

    process: Any
    pipe: connection.Connection
    task: Task | None = None
    model: ModelRef | None = None  # of its latest task


class Processes:
    """Worker processes, spawned; one that dies is replaced and its task told as lost.

    Args:
        workers: how many.
        device: to work on; with "cuda" or "auto" and several GPUs they take turns.
        threads: of a worker's passes; None divides the cores.
    """

    def __init__(self, workers: int, device: str = "auto", threads: int | None = None) -> None:
        self.workers = workers
        self._threads = threads or max(1, usable_cores() // workers)
        self._devices = [_device_of(device, i) for i in range(workers)]
        self._context = multiprocessing.get_context("spawn")
        self._hands = [self._hire(device) for device in self._devices]

    @property
    def free(self) -> int:
        """Workers without a task."""
        return sum(hand.task is None for hand in self._hands)

    def submit(self, task: Task) -> None:
        """Hand it to a free worker, one that has the model if there is one."""
        idle = [hand for hand in self._hands if hand.task is None]
        hand = next((hand for hand in idle if hand.model == task.model), idle[0])
        hand.task, hand.model = task, task.model
        try:
            hand.pipe.send(task)
        except (BrokenPipeError, OSError):
            return  # it has died; `wait` finds that out

    def wait(self, told: Told) -> Outcome | None:
        """The next outcome."""
        while True:
            busy = {hand.pipe: hand for hand in self._hands if hand.task is not None}
            for pipe in connection.wait(list(busy)):
                hand = busy[pipe]  # type: ignore[index]
                try:
                    message = hand.pipe.recv()
                except (EOFError, OSError):  # the latter where it died in the middle of a message
                    return self._bury(hand)
                assert hand.task is not None
                if isinstance(message, Progress):
                    told(hand.task, message)
                    continue
                hand.task = None
                outcome: Outcome = message
                return outcome

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for hand in self._hands:
            hand.process.terminate()
        for hand in self._hands:
            hand.process.join(5)
            if hand.process.is_alive():
                hand.process.kill()
                hand.process.join()
            hand.pipe.close()
        self._hands = []

    def _hire(self, device: str) -> _Hand:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, device, self._threads), daemon=True, name="robust-sweep-worker"
        )
        before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
        os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(self._threads)))  # read when torch loads
        try:
            with _without_ctrl_c():
                process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        theirs.close()  # so that its death closes the pipe
        return _Hand(process, ours)

    def _bury(self, hand: _Hand) -> Outcome:
        """Replace a worker that has died; its task is lost."""
        hand.process.join()
        code, task = hand.process.exitcode, hand.task
        hand.pipe.close()
        place = self._hands.index(hand)
        self._hands[place] = self._hire(self._devices[place])
        assert task is not None
        killed = code == -signal.SIGKILL
        how = f"signal {-code} ({signal.Signals(-code).name})" if code and code < 0 else f"exit status {code}"
        why = "; the system may have run out of memory" if killed else ""
        return Outcome(task, "lost", reason=f"the worker process died: {how}{why}", memory=killed)


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started inside do not see Ctrl-C, not even while they import: where masks of signals are inherited."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it would unblock the signal, were it started in between
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _serve(pipe: connection.Connection, device: str, threads: int) -> None:
    """The life of a worker process."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the driver decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    worker = Worker(Folder(), device)
    last = 0.0

    def tell(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= _TELL_EVERY or progress.done == progress.total:
            last = time.monotonic()
            pipe.send(progress)

    while True:
        try:
            task = pipe.recv()
            pipe.send(worker.do(task, tell))
        except (EOFError, OSError):  # the driver is gone
            return


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _device_of(device: str, index: int) -> str:
    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{index % torch.cuda.device_count()}"
    return device
