"""The model under test: frozen while in use, handed back as it was."""

from __future__ import annotations

import copy
import functools
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from robust import convolutions
from robust.default_device import callers_device
from robust.errors import InputError, ModelError
from robust.failures import named, out_of_memory
from robust.loans import Loan, lent
from robust.pooling import quick_pooling
from robust.reentrant import differentiable_checkpoints
from robust.tf32 import without_tf32
from robust.threat import pair_of_bounds

if TYPE_CHECKING:
    from robust.sources.preprocess import Preprocessing

Normalization = tuple[float | Sequence[float], float | Sequence[float]]
_CANDIDATE_BATCHES = (16, 32, 64, 128, 256, 512, 1024, 2048)
_SLOW_ROW, _VERY_SLOW_ROW = 5e-4, 5e-3  # seconds
_SLOW_ROW_BATCH = 32  # enough for such rows,
_SLOW_ROW_SHARE = 8  # or one of so many parts of the samples
_PAYS, _AS_GOOD = 0.95, 1.02  # of the least cost of a row so far: what a larger batch gains, what it may lose
_BETWEEN = 3e-4  # seconds that an attack takes between two passes
_SHORT = 0.01  # seconds
_FINE = 1e-5  # seconds
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
        self.model = model
        self.bounds = bounds
        self.device = resolve_device(device)
        self.normalize = normalize
        self.probabilities = probabilities
        self.found_probabilities = False  # by an evaluation, which later ones are to say, too
        self.size, self.preprocessing = size, preprocessing
        self._mean, self._std = _moments(normalize, self.device)
        self._tf32 = tf32
        self._retraceable: Target | None = None
        self._overwrites: bool | None = None  # whether the model writes into its input, once a pass has told
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
            _wake_autograd(self.device)

    def logits(self, x: Tensor) -> Tensor:
        """Logits of inputs in bounds: (N, ...) -> (N, C), float32.

        Raises:
            ModelError: the model returns anything but a float tensor (N, C >= 2), or, within `naming_failures`,
                fails on the input. Elsewhere whatever it raises is passed on.
        """
        try:
            out = self._answer(_prepared(x, self.size, self._mean, self._std))
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
        return out.clamp_min(_TINY).log() if self.probabilities else out

    def _answer(self, x: Tensor) -> Any:
        """What the model returns. One that writes into its input gets a copy of it, as in the first pass, which tells."""
        if self._overwrites is not False:
            x = x.clone()
        before = None if x.is_inference() else x._version  # inference tensors do not tell
        with callers_device():
            out = self.model(x)
        if before is not None and self._overwrites is None:
            self._overwrites = x._version > before
        return out

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
        mean, std = _moments(self.normalize, torch.device("cpu"))
        return Behind(self.model, mean, std, self.size)

    def twin(self, model: nn.Module) -> Self:
        """A target like this one around another module, which is put in eval mode and frozen for good."""
        twin = copy.copy(self)
        twin.model = model.eval().requires_grad_(False)
        twin._uses, twin.replay = {}, None
        return twin

    def pick_micro_batch(self, rows: Callable[[int], Tensor], limit: int) -> int:
        """The batch size with the least measured time a sample, forward and input gradient.

        Args:
            rows: gives that many samples on the device.
            limit: never more than this.

        Of sizes that are about as good the largest: what is left of a wave then fills fewer batches. Sizes grow while they
        pay (by 5 % at least; where passes are short, until two in turn did not) and memory lasts. Where a row costs
        about a millisecond, larger batches gain little and measuring them costs seconds: sizes grow with the samples.
        """
        best, least, vain = 1, float("inf"), 0
        sizes = [size for size in _CANDIDATE_BATCHES if size < limit]
        for size in [*sizes, min(limit, _CANDIDATE_BATCHES[-1])]:
            try:
                seconds = self._cost(rows(size))
            except Exception as error:
                if not out_of_memory(error):
                    raise
                break
            cost = (seconds + _BETWEEN) / size
            if cost <= _AS_GOOD * least:
                best = size
            vain = 0 if cost <= _PAYS * least else vain + 1
            least = min(least, cost)
            if vain and (vain == 2 or seconds > _SHORT):
                break
            if cost > _SLOW_ROW and size >= _enough(cost, limit):
                break
        return best

    def _cost(self, x: Tensor) -> float:
        """Seconds for a forward and input-gradient pass, the best of three (of two where it takes long)."""
        seconds: list[float] = []
        while len(seconds) < 2 or (len(seconds) < 3 and seconds[-1] < _SHORT):
            seconds.append(self.timed(lambda: self.both_ways(x)))
        return min(seconds)

    def timed(self, call: Callable[[], object]) -> float:
        """Seconds that a call takes on the device.

        Of the processor's time where one thread computes: on a busy machine, such as a CI runner, the wall clock counts what
        others do meanwhile, and the longer a call the more.
        """
        clock = time.process_time if self.device.type == "cpu" and _one_thread() else time.perf_counter
        self.synchronize()
        start = clock()
        call()
        self.synchronize()
        return clock() - start

    def both_ways(self, x: Tensor) -> None:
        """A pass to be timed: forward and backward, or forward alone where no gradient can be had."""
        point = x.detach().requires_grad_()
        try:
            logits = self.logits(point)
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), point, allow_unused=True)
        except Exception as error:
            if out_of_memory(error):
                raise
            with torch.no_grad():
                self.logits(x)

    def synchronize(self) -> None:
        """Wait for the device, so that a clock tells the truth."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _enough(cost: float, samples: int) -> int:
    """The largest batch to try where a row costs this much: measuring takes some hundredth of what so many samples take.

    Rows that cost far more are wide or deep, and hold much memory.
    """
    return _SLOW_ROW_BATCH if cost > _VERY_SLOW_ROW else max(_SLOW_ROW_BATCH, samples // _SLOW_ROW_SHARE)


def _one_thread() -> bool:
    """Whether one thread computes, and the processor's time is finely told (it is not on Windows)."""
    return torch.get_num_threads() == 1 and time.get_clock_info("process_time").resolution <= _FINE


class Behind(nn.Module):
    """A model behind what a Target has before it: model((scaled(front(x)) - mean) / std).

    Args:
        model: what sees the result.
        mean, std: (C,) or scalars; None for none.
        size: (height, width) that images are scaled to, differentiably; None for none.
        front: comes first of all; None for nothing.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        size: tuple[int, int] | None = None,
        *,
        front: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.front, self.model, self.size = front, model, size
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.front is None else self.front(x)
        out: Tensor = self.model(_prepared(x, self.size, self.mean, self.std))
        return out


def bare(module: nn.Module) -> nn.Module:
    """The model inside what `Target.as_module` gave; any other module as it is."""
    return module.model if isinstance(module, Behind) and module.front is None else module


def _prepared(x: Tensor, size: tuple[int, int] | None, mean: Tensor | None, std: Tensor | None) -> Tensor:
    if size is not None and x.dim() == 4 and x.shape[2:] != size:
        x = interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
    if mean is not None and std is not None:
        shape = (-1, *([1] * (x.dim() - 2))) if mean.numel() > 1 else ()
        x = (x - mean.view(shape)) / std.view(shape)
    return x


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


def _train_again(model: nn.Module, training: list[nn.Module]) -> None:
    """Back to training mode, in those of its modules that were in it."""
    before = {id(module) for module in training}
    if id(model) in before:
        model.train()
    for module in model.modules():
        if hasattr(module, "training"):
            module.training = id(module) in before


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that is meant by "auto" (CUDA where there is one), or any torch device.

    Raises:
        InputError: another text, or CUDA where there is none.
    """
    if device == "auto":
        return (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device: expected 'auto', 'cpu' or 'cuda[:N]', got {device!r}") from error
    if resolved.type not in ("cpu", "cuda"):
        raise InputError(
            f"device: expected 'auto', 'cpu' or 'cuda[:N]', got {device!r}; others are not supported"
        )
    if resolved.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(
                f"device: {device!r} asked for, but this torch sees no CUDA device; use 'cpu' or 'auto'"
            )
        if str(resolved) == "cuda":
            resolved = torch.device("cuda", torch.cuda.current_device())
    return resolved


@functools.cache
def _wake_autograd(device: torch.device) -> None:
    """Have autograd's thread for a GPU begin with a plain operation: after cuBLAS torch warns that there was no context."""
    with torch.enable_grad():
        x = torch.zeros(1, device=device, requires_grad=True)
        torch.autograd.grad(x.square().sum(), x)


def _moments(normalize: Normalization | None, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    if normalize is None:
        return None, None
    try:
        mean, std = (torch.as_tensor(part, dtype=torch.float32, device=device) for part in normalize)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"normalize: expected (mean, std), numbers or one per channel, got {normalize!r}"
        ) from error
    finite = bool(mean.isfinite().all() and std.isfinite().all())
    if mean.numel() != std.numel() or not finite or not bool((std > 0).all()):
        raise InputError(
            f"normalize: expected finite mean and std of equal length with std > 0, got {normalize!r}"
        )
    return mean, std


def _describe_output(out: object) -> str:
    got = f"{tuple(out.shape)} {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
    advice = "return only the logits from forward, or wrap the model in a module that does"
    return f"model output: expected one float tensor of logits (N, C), got {got}; {advice}"
