"""The float twin of a quantised ONNX graph: the same weights, nothing rounded on the way."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from robust.errors import UnsupportedError

_QUANTIZES: Final = ("QuantizeLinear", "DynamicQuantizeLinear")
_INTEGER: Final = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
_FUSED: Final = "QLinear"  # operators that take and give integers: QLinearConv, QLinearMatMul, ...


def is_quantized(proto: Any) -> bool:
    """Whether activations are rounded to integers anywhere in the graph."""
    return any(
        node.op_type in _QUANTIZES or node.op_type in _INTEGER or node.op_type.startswith(_FUSED)
        for node in proto.graph.node
    )


def without_quantization(proto: Any, path: Path) -> Any:
    """A copy of the model whose activations stay floats.

    QuantizeLinear of activations only clips to the range of its integers (which quantisers use in place of
    a ReLU) and DequantizeLinear becomes the identity; DynamicQuantizeLinear gives its input with scale 1;
    integer products become float products of the shifted weights.

    Raises:
        UnsupportedError: operators that compute on integers throughout (QLinearConv and its kin).
    """
    fused = sorted({node.op_type for node in proto.graph.node if node.op_type.startswith(_FUSED)})
    if fused:
        raise UnsupportedError(
            f"model onnx:{path}: {', '.join(fused)} compute on integers throughout, so there is no float twin; "
            "quantise in the QDQ format, or attack it as it is with score and decision attacks: "
            f"--model onnxruntime:{path} --attack square"
        )
    twin = type(proto)()
    twin.CopyFrom(proto)
    helper = import_module("onnx.helper")
    constant = {tensor.name: tensor for tensor in proto.graph.initializer}
    constant |= {node.output[0]: None for node in proto.graph.node if node.op_type == "Constant"}
    nodes: list[Any] = []
    for node in proto.graph.node:
        nodes += _float(helper, node, constant)
    del twin.graph.node[:]
    twin.graph.node.extend(nodes)
    del twin.graph.value_info[:]  # types of values that are integers no longer
    return twin


def _float(helper: Any, node: Any, constant: dict[str, Any]) -> list[Any]:
    """The float nodes in place of one node; weights stored as integers are still read as such."""
    if node.op_type == "QuantizeLinear":
        return _clip(helper, node, constant)
    if node.op_type == "DequantizeLinear" and node.input[0] not in constant:
        return [helper.make_node("Identity", [node.input[0]], list(node.output))]
    if node.op_type == "DynamicQuantizeLinear":
        x, (value, scale, zero) = node.input[0], node.output
        return [
            helper.make_node("Identity", [x], [value]),
            helper.make_node("Constant", [], [scale], value_float=1.0),
            helper.make_node("Constant", [], [zero], value_float=0.0),
        ]
    if node.op_type in _INTEGER:
        return _product(helper, node)
    return [node]


def _clip(helper: Any, node: Any, constant: dict[str, Any]) -> list[Any]:
    """Values that QuantizeLinear cannot express become its least or greatest."""
    numpy_helper = import_module("onnx.numpy_helper")
    scale, zero = (constant.get(name) for name in (*node.input[1:3], "")[:2])
    if scale is None or zero is None or (step := numpy_helper.to_array(scale)).size != 1:
        return [helper.make_node("Identity", [node.input[0]], list(node.output))]
    shift = numpy_helper.to_array(zero)
    ends = np.iinfo(shift.dtype)
    name, nodes = node.output[0], []
    for end, value in (("low", ends.min), ("high", ends.max)):
        reached = (value - int(shift.item())) * float(step.item())
        nodes.append(helper.make_node("Constant", [], [f"{name}:{end}"], value_float=reached))
    nodes.append(helper.make_node("Clip", [node.input[0], f"{name}:low", f"{name}:high"], [name]))
    return nodes


def _product(helper: Any, node: Any) -> list[Any]:
    """MatMulInteger or ConvInteger of an unrounded input: a float product with the shifted weight."""
    float_type = 1  # TensorProto.FLOAT
    name = node.output[0]
    weight, nodes = f"{name}:weight", []
    nodes.append(helper.make_node("Cast", [node.input[1]], [weight], to=float_type))
    if len(node.input) > 3 and node.input[3]:
        zero, shifted = f"{name}:zero", f"{name}:shifted"
        nodes.append(helper.make_node("Cast", [node.input[3]], [zero], to=float_type))
        nodes.append(helper.make_node("Sub", [weight, zero], [shifted]))
        weight = shifted
    product = helper.make_node(_INTEGER[node.op_type], [node.input[0], weight], [name])
    product.attribute.extend(node.attribute)
    return [*nodes, product]
