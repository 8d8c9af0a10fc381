"""What can be learnt of the model on a few samples, before the passes of the attacks are spent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from robust import copies
from robust.attacks.geometry import random_start
from robust.diagnose import checks, roughness, slope
from robust.diagnose.checks import Check, Finding
from robust.eot import EOT
from robust.errors import ModelError, RobustError
from robust.failures import out_of_memory
from robust.losses import ce, likeliest_other, margin, spread
from robust.rng import Streams
from robust.target import Target
from robust.threat import Threat

PREFLIGHT_SAMPLES: Final = 32
_AGAIN: Final = 8  # of them, each time more that they are asked about
_SAME: Final = 1e-4  # of the logits' spread
_COMPANY: Final = 1e-3  # of the logits' spread
_ROUNDINGS: Final = 8  # of the last place, one after another
_SHARE: Final = 0.05  # of the few samples that must show a flaw
_DEAD_SHARE: Final = 0.15  # nets trained for verified bounds are constant around some 5 %
_NOISE: Final = 1e-3  # of the box
_SQUASHED: Final = 0.01  # of the other one's slope; honest models measured from .03
_NORMED: Final = 0.01  # a spread of logsumexp: logarithms of probabilities, whose highest is near 0
_SAME_SLOPE: Final = 0.1  # of the gradient's norm
_NEAR: Final = 0.01  # of an end of [0, 1]
# What is put in autograd's place is taken out again in the reverse order.
_WATCHING: Final = threading.RLock()
_VANISHED, _VANISHED_SHARE = 1e-30, 0.25  # of the margin's gradient; of the few samples


@dataclass
class Preflight:
    """What was learnt of the model, and at what cost in rows passed."""

    findings: list[Finding] = field(default_factory=list)
    probabilities: bool = False
    differentiable: bool = True
    blocked: bool = False  # gradients end at the faces of the box and begin just inside
    forwards: int = 0
    backwards: int = 0
    logits: Tensor | None = None  # of the few samples, where the same input gives the same again

    @property
    def randomized(self) -> bool:
        """Whether the same input gave two answers."""
        return any(finding.check == checks.RANDOMIZED.name for finding in self.findings)


def preflight(
    target: Target, x: Tensor, y: Tensor, threat: Threat | None = None, *, highest: int | None = None
) -> Preflight:
    """Look at the model on a few samples ((N, ...), (N,), on the target's device, target entered).

    Args:
        threat: gradients are looked at on its scale too; None for the finest alone.
        highest: label of all the data, where these are a few of more.

    Raises:
        ModelError: the output is not logits (N, C), or a label is not among the C classes.
    """
    declared = target.probabilities and not target.found_probabilities
    target.probabilities = declared  # what one evaluation found the next one finds again
    try:
        return _looked(target, x, y, threat, highest)
    finally:
        target.probabilities = declared or target.found_probabilities


def _looked(target: Target, x: Tensor, y: Tensor, threat: Threat | None, highest: int | None) -> Preflight:
    seen = Preflight()
    with torch.no_grad(), _autograd_calls() as calls:
        logits = _ask(target, x, seen)
    highest = int(y.max()) if highest is None else highest
    if highest >= logits.shape[1]:
        raise ModelError(
            f"model output: {logits.shape[1]} classes, but the labels go up to {highest}; expected labels in "
            f"[0, {logits.shape[1]}): give the model that was trained for this data"
        )
    if calls:
        seen.findings.append(checks.DYNAMIC.finding("the model optimises at inference"))
    if _gives_probabilities(target.inner.logits(x) if isinstance(target, EOT) else logits):
        seen.probabilities = True
        seen.findings.append(checks.PROBABILITIES.finding("the model returns probabilities"))
    _repeatability(target, x, logits, seen)
    if not seen.randomized:
        seen.logits = logits
        _company(target, x, logits, seen)
        if target.randomized:
            _steadiness(target, x, y, logits, seen)
        else:
            _moved(_stability, target, x, y, logits, seen)
    gradient = _gradients(target, x, y, logits, seen)
    if gradient is not None and not seen.randomized:
        steady = target.randomized or _steady(target, x, y, gradient, seen)
        still = target.still() if isinstance(target, EOT) else target
        if still is not target:
            _moved(_tracked, still, x, y, None, seen)
        if steady:
            _moved(_slopes, still, x, y, threat, seen)
        _moved(_inside, still, x, y, (threat, _passed(gradient.abs().amax(1))), seen)
        _squashed(still, x, y, seen)
        _moved(_jumps, still, x, y, None, seen)
        if still is target:
            _moved(_blocked, target, x, y, gradient, seen)
    return seen


def _moved(look: Callable[[Target, Tensor, Tensor, Any, Preflight], None], *asked: Any) -> None:
    """A look at moved samples. The model answered for the samples themselves: if it refuses these, attacks will tell whose."""
    seen: Preflight = asked[-1]
    try:
        look(*asked)
    except Exception as error:
        if out_of_memory(error):
            raise
        if checks.CRASH.name not in {finding.check for finding in seen.findings}:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            seen.findings.append(
                checks.CRASH.finding(f"the model fails on slightly moved samples ({reason})")
            )


def _ask(target: Target, x: Tensor, seen: Preflight) -> Tensor:
    seen.forwards += len(x) * target.draws
    return target.logits(x)


def _gives_probabilities(logits: Tensor) -> bool:
    """A softmax's outputs, or a sigmoid's: within [0, 1], adding up to 1 or reaching both ends."""
    in_unit = bool(((logits >= 0) & (logits <= 1)).all())
    of_softmax = bool(((logits.sum(1) - 1).abs() <= 1e-5).all())
    return in_unit and (of_softmax or bool((logits.amin() < _NEAR) & (logits.amax() > 1 - _NEAR)))


def _drift(logits: Tensor, reference: Tensor) -> Tensor:
    """Largest change of a logit in units of the reference's spread: -> (N,)."""
    return (logits - reference).abs().amax(1) / spread(reference)


@torch.no_grad()
def _repeatability(target: Target, x: Tensor, logits: Tensor, seen: Preflight) -> None:
    """Do the same inputs give the same logits again? A few are asked about more often: a model may draw once a batch."""
    few = [_ask(target, x[:_AGAIN], seen) for _ in range(4)]
    pairs = [(_ask(target, x, seen), logits), *((again, few[0]) for again in few[1:])]
    moved = max(float(_drift(again, before).max()) for again, before in pairs)
    flipped = any(bool((again.argmax(1) != before.argmax(1)).any()) for again, before in pairs)
    if flipped or moved > _SAME:
        seen.findings.append(
            checks.RANDOMIZED.finding(f"logits of the same input move by up to {moved:.2g} of their spread")
        )


@torch.no_grad()
def _company(target: Target, x: Tensor, logits: Tensor, seen: Preflight) -> None:
    """Does a sample get the same logits alone as in a batch?"""
    few = min(4, len(x))
    alone = torch.cat([_ask(target, x[i : i + 1], seen) for i in range(few)])
    flipped = _ask(target, x.flip(0), seen).flip(0)
    found = in_company(target, torch.cat([alone, flipped]), torch.cat([logits[:few], logits]))
    seen.findings += [found] if found else []


def rounding(target: Target, logits: Tensor) -> float:
    """How far logits may be off by rounding alone, of their spread, in the type that the model computes in.

    That is told by its parameters, or by logits that are all of a coarser type.
    """
    types = {parameter.dtype for parameter in target.model.parameters()}
    for coarse in (torch.bfloat16, torch.float16):
        if coarse in types or logits.equal(logits.to(coarse).to(logits.dtype)):
            return _ROUNDINGS * torch.finfo(coarse).eps
    return _ROUNDINGS * torch.finfo(torch.float32).eps


def in_company(target: Target, logits: Tensor, before: Tensor) -> Finding | None:
    """What is to be said of the same samples' logits in two batches, (N, C) each."""
    return _told_apart(checks.BATCH_DEPENDENT, target, logits, before, "with its batch")


def afterwards(target: Target, logits: Tensor, before: Tensor) -> Finding | None:
    """What is to be said of the same samples' logits before the attacks and after them, (N, C) each."""
    return _told_apart(checks.STATEFUL, target, logits, before, "while the model is attacked")


def _told_apart(check: Check, target: Target, logits: Tensor, before: Tensor, when: str) -> Finding | None:
    drift = float(_drift(logits, before).max())
    if not drift > max(_COMPANY, rounding(target, before)):
        return None
    return check.finding(f"a sample's logits move by {drift:.2g} of their spread {when}")


@torch.no_grad()
def _stability(target: Target, x: Tensor, y: Tensor, logits: Tensor, seen: Preflight) -> None:
    """Does the margin move smoothly?"""
    low, high = target.bounds
    before = margin(logits, y)
    moves = []
    for draw in range(2):
        streams = Streams(0, torch.arange(len(x), device=x.device), ("stability", draw))
        noise = streams.uniform(x.shape[1:], -_NOISE, _NOISE) * (high - low)
        after = margin(_ask(target, (x + noise).clamp(low, high), seen), y)
        moves.append(((after - before).abs() / before.abs().clamp_min(1e-12)).clamp_max(1.0))
    mean = float(torch.stack(moves).median(1).values.mean()) if len(x) > 1 else 0.0
    if mean > 0.1:
        seen.findings.append(
            checks.UNSTABLE_LOSS.finding(
                f"noise of {_NOISE:g} of the box moves half of the margins by > {mean:.0%}"
            )
        )


@torch.no_grad()
def _steadiness(target: Target, x: Tensor, y: Tensor, logits: Tensor, seen: Preflight) -> None:
    """Do other draws of a randomised model give the same classes?"""
    other = target.searcher()
    changed = float((_ask(other, x, seen).argmax(1) != logits.argmax(1)).float().mean())
    if changed > _SHARE:
        seen.findings.append(
            checks.TOO_FEW_DRAWS.finding(
                f"{changed:.0%} of the predictions over {target.draws} draws differ from those over {other.draws}"
            )
        )


def _gradients(target: Target, x: Tensor, y: Tensor, logits: Tensor, seen: Preflight) -> Tensor | None:
    """Do gradients reach the input, are they the deployed model's, and does cross-entropy keep them?

    Returns:
        the margin's gradient, (N, D); None where none reaches the input.
    """
    gradients = []
    for loss in (ce, margin):
        point = x.detach().clone().requires_grad_()
        tracked, gradient, reason = logits, None, "the output does not depend on the input in autograd's eyes"
        try:
            with torch.enable_grad():
                tracked = _ask(target, point, seen)
                value = loss(tracked, y).sum()
            gradient = torch.autograd.grad(value, point, allow_unused=True)[0]
        except Exception as error:  # whatever a backward of the model's own raises
            if isinstance(error, RobustError) or out_of_memory(error):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
        seen.backwards += len(x) * target.draws
        if gradient is None:
            seen.differentiable = False
            seen.findings.append(checks.DETACHED.finding(f"no gradient reaches the input ({reason})"))
            return None
        gradients.append(gradient.flatten(1))
    if not target.randomized:
        _deployed(target, tracked.detach(), logits, seen)
    of_ce, of_margin = (gradient.abs().amax(1) for gradient in gradients)
    dead = float((~_passed(of_margin)).float().mean())
    lost = (of_ce <= _VANISHED * of_margin) & (of_margin > 0) & of_margin.isfinite()
    vanished = float(lost.float().mean())
    if dead > _DEAD_SHARE:
        seen.findings.append(
            checks.ZERO_GRADIENT.finding(f"the gradient is zero or not finite for {dead:.0%} of the samples")
        )
    if vanished > _VANISHED_SHARE:
        seen.findings.append(
            checks.LOGIT_SCALE.finding(
                f"cross-entropy has no gradient for {vanished:.0%} of the samples where the margin has one"
            )
        )
    return gradients[1]


def _steady(target: Target, x: Tensor, y: Tensor, gradient: Tensor, seen: Preflight) -> bool:
    """Is the margin's gradient ((N, D) at x) the same a second time, as the logits are?"""
    again = _gradient_of(target, x, lambda logits: margin(logits, y), seen)
    moved, size = (g.double().nan_to_num(0, 0, 0).norm(dim=1) for g in (again - gradient, gradient))
    share = float((moved / size.clamp_min(1e-300)).clamp_max(1.0).mean())
    if share <= _SAME_SLOPE:
        return True
    seen.findings.append(
        checks.GRADIENT_MODEL.finding(f"the gradient of the same input differs by {share:.0%} the next time")
    )
    return False


def _passed(largest: Tensor) -> Tensor:
    """Of the largest slopes, (N,), which tell of a gradient: not 0, infinity or NaN."""
    return (largest > 0) & largest.isfinite()


def _tracked(target: Target, x: Tensor, y: Tensor, _: None, seen: Preflight) -> None:
    """Are the logits with gradients enabled those without, draw for draw?"""
    with torch.no_grad():
        plain = _ask(target, x, seen)
    with torch.enable_grad():
        tracked = _ask(target, x.detach().clone().requires_grad_(), seen).detach()
    _deployed(target, tracked, plain, seen)


def _slopes(target: Target, x: Tensor, y: Tensor, threat: Threat | None, seen: Preflight) -> None:
    """Does the margin rise along its gradient as steeply as random directions say that it can?"""
    found = slope.uphill(target, x, y, threat)
    seen.forwards += found.forwards * target.draws
    seen.backwards += found.backwards * target.draws
    if found.share < slope.LEAST:
        seen.findings.append(
            checks.GRADIENT_MODEL.finding(
                f"moving pixels by {found.reach:.2g} along its gradient, the margin rises at {found.share:.0%} of its steepest slope"
            )
        )
        return
    if found.excess > slope.MOST:
        seen.findings.append(
            checks.PARTIAL_GRADIENT.finding(
                f"the margin rises {found.excess:.2g} times as fast as its gradient says"
            )
        )
    elif found.alike < slope.ALIKE:
        seen.findings.append(
            checks.PARTIAL_GRADIENT.finding(
                f"slopes along random directions are not what the gradient says (cosine {found.alike:.2f})"
            )
        )
    if found.lasting < slope.LASTING:
        seen.findings.append(
            checks.SHATTERED_GRADIENT.finding(
                f"over the threat's scale the margin rises along its gradient by {max(found.lasting, 0):.0%} of what it does nearby"
            )
        )
    elif not (
        seen.probabilities or target.probabilities
    ):  # those saturate, and their logarithms jump where they do
        _rough(target, x, y, threat, seen)


def _rough(target: Target, x: Tensor, y: Tensor, threat: Threat | None, seen: Preflight) -> None:
    """Does the margin move evenly along its gradient, or in steps and jumps?"""
    typical = target.logits(x[:1]).detach() if seen.logits is None else seen.logits
    found = roughness.rough(target, x, y, threat, rounding(target, typical))
    seen.forwards += found.forwards * target.draws
    seen.backwards += found.backwards * target.draws
    if found.told:
        seen.findings.append(
            checks.ROUGH_SURFACE.finding(
                f"moving pixels by up to {found.reach:.2g} along its gradient, the margin goes in steps or waves: its third differences "
                f"are {found.share:.0%} of what it moves"
            )
        )


def _inside(
    target: Target, x: Tensor, y: Tensor, given: tuple[Threat | None, Tensor], seen: Preflight
) -> None:
    """Is there a gradient within the threat, too, where there is one at the samples ((N,), of threat and that)?

    Those without at the samples were counted there: around the same ones a net trained for verified bounds is constant.
    """
    threat, alive = given
    told = {finding.check for finding in seen.findings}
    if threat is None or threat.norm not in ("linf", "l2", "l1") or checks.ZERO_GRADIENT.name in told:
        return
    x, y, alive = x[: slope.SAMPLES], y[: slope.SAMPLES], alive[: slope.SAMPLES]
    streams = Streams(0, torch.arange(len(x), device=x.device), ("inside",))
    gradient = _gradient_of(target, random_start(x, threat, streams), lambda logits: margin(logits, y), seen)
    dead = float((alive & ~_passed(gradient.abs().amax(1))).float().mean())
    if dead > _DEAD_SHARE:
        seen.findings.append(
            checks.ZERO_GRADIENT.finding(
                f"within the threat the gradient is zero or not finite for {dead:.0%} of the samples, and not at them"
            )
        )


def _squashed(target: Target, x: Tensor, y: Tensor, seen: Preflight) -> None:
    """Do the label's own logit and the best other both move, or is one of them at the end of what it can be?"""
    x, y = x[: slope.SAMPLES], y[: slope.SAMPLES]
    with torch.no_grad():
        logits = _ask(target, x, seen)
    right = logits.argmax(1) == y
    # A net of two classes may give 0 for one of them.
    if seen.probabilities or target.probabilities or logits.shape[1] < 3 or int(right.sum()) < 2:
        return
    own, other = (
        _gradient_of(target, x, partial(torch.gather, dim=1, index=index), seen).norm(dim=1)
        for index in (y[:, None], likeliest_other(logits, y))
    )
    held = logits[right]
    if float(held.logsumexp(1).std()) <= _NORMED or not bool(held.amax(1).any()):
        return  # logarithms of probabilities, or what logits are less than the highest: margins are as they were
    for whose, flat in (("label's own", own < _SQUASHED * other), ("best other", other < _SQUASHED * own)):
        share = float(flat[right].float().mean())
        if share > 0.5:
            seen.findings.append(
                checks.FLAT_MARGINS.finding(f"the {whose} logit hardly moves for {share:.0%} of the samples")
            )
            return


def _jumps(target: Target, x: Tensor, y: Tensor, _: None, seen: Preflight) -> None:
    """Does the margin come to 0 at a boundary, or jump over it?"""
    if checks.FLAT_MARGINS.name in {finding.check for finding in seen.findings}:
        return
    x, y = x[: slope.SAMPLES], y[: slope.SAMPLES]
    share, forwards = roughness.jump(target, x, y)
    seen.forwards += forwards * target.draws
    if share > roughness.JUMP:
        seen.findings.append(
            checks.FLAT_MARGINS.finding(
                f"at a boundary the margin jumps by {share:.0%} of what it is at the samples"
            )
        )


def _gradient_of(target: Target, x: Tensor, height: Callable[[Tensor], Tensor], seen: Preflight) -> Tensor:
    """Gradient at x of a height of the logits, summed over the samples: -> (N, D)."""
    point = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = height(_ask(target, point, seen)).sum()
    seen.backwards += len(x) * target.draws
    return torch.autograd.grad(value, point)[0].flatten(1)


def _blocked(target: Target, x: Tensor, y: Tensor, gradient: Tensor, seen: Preflight) -> None:
    """Does the margin's gradient ((N, D) at x) change from the faces of the box to just inside, as behind a clamp?"""
    inward = copies.off_faces(x, target.bounds)
    if type(target).logits is not Target.logits or bool((inward == x).all()):
        return
    inside = _gradient_of(target, inward, lambda logits: margin(logits, y), seen)
    here, there = ((slopes != 0) & slopes.isfinite() for slopes in (gradient, inside))
    freed = (there.sum(1) - here.sum(1)) / there.sum(1).clamp_min(1)  # ties only move from pixel to pixel
    seen.blocked = float((freed > _SHARE).float().mean()) > _SHARE


def _deployed(target: Target, tracked: Tensor, logits: Tensor, seen: Preflight) -> None:
    each, rounded = _drift(tracked, logits), rounding(target, logits)
    drift = float(each.max())
    flips = int(((tracked.argmax(1) != logits.argmax(1)) & (each > rounded)).sum())
    if (drift > max(_COMPANY, rounded) or flips) and not seen.randomized:
        seen.findings.append(
            checks.GRADIENT_MODEL.finding(
                f"with gradients enabled logits move by {drift:.2g} of their spread and {flips} predictions change"
            )
        )


@contextmanager
def _autograd_calls() -> Iterator[list[str]]:
    """Collect calls into autograd that this thread makes while the context is open; another thread waits to open its own."""
    calls: list[str] = []
    mine = threading.get_ident()
    with _WATCHING:
        grad, backward = torch.autograd.grad, torch.autograd.backward

        def noting(name: str, function: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                if threading.get_ident() == mine:
                    calls.append(name)
                return function(*args, **kwargs)

            return call

        torch.autograd.grad, torch.autograd.backward = noting("grad", grad), noting("backward", backward)
        try:
            yield calls
        finally:
            torch.autograd.grad, torch.autograd.backward = grad, backward
