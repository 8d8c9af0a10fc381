"""Where a training runs: one device, or one process a device (`robust harden --devices N`, torchrun)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robust.defenses.options import TrainingOptions
from robust.errors import InputError
from robust.target import Target


def rank() -> int:
    """This process's number among those that train together; 0 where it is alone."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def world_size() -> int:
    """How many processes train together, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leave() -> None:
    """Part from the processes that trained together; nothing where this one was alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Devices:
    """The device of this process, and what the processes do together.

    Args:
        options: device, precision, and whether to compile.

    Raises:
        InputError: a device or precision that is not there.
    """

    def __init__(self, options: TrainingOptions) -> None:
        # Fabric loads torch's compiler, for seconds that nobody is to pay who trains nothing.
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy

        self._options = options
        self._world = world_size()
        self.device = Target(nn.Identity(), device=self._spec()).device
        kind = self.device.type
        if options.precision == "16-mixed" and kind != "cuda":
            raise InputError(
                f"training: precision '16-mixed' needs CUDA, and the device is {self.device}; "
                "use 'bf16-mixed' or '32-true'"
            )
        if options.batch_size < 2 * self._world:
            raise InputError(
                f"training: batch_size: expected at least 2 for each of {self._world} processes, "
                f"got {options.batch_size}"
            )
        if self._world > 1:
            local = int(os.environ.get("LOCAL_WORLD_SIZE", self._world))
            # Buffers are shared once an epoch: within a step, a broadcast would break the graph of a
            # first of two forward passes.
            strategy = DDPStrategy(broadcast_buffers=False)
            nodes = self._world // local
            self.fabric = Fabric(
                accelerator=kind,
                devices=local,
                num_nodes=nodes,
                strategy=strategy,
                precision=options.precision,
            )
            self.fabric.launch()
        else:
            devices = [self.device.index or 0] if kind == "cuda" else 1
            self.fabric = Fabric(accelerator=kind, devices=devices, precision=options.precision)

    def _spec(self) -> str:
        local, asked = os.environ.get("LOCAL_RANK", "0"), self._options.device
        on_cuda = torch.cuda.is_available() and asked != "cpu"
        if self._world > 1 and on_cuda and int(local) >= torch.cuda.device_count():
            raise InputError(
                f"training: {self._world} processes need a GPU each, and {torch.cuda.device_count()} are there; "
                "start fewer, or train with device=cpu"
            )
        return f"cuda:{local}" if self._world > 1 and on_cuda else asked

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return rank() == 0

    @property
    def share(self) -> tuple[int, int]:
        """(number of this process, number of processes)."""
        return rank(), self._world

    def setup(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Model and optimizer as the loop uses them; their state stays that of the given ones."""
        module: Any = torch.compile(model) if self._options.compile else model
        with warnings.catch_warnings():  # torch renames the option that `DDPStrategy` is given
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
            net, wrapped = self.fabric.setup(module, optimizer)
        return net, wrapped

    def part(self, rows: Tensor) -> Tensor:
        """This process's part of a batch's positions."""
        return rows[rank() :: self._world]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, elementwise."""
        return self.total(values) / self._world

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes, elementwise."""
        if self._world > 1:
            values = values.to(self.device)
            torch.distributed.all_reduce(values)
        return values

    def share_buffers(self, *models: nn.Module) -> None:
        """Give every process the first one's buffers (batch-norm statistics)."""
        if self._world > 1:
            for buffer in (buffer for model in models for buffer in model.buffers()):
                torch.distributed.broadcast(buffer, 0)


@contextmanager
def private_random(device: torch.device, seed: int) -> Iterator[None]:
    """Torch's generators seeded inside, as they were afterwards; those of other devices untouched."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
