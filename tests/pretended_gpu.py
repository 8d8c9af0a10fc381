"""A GPU that is not there: tensors that say they lie on one, and are computed on the CPU.

Where tensors of the GPU and of the CPU meet in an operation it fails, as on a real one, and so does a function that is to be
recorded as a graph and asks for a value. What is fast, rounds or waits otherwise on a real one is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from robust import target
from robust.replayed import Replayed

DEVICE: Final = torch.device("cuda", 0)
_aten: Final = torch.ops.aten
# These take tensors of both: copies, and indices on the CPU into what is on the GPU.
_COPIES: Final = (_aten._to_copy.default, _aten.copy_.default)
_INDEXED: Final = (_aten.index.Tensor, _aten.index_put_.default)
_ASKS_FOR_VALUES: Final = (_aten._local_scalar_dense.default, _aten.nonzero.default)
# Made of several operations, some on tensors that torch makes where it takes its arguments to be: on the CPU.
_COMPOSITE: Final = ("affine_grid", "affine_grid_generator", "quantile", "nanquantile")
_DO_NOTHING: Final = (
    "_lazy_init", "synchronize", "empty_cache", "manual_seed", "manual_seed_all", "set_rng_state",
)  # fmt: skip


class DeviceError(RuntimeError):
    """What a real GPU would have refused."""


class _OnGPU(Tensor):
    """A tensor that says it lies on the GPU, with its values on the CPU behind it."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _OnGPU:
        made: _OnGPU = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return _copied(self, "cpu")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise DeviceError("numpy of a tensor on the GPU")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    """Every operation below autograd."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if recording.on and func in _ASKS_FOR_VALUES:
            raise DeviceError(f"{func} while a graph is recorded")
        return _computed(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What asks torch for a real device before there is an operation to see."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "to" and isinstance(args[0], Tensor):
            return _moved(func, args, kwargs)
        if name == "new_tensor" and isinstance(args[0], _OnGPU):
            return _copied(torch.tensor(*args[1:], dtype=args[0].dtype), DEVICE)
        if name == "cuda" and isinstance(args[0], Tensor):
            return _copied(args[0], DEVICE)
        if func in (torch.tensor, torch.as_tensor) and _names_gpu(kwargs.get("device")):
            del kwargs["device"]
            return _copied(func(*args, **kwargs), DEVICE)
        if name in _COMPOSITE and any(isinstance(value, _OnGPU) for value in tree_flatten((args, kwargs))[0]):
            args, kwargs = tree_map(
                lambda value: value.cpu() if isinstance(value, _OnGPU) else value, (args, kwargs)
            )
            with torch._C.DisableTorchFunction():
                return _copied(func(*args, **kwargs), DEVICE)
        return func(*args, **kwargs)


class _Recording:
    """Whether a function runs that a real GPU would record as a graph."""

    on = False


recording: Final = _Recording()


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What the operation gives, on the device where a real one would lie."""
    flat, spec = tree_flatten((args, kwargs))
    on_gpu = [value for value in flat if isinstance(value, _OnGPU)]
    _refuse_mixed(func, args, flat, on_gpu)
    asked = kwargs.get("device")
    if asked is None:
        first = args[0] if func in _COPIES else None
        gpu = isinstance(first, _OnGPU) if first is not None else bool(on_gpu)
    else:
        gpu = _names_gpu(asked)
    inner_args, inner = tree_unflatten([_behind(value) for value in flat], spec)
    out = func(*inner_args, **(inner | {"pin_memory": False} if "pin_memory" in inner else inner))
    if not gpu:
        return out
    known = {id(value.held): value for value in on_gpu}  # what it wrote into stays the tensor that it is

    def put(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return known[id(value)] if id(value) in known else _OnGPU(value)

    return tree_map(put, out)


def _refuse_mixed(func: Any, args: Any, flat: list[Any], on_gpu: list[_OnGPU]) -> None:
    elsewhere = [
        value for value in flat if isinstance(value, Tensor) and not isinstance(value, _OnGPU) and value.dim()
    ]
    if not on_gpu or not elsewhere or func in _COPIES:
        return
    if func in _INDEXED and isinstance(args[0], _OnGPU) and all(isinstance(v, _OnGPU) for v in args[2:]):
        return
    raise DeviceError(f"{func}: of the GPU {len(on_gpu)}, of the CPU {[tuple(v.shape) for v in elsewhere]}")


def _behind(value: Any) -> Any:
    if isinstance(value, _OnGPU):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _names_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _copied(x: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    out: Tensor = _aten._to_copy(x, dtype=dtype, device=torch.device(device))
    return out


def _moved(func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """Tensor.to: itself where it is there already."""
    x, device, dtype = args[0], kwargs.get("device"), kwargs.get("dtype")
    for value in args[1:]:
        if isinstance(value, Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, str | torch.device):
            device = value
    device = x.device if device is None else torch.device(device)
    dtype = x.dtype if dtype is None else dtype
    if "cuda" not in (device.type, x.device.type):
        out: Tensor = func(*args, **kwargs)
        return out
    same = device.type == x.device.type and dtype == x.dtype and not kwargs.get("copy")
    return x if same else _copied(x, device, dtype)


class _Nothing:
    """In place of streams, events and device contexts."""

    cuda_stream = 0

    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def _as_though_recorded(self: Replayed, *values: Any, **options: Any) -> Any:
    before, recording.on = recording.on, bool(values[0].is_cuda)
    try:
        return self._function(*values, **options)
    finally:
        recording.on = before


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Within, "cuda" is a device like any other, without recorded graphs."""
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"is_available": True, "device_count": 1, "current_device": 0}.items():
            patch.setattr(torch.cuda, name, lambda value=value: value)
        for name in _DO_NOTHING:
            patch.setattr(torch.cuda, name, lambda *_, **__: None)
        patch.setattr(torch.cuda, "get_rng_state", lambda *_: torch.get_rng_state())
        patch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU that is not there")
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setattr(torch.cuda, "current_stream", _Nothing)
        patch.setattr(torch.accelerator, "current_stream", _Nothing)
        for name in ("Event", "device", "graph_pool_handle"):
            patch.setattr(torch.cuda, name, _Nothing)
        patch.setattr(Replayed, "__call__", _as_though_recorded)
        patch.setattr(target, "wake_autograd", lambda device: None)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with _Operations(), _Functions():
                yield
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
