"""The model under test: frozen while in use, handed back as it was."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import UninitializedParameter

from robust import convolutions
from robust.default_device import callers_device
from robust.devices import resolve_device, wake_autograd
from robust.errors import InputError, ModelError
from robust.failures import named
from robust.in_front import Behind, Normalization, prepared, read_moments
from robust.loans import Loan, lent
from robust.pooling import quick_pooling
from robust.randomness import States, spared
from robust.reentrant import differentiable_checkpoints
from robust.tf32 import without_tf32
from robust.threat import pair_of_bounds

if TYPE_CHECKING:
    from robust.sources.preprocess import Preprocessing

_ONE_LOGIT = "; a binary net with one logit z should return two: torch.cat([-z, z], 1)"
_TINY = 1e-38  # smallest normal float32, under which log-probabilities are cut off


@dataclass
class _Use:
    """A thread's use of a target: how often it went in, and what to do when it has left."""

    depth: int = 0
    stack: ExitStack = field(default_factory=ExitStack)


class Target:
    """A classifier with everything that stands between valid inputs and its logits.

    Use it as a context manager: inside, the model is in eval mode with frozen parameters on the
    target's device; afterwards every submodule's mode, every requires_grad and the device are back. Several threads may be
    inside with one model: it is back when the last has left.

    Args:
        model: module giving logits (N, C) for inputs (N, ...) in `bounds`.
        normalize: (mean, std), numbers or a value per channel, applied to the input first.
        bounds: lowest and highest valid input value.
        size: (height, width) that the model takes: images of another size are scaled to it, differentiably.
        preprocessing: where normalize and size were declared; only shown.
        device: "auto" (CUDA where there is one), or any torch device.
        probabilities: the model returns probabilities; the target gives their logarithm. Set by
            `evaluate` when it finds that out by itself.
        tf32: let a GPU round to TensorFloat-32 as its settings allow. Else it computes in float32: that is several
            times slower, and what a verdict is worth.

    Raises:
        InputError: unusable device or normalisation.
        ModelError: not an nn.Module.
    """

    draws: int = 1  # forward passes of the model that an answer takes
    randomized: bool = False  # these are drawn anew, so that the judge's are others than the search's
    blur: float = (
        0.0  # how far logits may be off those of the model itself, of their spread: for copies of it
    )
    # A pass forward and backward at once, for copies that have it recorded: of x (N, ...) and weights (N, C) of the logits
    # the gradient, the value and the logits, as `Oracle.slope` has them; None for what it cannot take.
    replay: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor] | None] | None = None

    def __init__(
        self,
        model: nn.Module,
        *,
        normalize: Normalization | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
        device: str | torch.device = "auto",
        probabilities: bool = False,
        size: tuple[int, int] | None = None,
        preprocessing: Preprocessing | None = None,
        tf32: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"model: expected a torch.nn.Module, got {type(model).__name__}; wrap it in a module "
                "whose forward returns logits"
            )
        if any(isinstance(parameter, UninitializedParameter) for parameter in model.parameters()):
            raise ModelError(
                "model: expected parameters with values, got lazy modules whose parameters have no shape yet; pass a batch "
                "through the model first, and give the weights that it was trained to"
            )
        if any(parameter.is_meta for parameter in model.parameters()):
            raise ModelError(
                "model: expected parameters with values, got some on the device 'meta'; call to_empty(device='cpu') and load the weights"
            )
        if any(parameter.is_inference() for parameter in model.parameters()):
            raise ModelError(
                "model: expected parameters that gradients can pass, got some made under torch.inference_mode; give "
                "copy.deepcopy(model), made outside of it"
            )
        self.model = model
        self.bounds = bounds
        self.device = resolve_device(device)
        self.normalize = normalize
        self.probabilities = probabilities
        self.found_probabilities = False  # by an evaluation, which later ones are to say, too
        self.size, self.preprocessing = size, preprocessing
        self._mean, self._std = read_moments(normalize, self.device)
        self._tf32 = tf32
        self._retraceable: Target | None = None
        self._overwrites: bool | None = None  # whether the model writes into its input, once a pass has told
        self._draws: bool | None = None  # whether it moves the global generators, likewise
        self._uses: dict[int, _Use] = {}  # by the thread that is in

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, bounds={self.bounds}, device={str(self.device)!r})"

    def __enter__(self) -> Self:
        use = self._uses.get(threading.get_ident())
        if use is None:
            use = self._uses[threading.get_ident()] = _Use()
            try:
                self._take_over(use.stack)
            except BaseException:
                self._hand_back()
                raise
        use.depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        use = self._uses[threading.get_ident()]
        use.depth -= 1
        if not use.depth:
            self._hand_back()

    def take_for_probabilities(self) -> None:
        """From now on give the logarithm of what the model returns: an evaluation found that out by itself."""
        self.probabilities = self.found_probabilities = True

    def _take_over(self, stack: ExitStack) -> None:
        for mode in self._modes_of_thread():
            stack.enter_context(mode)
        stack.enter_context(lent([torch], self._settle_torch))
        stack.enter_context(lent([*self.model.modules(), *self.model.parameters()], self._freeze))

    def _hand_back(self) -> None:
        self._uses.pop(threading.get_ident()).stack.close()

    def _modes_of_thread(self) -> list[AbstractContextManager[object]]:
        """What surrounds the caller changes nothing: gradients are there, and judging is float32 (training may be in less)."""
        modes: list[AbstractContextManager[object]] = [torch.inference_mode(False), torch.enable_grad()]
        if not self._tf32:
            modes.append(torch.autocast(self.device.type, enabled=False))
        return modes

    def _settle_torch(self, loan: Loan) -> None:
        """What holds for all threads."""
        patches = [differentiable_checkpoints(), *([quick_pooling()] if self.device.type == "cpu" else [])]
        for patch in patches:
            patch.__enter__()
            loan.afterwards(functools.partial(patch.__exit__, None, None, None))
        loan.afterwards(functools.partial(torch.set_default_dtype, torch.get_default_dtype()))
        torch.set_default_dtype(torch.float32)
        if self.device.type == "cuda" and not self._tf32:
            loan.afterwards(without_tf32())

    def _freeze(self, loan: Loan) -> None:
        """Have the model on the device, in eval mode, its parameters frozen, its convolutions quick."""
        first = next(self.model.parameters(), next(self.model.buffers(), None))
        if first is not None and first.device != self.device:
            loan.afterwards(functools.partial(self.model.to, first.device))
            self.model.to(self.device)
        training = [
            m for m in self.model.modules() if getattr(m, "training", False)
        ]  # frozen scripts do not say
        if training:
            loan.afterwards(functools.partial(_train_again, self.model, training))
            with _switchable(self.model):
                self.model.eval()  # some models change their layers then
            for module in training:
                module.training = False
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                loan.afterwards(functools.partial(parameter.requires_grad_, True))
                parameter.requires_grad_(False)
        if self.device.type == "cpu":
            loan.afterwards(functools.partial(convolutions.restore, convolutions.quicken(self.model)))
        elif self.device.type == "cuda":
            wake_autograd(self.device)

    def logits(self, x: Tensor) -> Tensor:
        """Logits of inputs in bounds: (N, ...) -> (N, C), float32.

        Raises:
            ModelError: the model returns anything but a float tensor (N, C >= 2), or, within `naming_failures`,
                fails on the input. Elsewhere whatever it raises is passed on.
        """
        try:
            out = self._answer(prepared(x, self.size, self._mean, self._std))
        except Exception as error:
            said = named(error, x, self._mean, self.model)
            if said is None:
                raise
            raise ModelError(said) from error
        if not (isinstance(out, Tensor) and out.dim() == 2 and out.is_floating_point()):
            raise ModelError(_describe_output(out))
        if out.shape[0] != x.shape[0] or out.shape[1] < 2:
            raise ModelError(
                f"model output: expected logits (N, C) with N = {x.shape[0]} and C >= 2, got {tuple(out.shape)}"
                + (_ONE_LOGIT if out.shape[1] == 1 else "")
            )
        out = out.float()
        if not torch.is_grad_enabled():  # models that call autograd turn gradients on for themselves
            out = out.detach()
        return out.clamp_min(_TINY).log() if self.probabilities else out

    def _answer(self, x: Tensor) -> Any:
        """What the model returns. One that writes into its input gets a copy of it, as in the first pass, which tells."""
        if self._overwrites is not False:
            x = x.clone()
        before = None if x.is_inference() else x._version  # inference tensors do not tell
        states = States(self.device) if self._draws is None else None
        with callers_device():
            out = self.model(x)
        if states is not None:
            self._draws = states.moved()
        if before is not None and self._overwrites is None:
            self._overwrites = x._version > before
        return out

    @property
    def overwrites(self) -> bool:
        """Whether the model writes into its input, as its first pass has told."""
        return bool(self._overwrites)

    @property
    def draws_from_all(self) -> bool:
        """Whether the model draws from the global generators, or seeds them, as its first pass has told."""
        return bool(self._draws)

    def sparing_randomness(self) -> AbstractContextManager[None]:
        """To be in for the whole of what a caller asked for: however the model draws, the caller's generators are as they were."""
        return spared(self.device, lambda: self.draws_from_all)

    def passing(self) -> AbstractContextManager[None]:
        """To be in for a pass of a search: it is quickest so, and off by rounding from what the model alone answers."""
        return convolutions.searching() if self.device.type == "cpu" else nullcontext()

    def searcher(self) -> Self:
        """The target that attacks are to ask: itself, unless judging takes more than searching."""
        return self

    @property
    def retraceable(self) -> Target:
        """What to ask where one pass is to go backward several times: itself, unless it is a copy that cannot."""
        return self if self._retraceable is None else self._retraceable

    def as_module(self) -> nn.Module:
        """The model as a module of inputs in bounds: itself, or behind the scaling and normalisation.

        Raises:
            InputError: a target that is more than that.
        """
        if type(self).logits is not Target.logits:
            raise InputError(
                f"model: {type(self).__name__} is for attacks; give the module or a plain Target"
            )
        if self.normalize is None and self.size is None:
            return self.model
        mean, std = read_moments(self.normalize, torch.device("cpu"))
        return Behind(self.model, mean, std, self.size)

    def twin(self, model: nn.Module) -> Self:
        """A target like this one around another module, which is put in eval mode and frozen for good."""
        twin = copy.copy(self)
        twin.model = model.eval().requires_grad_(False)
        twin._uses, twin.replay = {}, None
        return twin


def check_given(target: Target, normalize: Normalization | None, bounds: tuple[float, float] | None) -> None:
    """Raise InputError for what is given beside a Target that has its own."""
    if normalize is not None:
        raise InputError("normalize: the model is a Target, which has its own; give it there")
    if bounds is not None and pair_of_bounds(bounds) != tuple(target.bounds):
        raise InputError(
            f"bounds: the model is a Target, which has its own, {target.bounds}, got {bounds}; give them there"
        )


def in_parts(rows: Tensor, size: int) -> Sequence[Tensor]:
    """`rows` ((N, ...)) in parts of at most `size`: none where there are no rows, which many a model cannot take."""
    return rows.split(size) if len(rows) else ()


@contextmanager
def _switchable(model: nn.Module) -> Iterator[None]:
    """Within it exported programs, which refuse train() and eval(), take them: they compute the same in either mode."""
    programs = [module for module in model.modules() if isinstance(module, fx.GraphModule)]
    refusals = [
        (module, name, vars(module).pop(name))
        for module in programs
        for name in ("train", "eval")
        if name in vars(module)
    ]
    try:
        yield
    finally:
        for module, name, refusal in refusals:
            vars(module)[name] = refusal


def _train_again(model: nn.Module, training: list[nn.Module]) -> None:
    """Back to training mode, in those of its modules that were in it."""
    before = {id(module) for module in training}
    if id(model) in before:
        with _switchable(model):
            model.train()
    for module in model.modules():
        if hasattr(module, "training"):
            module.training = id(module) in before


def _describe_output(out: object) -> str:
    got = f"{tuple(out.shape)} {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
    advice = "return only the logits from forward, or wrap the model in a module that does"
    return f"model output: expected one float tensor of logits (N, C), got {got}; {advice}"
