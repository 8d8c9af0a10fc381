"""Models from ONNX files: converted to a differentiable module, or run as they are by onnxruntime."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from robust.errors import MissingDependencyError, ModelError, UnsupportedError
from robust.quantized import Quantized
from robust.sources.limits import MODEL_BYTES, check_size
from robust.sources.onnx_float import is_quantized, without_quantization

_AGREE: Final = 1e-3  # of the logits' spread
_PROBE_ROWS: Final = 3
_FREE_SIDE: Final = 32  # stands for a height or width that the file leaves open

Shape = tuple[int | None, ...]


def read_onnx(path: Path) -> tuple[nn.Module, dict[str, str]]:
    """The model of an ONNX file as a differentiable module, and the metadata stored beside the graph.

    The graph is converted to torch operators, and its logits are compared with onnxruntime's on random
    inputs. A quantised graph is answered by onnxruntime, with the gradient of its float twin.

    Raises:
        ModelError: no such file, damaged, weights kept outside its folder, inputs or outputs that are not
            one image in and logits out, or a conversion that computes something else.
        UnsupportedError: an operator that has no differentiable conversion; it is named.
        MissingDependencyError: onnx, onnx2fx or onnxruntime cannot be imported.
    """
    proto = _read(path)
    runtime = OnnxRuntime(path)
    if is_quantized(proto):
        twin = _converted(without_quantization(proto, path), path, runtime)
        model: nn.Module = Quantized(runtime, twin)
    else:
        model = _converted(proto, path, runtime)
        _compare(model, runtime, path)
    return model, {entry.key: entry.value for entry in proto.metadata_props}


def read_onnx_runtime(path: Path) -> tuple[nn.Module, dict[str, str]]:
    """The model of an ONNX file as onnxruntime runs it: for score and decision attacks, without gradients.

    Raises:
        ModelError, MissingDependencyError: as for read_onnx.
    """
    proto = _read(path)
    return OnnxRuntime(path), {entry.key: entry.value for entry in proto.metadata_props}


class OnnxGraph(nn.Module):
    """A converted graph: (N, C, H, W) -> its first output.

    Args:
        graph: the converted graph.
        shape: what the file declares of its input, the rows first; None for a side that it leaves open.
        batch: rows that it takes at once, where the file fixes them; None for any number.
    """

    def __init__(self, graph: nn.Module, shape: Shape, batch: int | None = None) -> None:
        super().__init__()
        self.graph, self.shape, self.batch = graph, shape, batch

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes)."""
        # Of a failing call a graph prints its own code to stderr; of a failing forward it does not.
        run = self.graph.forward
        return _in_pieces(lambda part: _first(run(part)), _as_declared(x, self.shape), self.batch)


class OnnxRuntime(nn.Module):
    """A graph run by onnxruntime on the CPU: nothing can be differentiated.

    Args:
        path: the ONNX file.

    Raises:
        ModelError: onnxruntime refuses the file, or it does not take one float image.
    """

    shape: Shape

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._open()
        self.register_buffer("content", torch.frombuffer(bytearray(_digest(path)), dtype=torch.uint8))

    def _open(self) -> None:
        runtime = _optional("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            session = runtime.InferenceSession(
                str(self.path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as e:  # its errors share no base class
            raise ModelError(f"model onnx:{self.path}: onnxruntime refuses it ({_line(e)})") from e
        inputs = session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in ("tensor(float)", "tensor(float16)", "tensor(double)"):
            found = ", ".join(f"{i.name} {i.type}" for i in inputs) or "none"
            raise ModelError(
                f"model onnx:{self.path}: expected one input of float type, found {found}; "
                "export the network without pre- and post-processing"
            )
        self.session, self.input = session, inputs[0].name
        self.dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}.get(
            inputs[0].type, np.float16
        )
        self.shape = tuple(d if isinstance(d, int) and d > 0 else None for d in inputs[0].shape or ())

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes), detached."""
        return _in_pieces(self._run, _as_declared(x, self.shape), self.shape[0] if self.shape else None)

    def _run(self, x: Tensor) -> Tensor:
        array = np.ascontiguousarray(x.detach().float().cpu().numpy().astype(self.dtype, copy=False))
        try:
            out = self.session.run([self.session.get_outputs()[0].name], {self.input: array})[0]
        except Exception as e:
            raise ModelError(
                f"model onnx:{self.path}: fails on input {tuple(x.shape)} ({_line(e)}); "
                f"the file declares {_shown(self.shape)}"
            ) from e
        return torch.from_numpy(np.asarray(out, dtype=np.float32)).to(x.device)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def _as_declared(x: Tensor, shape: Shape) -> Tensor:
    """Images (N, C, H, W) as the file wants them: channels last, or as a row of their C * H * W values."""
    if x.ndim == len(shape) == 4 and not _fits(x, shape):
        turned = x.permute(0, 2, 3, 1)
        return turned if _fits(turned, shape) else x
    sides = [side for side in shape[1:] if side is not None]
    known = len(sides) == len(shape) - 1 and math.prod(sides) == x[:1].numel()
    return x.reshape(len(x), *sides) if known and x.ndim != len(shape) else x


def _fits(x: Tensor, shape: Shape) -> bool:
    """Whether a row of x has the sides that are declared."""
    return all(side in (None, found) for side, found in zip(shape[1:], x.shape[1:], strict=True))


def _read(path: Path) -> Any:
    """The checked protobuf with its weights."""
    onnx = _optional("onnx")
    check_size(f"model onnx:{path}", path.stat().st_size, MODEL_BYTES, ModelError)
    damaged = f"model onnx:{path}: truncated, damaged or no ONNX model"
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as e:  # protobuf and the file system have errors of their own
        raise ModelError(f"{damaged} ({_line(e)})") from e
    _check_external(proto, path)
    try:
        onnx.load_external_data_for_model(proto, str(path.parent))
        onnx.checker.check_model(proto)
    except Exception as e:
        raise ModelError(f"{damaged} ({_line(e)})") from e
    return proto


def _check_external(proto: Any, path: Path) -> None:
    """Weights may lie beside the file or below it, in plain files; nowhere else."""
    helper = import_module("onnx.external_data_helper")
    home = path.parent.resolve()
    for tensor in helper._get_all_tensors(proto):
        if not helper.uses_external_data(tensor):
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        file = (home / location).resolve()
        if not location or not file.is_relative_to(home):
            raise ModelError(
                f"model onnx:{path}: its weights point to {location!r}, outside its own folder; refused"
            )
        if not file.is_file():
            raise ModelError(f"model onnx:{path}: the file {location!r} with its weights is missing")
        check_size(f"model onnx:{path}: its file {location!r}", file.stat().st_size, MODEL_BYTES, ModelError)


def _converted(proto: Any, path: Path, runtime: OnnxRuntime) -> OnnxGraph:
    """The graph in torch operators, with its weights as buffers."""
    fx = _optional("onnx2fx")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = fx.convert(proto)
    except Exception as e:
        operator = getattr(e, "op_type", None)
        if operator is None:
            raise ModelError(f"model onnx:{path}: cannot be converted ({_line(e)}); {_offer(path)}") from e
        where = f" of domain {e.domain}" if getattr(e, "domain", "") else ""  # type: ignore[attr-defined]
        raise UnsupportedError(
            f"model onnx:{path}: no differentiable conversion of operator {operator}{where}; {_offer(path)}"
        ) from e
    graph = graph.eval().requires_grad_(False)
    return OnnxGraph(graph, runtime.shape, _batch(graph, runtime))


def _offer(path: Path) -> str:
    return f"attack it as it is with score and decision attacks: --model onnxruntime:{path} --attack square"


def _batch(graph: nn.Module, runtime: OnnxRuntime) -> int | None:
    """How many rows the graph takes at once: what the file says, unless it works with any number."""
    declared = runtime.shape[0] if runtime.shape else None
    if declared is None:
        return None
    x = _probe(runtime, declared + 1)
    try:
        with torch.no_grad():
            whole, part = _first(graph(x)), _first(graph(x[1:]))
            free = whole.shape[0] == declared + 1 and _apart(whole[1:], part) <= _AGREE
    except Exception:  # whatever a graph of fixed size fails on
        free = False
    return None if free else declared


def _compare(model: OnnxGraph, runtime: OnnxRuntime, path: Path) -> None:
    """Refuse a conversion whose logits are not onnxruntime's."""
    x = _probe(runtime, _PROBE_ROWS)
    try:
        expected = runtime(x)
    except ModelError:  # a size that the file leaves open, and this is not it
        return
    with torch.no_grad():
        try:
            got = model(x)
        except Exception as e:
            raise ModelError(
                f"model onnx:{path}: the conversion fails ({_line(e)}) where onnxruntime does not; {_offer(path)}"
            ) from e
    if got.shape != expected.shape or not (drift := _apart(got, expected)) <= _AGREE:
        what = f"shape {tuple(got.shape)}" if got.shape != expected.shape else f"{drift:.2g} of their spread"
        raise ModelError(
            f"model onnx:{path}: the conversion's logits differ from onnxruntime's by {what}, expected "
            f"{tuple(expected.shape)} within {_AGREE:g}; {_offer(path)}"
        )


def _probe(runtime: OnnxRuntime, rows: int) -> Tensor:
    shape = [rows] + [side or _FREE_SIDE for side in runtime.shape[1:]]
    if len(shape) == 4 and runtime.shape[1] is None:
        shape[1] = 3
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _apart(logits: Tensor, reference: Tensor) -> float:
    spread = (reference.flatten(1).amax(1) - reference.flatten(1).amin(1)).clamp_min(1e-12)
    return float(((logits - reference).abs().flatten(1).amax(1) / spread).max())


def _in_pieces(run: Callable[[Tensor], Tensor], x: Tensor, batch: int | None) -> Tensor:
    """Apply `run` to as many rows at a time as it takes; the last piece is filled up with copies."""
    if batch is None or len(x) == batch:
        return run(x)
    parts = []
    for part in x.split(batch):
        filled = (
            part
            if len(part) == batch
            else torch.cat([part, part[-1:].expand(batch - len(part), *part.shape[1:])])
        )
        parts.append(run(filled)[: len(part)])
    return torch.cat(parts)


def _first(out: Any) -> Tensor:
    first: Tensor = out[0] if isinstance(out, (tuple, list)) else out
    return first


def _digest(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _shown(shape: Shape) -> str:
    return "(" + ", ".join("any" if side is None else str(side) for side in shape) + ")"


def _line(error: Exception) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _optional(package: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(package)
    except Exception as e:
        raise MissingDependencyError(
            f"model onnx:FILE needs the package {package}, which cannot be imported "
            f'({type(e).__name__}: {e}); pip install "robust-harness[onnx]"'
        ) from e
