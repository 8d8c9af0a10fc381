"""CUDA graphs: operations that a GPU is told once, and then does in one go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def with_room(record: Callable[[], T]) -> T:
    """What `record` gives, tried once more where memory runs out: meanwhile the allocator hands back what it only keeps."""
    try:
        return record()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return record()


@contextmanager
def recording_aside() -> Iterator[torch.cuda.Stream]:
    """A stream of its own, on the current device, for a first run and for what is recorded after it.

    Where a recording fails, torch is left as it was: the current stream, and a generator that draws.
    """
    before = torch.cuda.current_stream()
    aside = torch.cuda.Stream()
    aside.wait_stream(before)
    try:
        with torch.cuda.stream(aside):
            yield aside
    except BaseException:
        with suppress(Exception):
            _end_all_captures()
        raise
    before.wait_stream(aside)


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, pool: Any, *, alone: bool = False) -> Iterator[None]:
    """What runs within, on the stream of `recording_aside`, goes into the graph.

    As torch.cuda.graph does, which first waits for the device and hands all memory back that it could use again.

    Args:
        alone: no other thread has a part in it, such as autograd's; then others may allocate meanwhile.
    """
    graph.capture_begin(pool, capture_error_mode="thread_local" if alone else "global")
    try:
        yield
    finally:
        try:
            graph.capture_end()
        except Exception:
            # Else the allocator holds the recording to go on, and empties its cache no more.
            with suppress(Exception):
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
            raise


def _end_all_captures() -> None:
    """After a recording that failed torch holds its generator to be recorded still, and refuses to draw: one that works ends that."""
    graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(aside):
        graph.capture_begin()
        torch.zeros(1, device="cuda")
        graph.capture_end()
