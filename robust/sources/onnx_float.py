"""The float twin of a quantised ONNX graph: the same weights, nothing rounded on the way."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from robust.errors import UnsupportedError

_QUANTIZES: Final = ("QuantizeLinear", "DynamicQuantizeLinear")
_INTEGER: Final = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}


@dataclass(frozen=True)
class _Fused:
    """An operator that takes and gives integers: `operands` triples of value, scale and zero point.

    Args:
        op: the same on floats.
        operands: how many triples; None: all that there are, after the result's scale and zero point.
        bias: place of an integer bias.
        axis: of the second operand's scales, where it has several.
    """

    op: str
    operands: int | None
    bias: int | None = None
    axis: int = -1


_FUSED: Final = {
    "QLinearConv": _Fused("Conv", 2, bias=8, axis=0),
    "QLinearMatMul": _Fused("MatMul", 2),
    "QGemm": _Fused("Gemm", 2, bias=6),
    "QLinearAdd": _Fused("Add", 2),
    "QLinearMul": _Fused("Mul", 2),
    "QLinearGlobalAveragePool": _Fused("GlobalAveragePool", 1),
    "QLinearAveragePool": _Fused("AveragePool", 1),
    "QLinearSigmoid": _Fused("Sigmoid", 1),
    "QLinearLeakyRelu": _Fused("LeakyRelu", 1),
    "QLinearConcat": _Fused("Concat", None),
}
_NOT_THE_FLOAT_S: Final = ("channels_last", "opset")  # attributes of onnxruntime's operators alone
Constants = dict[str, Any]  # value of each initializer and Constant, as a numpy array


def is_quantized(proto: Any) -> bool:
    """Whether activations are rounded to integers anywhere in the graph."""
    return any(
        node.op_type in _QUANTIZES
        or node.op_type in _INTEGER
        or node.op_type in _FUSED
        or node.op_type.startswith("QLinear")
        for node in proto.graph.node
    )


def without_quantization(proto: Any, path: Path) -> Any:
    """A copy of the model whose activations stay floats.

    QuantizeLinear of activations only clips to the range of its integers (which quantisers use in place of
    a ReLU) and DequantizeLinear becomes the identity; DynamicQuantizeLinear gives its input with scale 1;
    integer products become float products of the shifted weights. Operators on integers throughout (QLinearConv
    and its kin) become the float operator on their dequantised weights, clipped alike.

    Raises:
        UnsupportedError: an operator on integers without a float counterpart here; it is named.
    """
    names = {node.op_type for node in proto.graph.node}
    if unknown := sorted(name for name in names if name.startswith("QLinear") and name not in _FUSED):
        raise UnsupportedError(
            f"model onnx:{path}: {', '.join(unknown)} on integers, of which no float twin is known; "
            "quantise in the QDQ format, or attack it as it is with score and decision attacks: "
            f"--model onnxruntime:{path} --attack square"
        )
    twin = type(proto)()
    twin.CopyFrom(proto)
    constants = _constants(proto)
    nodes = [made for node in proto.graph.node for made in _float(node, constants)]
    del twin.graph.node[:]
    twin.graph.node.extend(nodes)
    del twin.graph.value_info[:]  # types of values that are integers no longer
    return twin


def _constants(proto: Any) -> Constants:
    to_array = import_module("onnx.numpy_helper").to_array
    found = {tensor.name: to_array(tensor) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            value = next((entry.t for entry in node.attribute if entry.name == "value"), None)
            found[node.output[0]] = None if value is None else to_array(value)
    return found


def _float(node: Any, constants: Constants) -> list[Any]:
    """The float nodes in place of one node; weights stored as integers are still read as such."""
    make = import_module("onnx.helper").make_node
    if node.op_type == "QuantizeLinear":
        scale, zero = (*node.input[1:3], "")[:2]
        return _clipped(node.input[0], node.output[0], constants.get(scale), constants.get(zero))
    if node.op_type == "DequantizeLinear" and node.input[0] not in constants:
        return [make("Identity", [node.input[0]], list(node.output))]
    if node.op_type == "DynamicQuantizeLinear":
        x, (value, scale, zero) = node.input[0], node.output
        return [
            make("Identity", [x], [value]),
            make("Constant", [], [scale], value_float=1.0),
            make("Constant", [], [zero], value_float=0.0),
        ]
    if node.op_type in _INTEGER:
        return _product(make, node)
    if node.op_type in _FUSED:
        return _unfused(make, node, _FUSED[node.op_type], constants)
    return [node]


def _clipped(x: str, name: str, scale: Any, zero: Any) -> list[Any]:
    """Values that the integers of a scale and zero point cannot express become the least or greatest of them."""
    make = import_module("onnx.helper").make_node
    if scale is None or zero is None or scale.size != 1:
        return [make("Identity", [x], [name])]
    ends, nodes = np.iinfo(zero.dtype), []
    for end, value in (("low", ends.min), ("high", ends.max)):
        reached = (value - int(zero.item())) * float(scale.item())
        nodes.append(make("Constant", [], [f"{name}:{end}"], value_float=reached))
    return [*nodes, make("Clip", [x, f"{name}:low", f"{name}:high"], [name])]


def _unfused(make: Any, node: Any, kind: _Fused, constants: Constants) -> list[Any]:
    """A fused operator as its float operator on dequantised operands, clipped to what its integers can express."""
    given, name = list(node.input), node.output[0]
    own = 3 * (kind.operands or 0) + (kind.bias == 6)  # where the result's scale is, but for Concat's
    start = 2 if kind.operands is None else 0
    count = (len(given) - 2) // 3 if kind.operands is None else kind.operands
    nodes, operands, scales = list[Any](), list[str](), list[Any]()
    for place in range(count):
        value, scale, zero = given[start + 3 * place : start + 3 * place + 3]
        scales.append(constants.get(scale))
        if constants.get(value) is not None:  # a weight; activations carry floats already
            axis = 0 if _transposed(node) else kind.axis
            weight = _dequantized(constants[value], scales[-1], constants.get(zero), axis)
            value = f"{name}:{place}"
            nodes.append(_constant(make, value, weight))
        operands.append(value)
    if kind.bias is not None and len(given) > kind.bias and given[kind.bias]:
        bias = constants[given[kind.bias]] * scales[0] * scales[1].reshape(-1)
        operands.append(f"{name}:bias")
        nodes.append(_constant(make, f"{name}:bias", bias))
    made = make(kind.op, operands, [f"{name}:float"])
    made.attribute.extend(entry for entry in node.attribute if entry.name not in _NOT_THE_FLOAT_S)
    scale, zero = (*given[0 if kind.operands is None else own :][:2], "", "")[:2]
    return [*nodes, made, *_clipped(f"{name}:float", name, constants.get(scale), constants.get(zero))]


def _transposed(node: Any) -> bool:
    return any(entry.name == "transB" and entry.i for entry in node.attribute)


def _dequantized(weight: Any, scale: Any, zero: Any, axis: int) -> Any:
    """(integers - zero point) x scale, with a scale for all or one for each place on an axis."""
    shape = [1] * weight.ndim
    if scale.size > 1:
        shape[axis] = scale.size
    shift = (
        0 if zero is None else zero.astype(np.int64).reshape(shape if zero.size > 1 else [1] * weight.ndim)
    )
    return (weight.astype(np.int64) - shift) * scale.reshape(shape)


def _constant(make: Any, name: str, value: Any) -> Any:
    tensor = import_module("onnx.numpy_helper").from_array(np.asarray(value, np.float32), name)
    return make("Constant", [], [name], value=tensor)


def _product(make: Any, node: Any) -> list[Any]:
    """MatMulInteger or ConvInteger of an unrounded input: a float product with the shifted weight."""
    float_type = 1  # TensorProto.FLOAT
    name = node.output[0]
    weight, nodes = f"{name}:weight", []
    nodes.append(make("Cast", [node.input[1]], [weight], to=float_type))
    if len(node.input) > 3 and node.input[3]:
        zero, shifted = f"{name}:zero", f"{name}:shifted"
        nodes.append(make("Cast", [node.input[3]], [zero], to=float_type))
        nodes.append(make("Sub", [weight, zero], [shifted]))
        weight = shifted
    product = make(_INTEGER[node.op_type], [node.input[0], weight], [name])
    product.attribute.extend(node.attribute)
    return [*nodes, product]
