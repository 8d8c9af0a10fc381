"""Where tasks are done. One protocol; here, in this process. See also processes.py and on_ray.py."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch

from robust.run import Progress
from robust.sweep.tasks import Folder, Outcome, Task, Worker

Told = Callable[[Task, Progress], None]


class Executor(Protocol):
    """Does tasks somewhere, several at a time, and says how they ended. It keeps no results.

    Whoever uses it hands out at most `free` tasks, then waits.
    """

    @property
    def workers(self) -> int:
        """Workers that there are, or are to be."""

    @property
    def free(self) -> int:
        """Tasks that may be submitted now."""

    def submit(self, task: Task) -> None:
        """Begin a task. Tasks that name the same model had better follow each other."""

    def wait(self, told: Told) -> Outcome | None:
        """The next outcome; None where none is there yet, but `free` may have changed.

        Args:
            told: called with the progress of tasks meanwhile, where the executor knows of it.
        """

    def close(self) -> None:
        """Drop what is running, and end the workers."""


class InProcess:
    """One task at a time, in this process.

    Args:
        device: to work on.
        threads: of a pass; None leaves torch's.
    """

    workers = 1

    def __init__(self, device: str = "auto", threads: int | None = None) -> None:
        self._worker = Worker(Folder(), device)
        self._waiting: deque[Task] = deque()
        if threads is not None:
            torch.set_num_threads(threads)

    @property
    def free(self) -> int:
        """One, unless something waits."""
        return 1 - len(self._waiting)

    def submit(self, task: Task) -> None:
        """Keep it until `wait`."""
        self._waiting.append(task)

    def wait(self, told: Told) -> Outcome | None:
        """Do the task that waits."""
        task = self._waiting.popleft()
        return self._worker.do(task, lambda progress: told(task, progress))

    def close(self) -> None:
        """Nothing is running."""
        self._waiting.clear()


def usable_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
