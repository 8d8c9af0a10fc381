"""Workers that are Ray actors, on this machine or on a cluster."""

from __future__ import annotations

import tempfile
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from robust.errors import InputError, MissingDependencyError
from robust.run import Progress
from robust.sources import Samples
from robust.sweep.executors import Told
from robust.sweep.held import map_samples
from robust.sweep.tasks import Outcome, Task, Worker

_STARTS: Final = 20  # actors that may fail to start before the sweep gives up


class Ray:
    """A worker per core, or per GPU where the cluster has some.

    Samples and weights are put into Ray's object store once, on the driver's node; actors fetch them once
    and keep the models they build. A worker that dies, or whose node does, is replaced and its task told as lost.

    Args:
        address: of a running cluster ("auto", "host:port", "ray://host:port"); None starts one here.
        workers: how many; None fills the cluster.
        device: to work on.
        threads: of a worker's passes on a CPU, which are the cores it asks for; None for 1.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        self._ray = require_ray()
        self._ours = not self._ray.is_initialized()
        if self._ours:
            self._connect(address, workers, threads)
        total = self._ray.cluster_resources()
        gpus = int(total.get("GPU", 0)) if device != "cpu" else 0
        self._threads = threads or 1
        self.workers = workers or gpus or max(1, int(total.get("CPU", 1)) // self._threads)
        self._options: dict[str, Any] = {"num_cpus": self._threads, "num_gpus": 1 if gpus else 0}
        self._device = device if device == "cpu" or not gpus else "cuda"
        self._assets: dict[str, Any] = {}
        self._starting: dict[Any, Any] = {}  # reference to the answer -> actor
        self._idle: deque[Any] = deque()
        self._busy: dict[Any, tuple[Any, Task]] = {}  # reference to the outcome -> actor, task
        self._failed_starts = 0
        for _ in range(self.workers):
            self._hire()

    @property
    def free(self) -> int:
        """Actors that have answered and have no task."""
        return len(self._idle)

    def submit(self, task: Task) -> None:
        """Hand it to an idle actor, with references to what it names."""
        actor = self._idle.popleft()
        names = [("samples", task.data), ("file", task.model.weights)]
        assets = {name: self._put(kind, name) for kind, name in names if name is not None}
        self._busy[actor.do.remote(task, list(assets), *assets.values())] = (actor, task)

    def wait(self, told: Told) -> Outcome | None:
        """The next outcome, or None when an actor has come up."""
        ready, _ = self._ray.wait([*self._busy, *self._starting], num_returns=1)
        reference = ready[0]
        if reference in self._starting:
            self._started(reference)
            return None
        actor, task = self._busy.pop(reference)
        errors = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(reference)
        except errors.RayTaskError as error:  # not the task's own failure, which is an outcome
            self._idle.append(actor)
            return Outcome(task, "failed", reason=_first_line(error), trace=str(error))
        except errors.RayError as error:  # the actor, its node or an object is gone
            self._ray.kill(actor)
            self._hire()
            memory = isinstance(error, errors.OutOfMemoryError)
            return Outcome(
                task, "lost", reason=f"the Ray worker is gone: {_first_line(error)}", memory=memory
            )
        self._idle.append(actor)
        return outcome

    def close(self) -> None:
        """End the actors, and the cluster where it was started here."""
        for actor in [*self._starting.values(), *self._idle, *(actor for actor, _ in self._busy.values())]:
            self._ray.kill(actor)
        self._starting, self._busy = {}, {}
        self._idle.clear()
        if self._ours:
            self._ray.shutdown()

    def _connect(self, address: str | None, workers: int | None, threads: int | None) -> None:
        local: dict[str, Any] = {}
        if address is None:
            local = {"include_dashboard": False}
            if workers is not None:
                local["num_cpus"] = workers * (threads or 1)
        try:
            self._ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"--address: no Ray cluster at {address!r} ({_first_line(error)}); start one with `ray start --head`"
            ) from error

    def _hire(self) -> None:
        actor = self._ray.remote(_Actor).options(**self._options).remote(self._device, self._threads)
        self._starting[actor.ready.remote()] = actor

    def _started(self, reference: Any) -> None:
        actor = self._starting.pop(reference)
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                raise InputError(
                    f"executor: Ray workers do not start: {_first_line(error)}; is this package installed on every node?"
                ) from error
            self._hire()
            return
        self._idle.append(actor)

    def _put(self, kind: str, name: str) -> Any:
        if name not in self._assets:
            self._assets[name] = self._ray.put(_pack(kind, Path(name)))
        return self._assets[name]


class _Actor:
    """A worker in a process of Ray's."""

    def __init__(self, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._assets = _Fetched()
        self._worker = Worker(self._assets, device)

    def ready(self) -> bool:
        """Answers once the actor is up."""
        return True

    def do(self, task: Task, names: list[str], *contents: Any) -> Outcome:
        """Do a task; Ray has resolved the references to the contents."""
        self._assets.learn(dict(zip(names, contents, strict=True)))
        nothing: Callable[[Progress], None] = lambda progress: None  # noqa: E731
        return self._worker.do(task, nothing)


class _Fetched:
    """Assets that came through the object store; arrays stay where Ray has mapped them."""

    def __init__(self) -> None:
        self._contents: dict[str, Any] = {}
        self._samples: dict[str, Samples] = {}
        self._place = tempfile.TemporaryDirectory(prefix="robust-")

    def learn(self, contents: dict[str, Any]) -> None:
        """Take in contents by name."""
        self._contents = contents  # those of the current task: Ray keeps what is in use

    def samples(self, name: str) -> Samples:
        """The samples, on Ray's memory."""
        if name not in self._samples:
            content = self._contents[name]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the arrays are read-only, and nobody writes to them
                arrays = content["arrays"].items()
                tensors: dict[str, Any] = {key: torch.from_numpy(array) for key, array in arrays}
            self._samples = {name: Samples(**tensors, **content["names"])}
        return self._samples[name]

    def file(self, name: str) -> Path:
        """The file, written to a folder of this actor's."""
        path = Path(self._place.name) / f"{abs(hash(name)):x}{Path(name).suffix}"
        if not path.exists():
            path.write_bytes(self._contents[name])
        return path


def _pack(kind: str, path: Path) -> Any:
    if kind == "file":
        return path.read_bytes()
    samples = map_samples(path)
    tensors = {key: getattr(samples, key) for key in ("x", "y", "ids", "groups")}
    return {
        "arrays": {key: tensor.numpy() for key, tensor in tensors.items() if tensor is not None},
        "names": {key: getattr(samples, key) for key in ("spec", "class_names", "group_names")},
    }


def require_ray() -> Any:
    """The package ray.

    Raises:
        MissingDependencyError: it cannot be imported.
    """
    try:
        import ray
    except Exception as error:
        raise MissingDependencyError(
            f"executor ray: Ray cannot be imported ({error}); pip install 'robust-harness[ray]'"
        ) from error
    return ray


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
