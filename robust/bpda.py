"""BPDA: a model behind a transform that autograd cannot pass, with a gradient put in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robust.errors import InputError, ModelError, origin, told
from robust.failures import to_be_named
from robust.in_front import Behind, Normalization
from robust.target import Target

Transform = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    """The substitute for transforms that change their input little: x itself."""
    return x


class BPDA(Target):
    """A target behind an input transform whose gradient is that of a substitute.

    Backward pass differentiable approximation (Athalye, Carlini & Wagner 2018, arXiv 1802.00420): forward
    is the deployed model(transform(x)), to the bit; backward pretends that `transform` was `backward`.
    Quantisation, JPEG, denoisers: what shatters or detaches gradients then no longer hides the model.

    Args:
        transform: (N, ...) in bounds -> (N, ...), applied before normalisation. Any callable: it is run
            without autograd and may leave torch. An nn.Module is frozen and moved with the model.
        model: what sees the transformed input: a module, or a Target with its own input size and normalisation.
        backward: differentiable stand-in of `transform` with the same output shape; `identity` by default.
        normalize, bounds, device, probabilities: as for Target; a Target as `model` brings its own.

    Raises:
        InputError: `transform` or `backward` is not callable, or options beside a Target.
        ModelError: in use, where the two give different shapes, or `backward` raises.
    """

    def __init__(
        self,
        transform: Transform,
        model: nn.Module | Target,
        *,
        backward: Transform = identity,
        normalize: Normalization | None = None,
        bounds: tuple[float, float] | None = None,
        device: str | torch.device | None = None,
        probabilities: bool | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "normalize": normalize, "bounds": bounds, "device": device, "probabilities": probabilities,
        }  # fmt: skip
        given = {name: value for name, value in given.items() if value is not None}
        if isinstance(model, Target):
            if type(model).logits is not Target.logits:
                raise InputError(
                    f"bpda: model: {type(model).__name__} must be the outer one; wrap this in it"
                )
            if given:
                raise InputError(
                    f"{', '.join(given)}: the model is a Target, which has its own; give it there"
                )
            kept = ("bounds", "device", "probabilities", "size", "preprocessing")
            given = {name: getattr(model, name) for name in kept}
            normalize, inner = model.normalize, model.model
        else:
            normalize, inner = given.pop("normalize", None), model
        super().__init__(inner, normalize=normalize, **given)
        front = Substituted(transform, backward=backward)
        self.model = Behind(inner, self._mean, self._std, self.size, front=front)
        # They come after the transform: the chain does it. Records say what they were.
        self.normalize_behind = self.normalize
        self.normalize = self._mean = self._std = self.size = None
        self.transform, self.backward = transform, backward


class Substituted(nn.Module):
    """A layer that is `transform` forward and `backward` in the gradient: for use inside a module.

    Args:
        transform, backward: as for BPDA.
    """

    transform: Transform
    backward: Transform
    complaint: str | None = None  # of the transform's last run: what to look at first where the model fails

    def __init__(self, transform: Transform, *, backward: Transform = identity) -> None:
        super().__init__()
        for name, part in (("transform", transform), ("backward", backward)):
            if not callable(part):
                raise InputError(f"bpda: {name}: expected a callable (N, ...) -> (N, ...), got {part!r}")
        self.transform, self.backward = transform, backward

    def forward(self, x: Tensor) -> Tensor:
        exact = self._transformed(x)
        if not torch.is_grad_enabled():
            return exact
        stand_in = self._stood_in(x)
        given = tuple(stand_in.shape) if isinstance(stand_in, Tensor) else type(stand_in).__name__
        if given != exact.shape:
            raise ModelError(
                f"bpda: transform gives {tuple(exact.shape)} for {tuple(x.shape)}, its substitute `backward` "
                f"{given}; they must agree, so give a substitute that changes the shape alike"
            )
        out: Tensor = _Through.apply(stand_in, exact)
        return out

    def _stood_in(self, x: Tensor) -> Tensor:
        try:
            return self.backward(x)
        except Exception as error:
            if not to_be_named(error):
                raise
            raise ModelError(
                f"bpda: backward: fails on input {tuple(x.shape)} ({told(error)}); give a differentiable callable "
                "(N, ...) -> (N, ...) that changes the shape as transform does"
            ) from error

    def _transformed(self, x: Tensor) -> Tensor:
        try:
            with torch.no_grad():
                exact = self.transform(x.detach())
        except Exception as error:
            at = origin(error)
            self.complaint = "its transform fails" + (f" in {at[0]}" if at else "")
            raise
        self.complaint = _odd(exact, x)
        return exact


def _odd(exact: object, x: Tensor) -> str | None:
    """What a model may stumble over in what a transform gave for x; None for nothing."""
    if not isinstance(exact, Tensor):
        return f"its transform gives {type(exact).__name__}: let it return a tensor"
    if isinstance(x, Tensor) and exact.dtype != x.dtype:  # no tensors where torch.fx traces
        return f"its transform gives {exact.dtype} for {x.dtype}: end it with .to(x.dtype)"
    if isinstance(x, Tensor) and exact.shape != x.shape:
        return (
            f"its transform gives {tuple(exact.shape)} for {tuple(x.shape)}: let it give what the model takes"
        )
    return None


class _Through(torch.autograd.Function):
    """The second argument's value with the first one's gradient: adding their difference would round."""

    @staticmethod
    def forward(ctx: Any, stand_in: Tensor, exact: Tensor) -> Tensor:
        return exact.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
