"""ONNX files: the same logits and verdicts as the module, unknown operators named, hostile files refused."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robust
from robust.errors import MissingDependencyError, ModelError, UnsupportedError
from robust.quantized import Quantized
from robust.sources import load_model, model_sha256

onnx = pytest.importorskip("onnx", exc_type=Exception)
pytest.importorskip("onnx2fx", exc_type=Exception)
pytest.importorskip("onnxruntime", exc_type=Exception)

from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def refused(spec: str, *words: str, error: type[Exception] = ModelError) -> None:
    with pytest.raises(error) as caught:
        load_model(spec)
    for word in words:
        assert word in str(caught.value), f"{word!r} not in {caught.value}"


def export(model: nn.Module, file: Path, rows: int | None = None) -> Path:
    """Write a model for 8x8 images, for any number of rows or for just so many."""
    free = {} if rows else {"dynamic_axes": {"x": {0: "batch"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.zeros(rows or 2, 1, 8, 8),), str(file), dynamo=False, input_names=["x"], **free
        )
    return file


def graph(
    nodes: list[object],
    weights: dict[str, np.ndarray],
    file: Path,
    inputs: int = 1,
    sides: Sequence[int] = (4,),
) -> Path:
    """A hand-made file: x (N, 4), or of other sides, -> out (N, 3)."""
    names = ["x" * (i + 1) for i in range(inputs)]
    takes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *sides]) for name in names]
    gives = [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3])]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    made = helper.make_graph(nodes, "g", takes, gives, tensors)
    onnx.save(helper.make_model(made, opset_imports=DOMAINS, ir_version=9), str(file))
    return file


DOMAINS = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
PRODUCT = [helper.make_node("MatMul", ["x", "w"], ["out"])]


@pytest.fixture
def file(net: nn.Module, tmp_path: Path) -> Path:
    return export(net, tmp_path / "net.onnx")


def test_logits_gradients_and_verdicts_are_the_modules(
    net: nn.Module, file: Path, digits: tuple[Tensor, Tensor]
) -> None:
    loaded = load_model(f"onnx:{file}")
    x = digits[0].requires_grad_()
    assert torch.allclose(loaded(x), net(x), atol=1e-5)
    ours, theirs = (torch.autograd.grad(m(x).square().sum(), x)[0] for m in (loaded, net))
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    tables = [
        robust.evaluate(m, digits, threat="linf:0.1", suite="quick", device="cpu").verdicts
        for m in (loaded, net)
    ]
    assert tables[0]["status"].tolist() == tables[1]["status"].tolist()
    assert {"broken", "survived"} <= set(tables[0]["status"])


def test_a_fixed_number_of_rows_is_no_limit(
    net: nn.Module, tmp_path: Path, digits: tuple[Tensor, Tensor]
) -> None:
    spec = f"onnx:{export(net, tmp_path / 'two.onnx', rows=2)}"
    x = digits[0][:5]
    assert torch.allclose(load_model(spec)(x), net(x), atol=1e-5)
    assert torch.allclose(load_model(spec.replace("onnx:", "onnxruntime:"))(x), net(x), atol=1e-5)


def test_a_graph_that_reshapes_to_its_rows_is_run_in_pieces(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["out"]),
    ]
    file = graph(nodes, {"w": WEIGHTS, "shape": np.array([2, 4])}, tmp_path / "fixed.onnx")
    proto = onnx.load(str(file))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(proto, str(file))
    model, x = load_model(f"onnx:{file}"), torch.rand(5, 4)
    assert model.batch == 2
    assert torch.allclose(model(x), x @ torch.from_numpy(WEIGHTS), atol=1e-6)


@pytest.mark.parametrize("scheme", ["onnx", "onnxruntime"])
def test_images_come_as_the_file_declares_them(scheme: str, tmp_path: Path) -> None:
    """In a row of values, and channels last, as other frameworks export."""
    x = torch.rand(5, 1, 2, 2)
    row = graph(PRODUCT, {"w": WEIGHTS}, tmp_path / "row.onnx")
    assert torch.allclose(
        load_model(f"{scheme}:{row}")(x), x.flatten(1) @ torch.from_numpy(WEIGHTS), atol=1e-6
    )

    nodes = [
        helper.make_node("Transpose", ["x"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Reshape", ["first", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["out"]),
    ]
    weights = np.arange(36, dtype=np.float32).reshape(12, 3) / 7
    last = graph(nodes, {"w": weights, "shape": np.array([-1, 12])}, tmp_path / "last.onnx", sides=[2, 2, 3])
    x = torch.rand(5, 3, 2, 2)
    model = load_model(f"{scheme}:{last}")
    assert torch.allclose(model(x), x.flatten(1) @ torch.from_numpy(weights), atol=1e-5)


def test_a_size_that_the_file_does_not_take_says_nothing_but_its_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The converted graph would print its own code to stderr."""
    model = load_model(f"onnx:{graph(PRODUCT, {'w': WEIGHTS}, tmp_path / 'row.onnx')}")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.rand(2, 1, 3, 3))
    assert capfd.readouterr().err == ""


def test_onnxruntime_is_attacked_without_gradients(
    net: nn.Module, file: Path, digits: tuple[Tensor, Tensor]
) -> None:
    loaded = load_model(f"onnxruntime:{file}")
    assert torch.allclose(loaded(digits[0]), net(digits[0]), atol=1e-5)
    assert not loaded(digits[0].clone().requires_grad_()).requires_grad
    report = robust.evaluate(
        loaded, digits, threat="linf:0.3", suite=["pgd", robust.attacks.Square(queries=100)], device="cpu"
    )
    pgd, square = report.attacks
    assert pgd["attacked"] == 0
    assert square["broke"] > 10
    assert "detached-graph" in {finding["check"] for finding in report.findings}


def test_hashes_tell_files_apart(net: nn.Module, file: Path, tmp_path: Path) -> None:
    with torch.no_grad():
        net[-1].bias += 1
    other = export(net, tmp_path / "other.onnx")
    for form in ("onnx", "onnxruntime"):
        first, again, second = (model_sha256(load_model(f"{form}:{f}")) for f in (file, file, other))
        assert first == again != second


def test_metadata_becomes_normalisation(file: Path) -> None:
    proto = onnx.load(str(file))
    helper.set_model_props(proto, {"mean": "[0.25]", "std": "0.5"})
    onnx.save(proto, str(file))
    target = robust.load(f"onnx:{file}", device="cpu")
    assert target.normalize == ((0.25,), (0.5,))
    assert "mean 0.25 std 0.5" in str(target.preprocessing)
    assert robust.load(f"onnx:{file}", normalize=None, device="cpu").normalize is None


# --- quantised


def quantize(file: Path, kind: str, x: Tensor) -> Path:
    tool = pytest.importorskip("onnxruntime.quantization", exc_type=Exception)
    out = file.with_suffix(f".{kind}.onnx")
    if kind == "dynamic":
        tool.quantize_dynamic(str(file), str(out), weight_type=tool.QuantType.QInt8)
        return out

    class Reader(tool.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{"x": x.numpy()}])

        def get_next(self) -> object:
            return next(self.left, None)

    form = tool.QuantFormat.QDQ if kind == "static" else tool.QuantFormat.QOperator
    tool.quantize_static(str(file), str(out), Reader(), quant_format=form)
    return out


@pytest.mark.parametrize("kind", ["static", "dynamic", "operator"])
@pytest.mark.filterwarnings("ignore")
def test_a_quantised_graph_answers_itself_and_differentiates_its_twin(
    kind: str, net: nn.Module, file: Path, digits: tuple[Tensor, Tensor]
) -> None:
    spec = f"{quantize(file, kind, digits[0])}"
    model, deployed = load_model(f"onnx:{spec}"), load_model(f"onnxruntime:{spec}")
    x = digits[0].requires_grad_()
    assert isinstance(model, Quantized)
    assert torch.equal(model(x), deployed(x))
    assert not torch.equal(model(x), net(x))
    spread = net(x).amax() - net(x).amin()
    assert (model.twin(x) - net(x)).abs().max() < 0.05 * spread  # the twin has the rounded weights
    report = robust.evaluate(model, digits, threat="linf:0.2", suite="quick", device="cpu")
    assert report.attacks[0]["broke"] > 10
    assert report.checks["twin_examples"] >= 4
    assert report.checks["twin_examples_transferred"] > 0.5 * report.checks["twin_examples"]
    assert not {f["check"] for f in report.findings} & {"detached-graph", "gradient-model"}


class Residual(nn.Module):
    """Convolutions with a skip connection, two kinds of pooling and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = nn.functional.avg_pool2d(torch.sigmoid(self.second(x)) + x, 2)
        x = torch.cat([x, nn.functional.leaky_relu(self.second(x))], 1)
        out: Tensor = self.last(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return out


@pytest.mark.filterwarnings("ignore")
def test_operators_on_integers_throughout_have_a_float_twin(
    digits: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    model, x = Residual().eval(), digits[0]
    spec = quantize(export(model, tmp_path / "residual.onnx"), "operator", x)
    used = {node.op_type for node in onnx.load(str(spec)).graph.node}
    assert {"QLinearConv", "QLinearAdd", "QLinearConcat", "QLinearSigmoid", "QLinearAveragePool"} <= used, (
        used
    )
    loaded = load_model(f"onnx:{spec}")
    assert isinstance(loaded, Quantized)
    with torch.no_grad():
        exact = model(x)
        spread = exact.amax() - exact.amin()
        assert (loaded.twin(x) - exact).abs().max() < 0.05 * spread
        assert (loaded.twin(x) - loaded.deployed(x)).abs().max() < 0.05 * spread
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loaded(point)[:, 0].sum(), point)
    (wanted,) = torch.autograd.grad(model(point)[:, 0].sum(), point)
    assert torch.nn.functional.cosine_similarity(gradient.flatten(1), wanted.flatten(1)).mean() > 0.9


STEP = np.float32(1 / 64)
ZERO = np.int8(-3)
PER_COLUMN = np.array([1 / 64, 1 / 32, 1 / 128], np.float32)


@pytest.mark.parametrize(
    ("op", "inputs", "options", "more"),
    [
        ("QLinearMatMul", ["q", "s", "z", "w", "ws", "wz", "ys", "yz"], {}, {}),
        ("QLinearMatMul", ["q", "s", "z", "w", "ws", "wz", "ys", "yz"], {},
         {"ws": PER_COLUMN, "wz": np.array([1, -2, 3], np.int8)}),
        ("QGemm", ["q", "s", "z", "w", "ws", "wz", "b", "ys", "yz"], {}, {"b": np.array([100, -200, 300], np.int32)}),
        ("QGemm", ["q", "s", "z", "w", "ws", "wz", "b", "ys", "yz"], {"transB": 1},
         {"w": np.arange(-6, 6, dtype=np.int8).reshape(3, 4), "ws": PER_COLUMN, "wz": np.zeros(3, np.int8),
          "b": np.array([100, -200, 300], np.int32)}),
    ],
)  # fmt: skip
def test_products_of_integers_are_those_of_the_twin(
    op: str, inputs: list[str], options: dict[str, int], more: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Per tensor and per channel, zero points and biases included; clipped where the integers end."""
    weights = {
        "s": STEP, "z": ZERO, "w": np.arange(-6, 6, dtype=np.int8).reshape(4, 3) * 5, "ws": STEP, "wz": np.int8(2),
        "ys": np.float32(1 / 50), "yz": np.int8(5), **more,
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node(op, inputs, ["y"], domain="com.microsoft" if op == "QGemm" else "", **options),
        helper.make_node("DequantizeLinear", ["y", "ys", "yz"], ["out"]),
    ]
    file = graph(nodes, {name: np.asarray(value) for name, value in weights.items()}, tmp_path / "net.onnx")
    model = load_model(f"onnx:{file}")
    assert isinstance(model, Quantized)
    x = 4 * torch.rand(200, 4, generator=torch.Generator().manual_seed(0)) - 2
    deployed, twin = model.deployed(x), model.twin(x)
    assert (
        deployed - twin
    ).abs().max() < 0.08  # the inputs' rounding of 1/128, times weights, plus the result's
    assert deployed.unique().numel() > 20
    assert float(twin.amax()) <= (127 - 5) / 50 + 1e-6
    assert float(twin.amin()) >= (-128 - 5) / 50 - 1e-6


def test_an_operator_on_integers_without_twin_is_named(tmp_path: Path) -> None:
    scales = {
        "s": STEP,
        "z": ZERO,
        "c": np.array([True, False, True, False]),
        "w": np.arange(12, dtype=np.int8).reshape(4, 3),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node(
            "QLinearWhere", ["c", "q", "s", "z", "q", "s", "z", "s", "z"], ["h"], domain="com.microsoft"
        ),
        helper.make_node("QLinearMatMul", ["h", "s", "z", "w", "s", "z", "s", "z"], ["y"]),
        helper.make_node("DequantizeLinear", ["y", "s", "z"], ["out"]),
    ]
    file = graph(nodes, {name: np.asarray(value) for name, value in scales.items()}, tmp_path / "net.onnx")
    refused(f"onnx:{file}", "QLinearWhere", f"onnxruntime:{file} --attack square", error=UnsupportedError)
    assert load_model(f"onnxruntime:{file}")(torch.ones(2, 4)).shape == (2, 3)


# --- refusals


def test_an_operator_without_conversion_is_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("DFT", ["signal"], ["spectrum"], axis=1),
        helper.make_node("ReduceSum", ["spectrum"], ["d"], keepdims=0),
        helper.make_node("Mul", ["m", "d"], ["out"]),
    ]
    weights = {"w": WEIGHTS, "signal": np.ones((1, 4, 1), np.float32)}
    file = graph(nodes, weights, tmp_path / "dft.onnx")
    refused(f"onnx:{file}", "operator DFT", f"onnxruntime:{file}", "--attack square", error=UnsupportedError)
    assert load_model(f"onnxruntime:{file}")(torch.ones(2, 4)).shape == (2, 3)


def test_a_conversion_that_computes_something_else_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx2fx

    convert = onnx2fx.convert

    def tampered(proto: object) -> nn.Module:
        made = convert(proto)
        next(b for b in made.buffers() if b.dim() == 4).mul_(1.01)
        return made

    monkeypatch.setattr(onnx2fx, "convert", tampered)
    refused(f"onnx:{file}", "differ from onnxruntime's")


def test_two_inputs(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "xx"], ["s"]), helper.make_node("MatMul", ["s", "w"], ["out"])]
    refused(
        f"onnx:{graph(nodes, {'w': WEIGHTS}, tmp_path / 'two.onnx', inputs=2)}", "expected one input", "xx"
    )


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.95])
def test_truncated_files(file: Path, keep: float) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    for form in ("onnx", "onnxruntime"):
        refused(f"{form}:{file}", str(file), "no ONNX model")


def test_files_that_are_none(tmp_path: Path) -> None:
    refused(f"onnx:{tmp_path}/none.onnx", "no such file")
    (tmp_path / "junk.onnx").write_bytes(b"\x80\x04junk" * 40)
    refused(f"onnx:{tmp_path}/junk.onnx", "no ONNX model")


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "link", "gone"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(WEIGHTS.tobytes())
    home = tmp_path / "home"
    home.mkdir()
    (home / "link").symlink_to(tmp_path / "secret")
    file = graph(PRODUCT, {"w": WEIGHTS}, home / "net.onnx")
    proto = onnx.load(str(file))
    tensor = proto.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, location=location)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    file.write_bytes(proto.SerializeToString())
    for form in ("onnx", "onnxruntime"):
        refused(f"{form}:{file}", "is missing" if location == "gone" else "outside its own folder")


def test_a_size_over_the_limit_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_MAX_GIB", "0.000001")
    refused(f"onnx:{file}", "over the limit", "ROBUST_MAX_GIB")


@pytest.mark.parametrize("package", ["onnx", "onnx2fx", "onnxruntime"])
def test_a_missing_package_names_the_extra(file: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    refused(f"onnx:{file}", package, "robust-harness[onnx]", error=MissingDependencyError)
