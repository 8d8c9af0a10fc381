"""Int8 models: the deployed model's answers with the gradient of its float twin."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from robust.bpda import Substituted
from robust.errors import UnsupportedError

_WITHOUT_TWIN: Final = (
    "give robust.Target(model) for score and decision attacks, which need no gradient, or the model's float original "
    "as the backward of a robust.BPDA"
)


class Quantized(Substituted):
    """A quantised classifier that can be attacked: it answers, and its float twin gives the gradient.

    Without gradients only the deployed model is run; no answer ever comes from the twin.

    Args:
        deployed: the model under test.
        twin: a differentiable model with the same weights, unrounded on the way.
    """

    def __init__(self, deployed: nn.Module, twin: nn.Module) -> None:
        super().__init__(deployed, backward=twin)

    @property
    def deployed(self) -> nn.Module:
        """The model under test."""
        return self.transform  # type: ignore[return-value]

    @property
    def twin(self) -> nn.Module:
        """The model that gives the gradient."""
        return self.backward  # type: ignore[return-value]


def attackable(model: nn.Module) -> nn.Module:
    """The model itself, or, where it has layers that torch has quantised, with its float twin.

    Raises:
        UnsupportedError: a quantised layer or operator without a float counterpart; it is named.
    """
    if isinstance(model, Quantized) or not any(_is_quantized(module) for module in model.modules()):
        return model
    return Quantized(model, float_twin(model))


def float_twin(model: nn.Module) -> nn.Module:
    """A float copy of a statically or dynamically quantised model, with its dequantised weights.

    Raises:
        UnsupportedError: as attackable does.
    """
    twin = _float(copy.deepcopy(model))
    for module in list(twin.modules()):
        for name, child in module.named_children():
            setattr(module, name, _float(child))
    for module in twin.modules():
        if isinstance(module, fx.GraphModule):
            _unround(module)
    return twin.eval().requires_grad_(False)


def _is_quantized(module: nn.Module) -> bool:
    home = type(module).__module__
    return home.startswith("torch.ao.nn.") and "quantized" in home


def _float(module: nn.Module) -> nn.Module:
    if not _is_quantized(module):
        return module
    for kinds, make in _counterparts():
        if type(module) in kinds:
            return make(module)
    raise UnsupportedError(
        f"model: no float counterpart of the quantised layer {type(module).__name__}; {_WITHOUT_TWIN}"
    )


def _linear(module: Any) -> nn.Module:
    weight, bias = module.weight().dequantize(), module.bias()
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    return _filled(linear, weight, bias)


def _convolution(module: Any) -> nn.Module:
    weight, bias = module.weight().dequantize(), module.bias()
    kind: Any = nn.Conv1d if weight.dim() == 3 else nn.Conv2d
    convolution = kind(
        module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding,
        module.dilation, module.groups, bias is not None, module.padding_mode,
    )  # fmt: skip
    return _filled(convolution, weight, bias)


def _filled(layer: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    filled: nn.Module = layer
    return filled


def _batch_norm(module: Any) -> nn.Module:
    norm = nn.BatchNorm2d(module.num_features, module.eps)
    norm.load_state_dict(
        {name: tensor for name, tensor in module.state_dict().items() if name in norm.state_dict()}
    )
    return norm


@functools.cache
def _counterparts() -> list[tuple[tuple[type, ...], Callable[[Any], nn.Module]]]:
    """Quantised layers and how to make a float one of them; imported only for a model that has any."""
    import torch.ao.nn.intrinsic.quantized as nniq
    import torch.ao.nn.intrinsic.quantized.dynamic as nniqd
    import torch.ao.nn.quantized as nnq
    import torch.ao.nn.quantized.dynamic as nnqd

    return [
        ((nnq.Linear, nnqd.Linear), _linear),
        ((nniq.LinearReLU, nniqd.LinearReLU), lambda m: nn.Sequential(_linear(m), nn.ReLU())),
        ((nnq.Conv1d, nnq.Conv2d), _convolution),
        ((nniq.ConvReLU1d, nniq.ConvReLU2d), lambda m: nn.Sequential(_convolution(m), nn.ReLU())),
        ((nnq.BatchNorm2d,), _batch_norm),
        ((nnq.Quantize, nnq.DeQuantize, nnq.Dropout), lambda m: nn.Identity()),
        ((nnq.QFunctional,), lambda m: nnq.FloatFunctional()),
        ((nnq.FloatFunctional, nnq.FXFloatFunctional), lambda m: m),
        ((nnq.ReLU6,), lambda m: nn.ReLU6()),
        ((nnq.Hardswish,), lambda m: nn.Hardswish()),
        ((nnq.Sigmoid,), lambda m: nn.Sigmoid()),
        ((nnq.LeakyReLU,), lambda m: nn.LeakyReLU(m.negative_slope)),
        # What quantised layers keep their weights in: already read.
        ((nnq.modules.linear.LinearPackedParams,), lambda m: nn.Identity()),
    ]


# Operators on quantised values: the same on floats, and how many of the arguments it takes; scale and zero point follow.
_OPERATORS: Final[dict[str, tuple[Callable[..., Tensor], int]]] = {
    "add": (operator.add, 2),
    "add_relu": (lambda a, b: (a + b).relu(), 2),
    "mul": (operator.mul, 2),
    "mul_relu": (lambda a, b: (a * b).relu(), 2),
    "matmul": (torch.matmul, 2),
    "cat": (torch.cat, 2),
    "hardswish": (functional.hardswish, 1),
    "sigmoid": (torch.sigmoid, 1),
    "leaky_relu": (functional.leaky_relu, 2),
    "layer_norm": (functional.layer_norm, 5),
    "group_norm": (functional.group_norm, 5),
    "instance_norm": (
        lambda x, weight, bias, eps: functional.instance_norm(x, weight=weight, bias=bias, eps=eps),
        4,
    ),
}


_ROUNDING: Final = ("scale", "zero_point", "output_scale", "output_zero_point")


def _quantised_operator(node: fx.Node) -> str | None:
    """The name of the operator on quantised values that a node calls, if it does."""
    library, _, name = str(node.target).partition(".")
    return name.partition(".")[0] if node.op == "call_function" and library == "quantized" else None


def _unround(module: fx.GraphModule) -> None:
    """Take rounding out of a traced graph."""
    for node in list(module.graph.nodes):
        quantizes = node.op == "call_function" and node.target is torch.quantize_per_tensor
        if quantizes or (node.op == "call_method" and node.target == "dequantize"):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif name := _quantised_operator(node):
            if name not in _OPERATORS:
                raise UnsupportedError(
                    f"model: no float counterpart of the operator quantized::{name}; {_WITHOUT_TWIN}"
                )
            node.target, count = _OPERATORS[name]
            node.args = node.args[:count]
            node.kwargs = {key: value for key, value in node.kwargs.items() if key not in _ROUNDING}
    module.graph.eliminate_dead_code()
    module.recompile()
