"""Damaged files of every kind: read, or refused by an error of ours; never anything else.

ROBUST_FUZZ=10000 asks for so many inputs in all.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from robust.errors import RobustError
from robust.sources import load_data, load_model, load_weights

IMAGES = np.random.default_rng(3).integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(60, 3))


def _image(form: str, i: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[i]).save(buffer, form)
    return buffer.getvalue()


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=IMAGES, y=np.arange(3), groups=np.array(["a", "b", "a"]))
    return buffer.getvalue()


def _parquet() -> bytes:
    buffer = io.BytesIO()
    columns = {"image": [_image("PNG", i) for i in range(3)], "label": [0, 1, 2], "group": ["a", "b", "a"]}
    features = {"info": {"features": {"label": {"names": ["x", "y", "z"]}}}}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for i in range(3):
            for suffix, content in (("png", _image("PNG", i)), ("cls", str(i).encode()), ("group", b"g")):
                info = tarfile.TarInfo(f"{'long' * 30}é{i}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _torch() -> bytes:
    buffer = io.BytesIO()
    torch.save(net().state_dict(), buffer)
    return buffer.getvalue()


def _torchscript() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(net().eval(), torch.zeros(2, 3, 5, 4)), buffer)
    return buffer.getvalue()


def _exported() -> bytes:
    buffer = io.BytesIO()
    rows = ({0: torch.export.Dim("batch")},)
    torch.export.save(
        torch.export.export(net().eval(), (torch.zeros(3, 3, 5, 4),), dynamic_shapes=rows), buffer
    )
    return buffer.getvalue()


def _onnx() -> bytes:
    onnx = pytest.importorskip("onnx", exc_type=Exception)
    pytest.importorskip("onnx2fx", exc_type=Exception)
    pytest.importorskip("onnxruntime", exc_type=Exception)
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["out"])]
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 5, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.ones((60, 3), np.float32), "w")],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content: bytes = model.SerializeToString()
    assert onnx
    return content


def _data(file: Path) -> object:
    return load_data(str(file))


def _folder(file: Path) -> object:
    return load_data(f"folder:{file.parent.parent}")


def _weights(file: Path) -> object:
    return load_weights(net(), file)


KINDS: dict[str, tuple[str, Callable[[], bytes], Callable[[Path], object]]] = {
    "npz": ("set.npz", _npz, _data),
    "parquet": ("set.parquet", _parquet, _data),
    "tar": ("set.tar", _tar, _data),
    "png": ("set/a/x.png", lambda: _image("PNG"), _folder),
    "jpeg": ("set/a/x.jpg", lambda: _image("JPEG"), _folder),
    "gif": ("set/a/x.gif", lambda: _image("GIF"), _folder),
    "tiff": ("set/a/x.tif", lambda: _image("TIFF"), _folder),
    "webp": ("set/a/x.webp", lambda: _image("WEBP"), _folder),
    "torch": ("w.pt", _torch, _weights),
    "safetensors": ("w.safetensors", lambda: safetensors.torch.save(net().state_dict()), _weights),
    "torchscript": ("net.ts", _torchscript, lambda file: load_model(f"torchscript:{file}")),
    "export": ("net.pt2", _exported, lambda file: load_model(f"export:{file}")),
    "onnx": ("net.onnx", _onnx, lambda file: load_model(f"onnx:{file}")),
}
EXAMPLES = max(1, -(-int(os.environ.get("ROBUST_FUZZ", "390")) // len(KINDS)))


@cache
def whole(kind: str) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return KINDS[kind][1]()


@st.composite
def damage(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes overwritten, cut, doubled, or nothing but noise."""
    how = draw(st.sampled_from(["overwrite", "overwrite", "overwrite", "cut", "double", "noise", "splice"]))
    if how == "noise":
        return draw(st.binary(max_size=200))
    raw = bytearray(content)
    at = draw(st.integers(0, len(raw) - 1))
    if how == "cut":
        return bytes(raw[:at])
    if how == "double":
        return bytes(raw[:at] + raw[at // 2 :])
    if how == "splice":
        end = draw(st.integers(at, min(len(raw), at + 64)))
        return bytes(raw[:at] + draw(st.binary(max_size=64)) + raw[end:])
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, len(raw) - 1))
        raw[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    return bytes(raw)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_MAX_GIB", "0.25")
    name, _, read = KINDS[kind]
    content = whole(kind)
    outcomes = {"read": 0, "refused": 0}

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(damage(content))
    def fuzz(raw: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = Path(folder) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(raw)
            try:
                read(file)
                outcomes["read"] += 1
            except RobustError:
                outcomes["refused"] += 1

    fuzz()
    assert outcomes["refused"] > 0
    print(kind, outcomes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_undamaged_files_are_read(kind: str, tmp_path: Path) -> None:
    name, _, read = KINDS[kind]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(whole(kind))
    read(tmp_path / name)


def test_headers_inside_an_npz_that_are_consistent_but_odd(tmp_path: Path) -> None:
    """Damage below the checksums, which random damage seldom passes."""

    @settings(max_examples=60, deadline=None, database=None)
    @given(st.binary(max_size=80), st.binary(max_size=80), st.booleans())
    def fuzz(header: bytes, body: bytes, magic: bool) -> None:
        start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") if magic else b""
        with zipfile.ZipFile(tmp_path / "odd.npz", "w") as archive:
            archive.writestr("x.npy", start + header + body)
            archive.writestr("y.npy", start + header + body)
        with pytest.raises(RobustError):
            load_data(str(tmp_path / "odd.npz"))

    fuzz()
