"""The search's own copy of the model: rearranged to run faster, and checked to compute the same.

Searching may use whatever is quickest; judging stays with the user's module in float32 (`audit`). What
wins depends on the model and the machine, so it is measured, not believed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from robust import copies
from robust.failures import out_of_memory
from robust.losses import likeliest_other, margin
from robust.target import Target
from robust.timing import timed

PLAIN: Final = "plain"
GRAPHS: Final = "graphs"
_WORTH: Final = 0.95  # a copy must take less than this share of the time of what is at hand
_ROWS_WORTH: Final = 64  # samples: looking for copies costs about two steps of as many
_PASS_WORTH: Final = {"cpu": 0.05, "cuda": 0.002}  # seconds that a pass over all samples must take
_AGREE: Final = 1e-3  # of the logits' spread, and of the gradient's norm
_HALF_AGREES: Final = 5e-3, 0.2  # the same of a copy in two bytes a value
_ROUNDING: Final = 1e-5  # what sums in another order come to, of the logits' spread
_PROBE_ROWS: Final = 8
_FILLING: Final = 128  # rows that keep a GPU busy
_FEW: Final = 32  # rows that do not
_DOUBT: Final = 4  # times the difference seen


def fastest(target: Target, x: Tensor, y: Tensor, rows: int) -> tuple[Target, str]:
    """The target to search with, and what was done to it, such as "plain" or "folded, channels_last".

    A copy is taken only where it is faster by measurement and gives the same logits and gradients as
    the model itself. The copy is in eval mode and frozen. Few samples, or a tiny model, are searched as they are:
    looking for copies would cost more than they save. On a GPU copies in float16 or bfloat16 are tried too, and
    recorded graphs; what rounds more coarsely says how far its logits may be off (`Target.blur`).

    Args:
        target: entered; deterministic and differentiable.
        x, y: a few samples and labels on its device, (N, ...) and (N,).
        rows: samples that are to be searched.
    """
    x, y = x[:_PROBE_ROWS], y[:_PROBE_ROWS]
    best, name = target, PLAIN
    if rows < _ROWS_WORTH:
        return best, name
    cuda = target.device.type == "cuda"
    many = _times(x, y, _FILLING) if cuda else (x, y)
    try:
        plain = _seconds(target, *many)
    except Exception as error:
        if not out_of_memory(error):
            raise
        return best, name
    if rows * plain / len(many[0]) < _PASS_WORTH["cuda" if cuda else "cpu"]:
        return best, name
    reference, least = _look(target, x, y), _WORTH * plain
    for changes in _changes(target.model, x):
        for label, change in changes.items():
            try:
                twin = _checked(target.twin(change()), reference, x, y)
            except Exception:  # whatever a rearranged model fails on, the plain one remains
                continue
            if twin is not None and (seconds := _seconds(twin, *many)) < least:
                best, name, least = twin, label, seconds
        if best is not target:
            break
    if cuda and (replayed := _replayed(best, reference, x, y)) is not None:
        return replayed, GRAPHS if name == PLAIN else f"{name}, {GRAPHS}"
    return best, name


def half(target: Target, x: Tensor, y: Tensor) -> Target:
    """A copy that searches in bfloat16; its claims are confirmed in float32 by the oracle."""
    twin = target.twin(copies.Cast(target.model, torch.bfloat16))
    twin.blur = _DOUBT * _apart(_look(target, x, y), _look(twin, x, y))[0]
    return twin


def recorded(target: Target, x: Tensor) -> Target:
    """A twin that answers by recorded graphs of the model as it is, for a judge that is asked about a few points at a time.

    The target itself where the model cannot be recorded. See `fastest` for the arguments.
    """
    try:
        twin = copies.around(target, copies.Graphed(target.as_module().to(target.device), x, backward=False))
        with torch.no_grad():
            said, seen = (of.logits(x[:_PROBE_ROWS]) for of in (target, twin))
    except Exception:
        return target
    spread = (said.amax(1) - said.amin(1)).clamp_min(1e-12)
    return twin if float(((seen - said).abs().amax(1) / spread).max()) <= _ROUNDING else target


def inward(target: Target) -> Target:
    """A copy that takes gradients a millionth of the box inside its faces; claims are confirmed at the point itself.

    A clamp to the box, as models often begin or end their preprocessing with, passes no gradient at the faces: every
    black or white pixel would stand still, though it can be moved.
    """
    twin = copies.around(target, copies.Inward(target.as_module().to(target.device), target.bounds))
    if target.retraceable is not target:
        twin._retraceable = inward(target.retraceable)
    return twin


Changes = dict[str, Callable[[], nn.Module]]


def _changes(model: nn.Module, x: Tensor) -> list[Changes]:
    """Copies of this model that are worth a try; the later ones where none of the earlier will do."""
    images = x.dim() == 4 and any(isinstance(m, nn.Conv2d) for m in model.modules())
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    fold = functools.cache(lambda: copies.folded(model))
    folds: Changes = {"folded": fold} if norms else {}
    others: Changes = {"channels_last": lambda: copies.channels_last(model)} if images else {}
    if images and norms:
        folds["folded, channels_last"] = lambda: copies.channels_last(fold())
    if x.device.type != "cuda":
        return [folds | others]
    # There two bytes a value gain most; the gradients of float16 are finer, but it holds nothing over 65,504. A first
    # pass of each takes long: what is not folded is tried where folding fails.
    others[""] = lambda: model
    groups = [group for group in (folds, others) if group]
    return [_cast(group, dtype) for dtype in (torch.float16, torch.bfloat16) for group in groups]


def _cast(changes: Changes, dtype: torch.dtype) -> Changes:
    name = str(dtype).removeprefix("torch.")

    def cast(change: Callable[[], nn.Module]) -> nn.Module:
        return copies.Cast(change(), dtype)

    return {
        f"{label}, {name}" if label else name: functools.partial(cast, change)
        for label, change in changes.items()
    }


def _replayed(target: Target, reference: tuple[Tensor, Tensor], x: Tensor, y: Tensor) -> Target | None:
    """The target as recorded graphs, where that works and makes small batches faster."""
    few = _times(x, y, _FEW)
    try:
        graphs = copies.Graphed(target.as_module().to(target.device), x)
        replaying = copies.around(target, graphs)
        replaying._retraceable = target
        twin = _checked(replaying, reference, x, y)
        if twin is not None and not target.probabilities and _slopes_agree(graphs, reference, x, y):
            twin.replay = graphs.slope
        return twin if twin is not None and _seconds(twin, *few) < _WORTH * _seconds(target, *few) else None
    except Exception:  # not every model can be recorded
        return None


def _slopes_agree(graphs: copies.Graphed, reference: tuple[Tensor, Tensor], x: Tensor, y: Tensor) -> bool:
    """Whether passes that are recorded forward and backward at once compute the same."""
    weights = torch.zeros_like(reference[0]).scatter_(1, likeliest_other(reference[0], y), 1.0)
    seen = graphs.slope(x, weights.scatter_(1, y[:, None], -1.0))
    return seen is not None and _close(*_apart(reference, (seen[2], seen[0])))


def _checked(twin: Target, reference: tuple[Tensor, Tensor], x: Tensor, y: Tensor) -> Target | None:
    """The twin, with what its logits may be off by, or None where it does not compute the same."""
    logits, gradients = _apart(reference, _look(twin, x, y))
    if not (max(logits, gradients) <= _AGREE or (x.device.type == "cuda" and _close(logits, gradients))):
        return None
    if logits > _ROUNDING:
        twin.blur = max(twin.blur, _DOUBT * logits)
    return twin


def _close(logits: float, gradients: float) -> bool:
    """Whether two bytes a value may explain what logits and gradients are apart."""
    return logits <= _HALF_AGREES[0] and gradients <= _HALF_AGREES[1]


def _times(x: Tensor, y: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """So many rows, over and over the same."""
    index = torch.arange(rows, device=x.device) % len(x)
    return x[index], y[index]


def _look(target: Target, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the margin's input gradient."""
    point = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = target.logits(point)
        (gradient,) = torch.autograd.grad(margin(logits, y).sum(), point)
    return logits.detach(), gradient


def _apart(reference: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """How far logits are apart at most, of their spread, and gradients in four of five samples, of their norm."""
    spread = (reference[0].amax(1) - reference[0].amin(1)).clamp_min(1e-12)
    logits = float(((other[0] - reference[0]).abs().amax(1) / spread).max())
    moved = (other[1] - reference[1]).flatten(1).norm(dim=1)
    size = reference[1].flatten(1).norm(dim=1)
    share = torch.where(moved == 0, 0.0, moved / size.clamp_min(1e-30))
    few_flip = float(share.sort().values[int(0.8 * len(share))])  # a ReLU may flip on a tie
    return (logits, few_flip) if logits == logits and few_flip == few_flip else (torch.inf, torch.inf)


def _seconds(target: Target, x: Tensor, y: Tensor) -> float:
    """Of a forward and input-gradient pass, the best of three."""
    return min(timed(target.device, lambda: _look(target, x, y)) for _ in range(3))
