"""The gradients that the model gives on a few samples: are they there, its own, and do they lead anywhere?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor

from robust import copies
from robust.attacks.geometry import random_start
from robust.diagnose import boundary, checks, roughness, scattering, slope
from robust.diagnose.answers import AGAIN, COMPANY, SHARE, Preflight, ask, drift_of, rounding
from robust.errors import RobustError, told
from robust.failures import out_of_memory
from robust.losses import ce, likeliest_other, margin
from robust.rng import Streams
from robust.target import Target
from robust.threat import Threat

_DEAD_SHARE: Final = 0.15  # nets trained for verified bounds are constant around some 5 %
_SQUASHED: Final = 0.01  # of the other one's slope; honest models measured from .03
_NORMED: Final = 0.01  # a spread of logsumexp: logarithms of probabilities, whose highest is near 0
_SAME_SLOPE: Final = 0.1  # of the gradient's norm
_VANISHED, _VANISHED_SHARE = 1e-30, 0.25  # of the margin's gradient; of the few samples


def of_margin(target: Target, x: Tensor, y: Tensor, logits: Tensor, seen: Preflight) -> Tensor | None:
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
                tracked = ask(target, point, seen)
                value = loss(tracked, y).sum()
            gradient = torch.autograd.grad(value, point, allow_unused=True)[0]
        except Exception as error:  # whatever a backward of the model's own raises
            if isinstance(error, RobustError) or out_of_memory(error):
                raise
            reason = told(error)
        seen.backwards += len(x) * target.draws
        if gradient is None:
            seen.differentiable = False
            seen.findings.append(checks.DETACHED.finding(f"no gradient reaches the input ({reason})"))
            return None
        gradients.append(gradient.flatten(1))
    if not target.randomized:
        _deployed(target, tracked.detach(), logits, seen)
    ce_slope, margin_slope = (gradient.abs().amax(1) for gradient in gradients)
    dead = float((~passed(margin_slope)).float().mean())
    lost = (ce_slope <= _VANISHED * margin_slope) & (margin_slope > 0) & margin_slope.isfinite()
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


def steady(target: Target, x: Tensor, y: Tensor, seen: Preflight) -> bool:
    """Is the margin's gradient the same a second time, as the logits are?"""
    x, y = x[:AGAIN], y[:AGAIN]
    gradient, again = (_gradient_of(target, x, lambda logits: margin(logits, y), seen) for _ in range(2))
    moved, size = (g.double().nan_to_num(0, 0, 0).norm(dim=1) for g in (again - gradient, gradient))
    share = float((moved / size.clamp_min(1e-300)).clamp_max(1.0).mean())
    if share <= _SAME_SLOPE:
        return True
    seen.findings.append(
        checks.GRADIENT_MODEL.finding(f"the gradient of the same input differs by {share:.0%} the next time")
    )
    return False


def as_deployed(target: Target, x: Tensor, y: Tensor, _: None, seen: Preflight) -> None:
    """Are the logits with gradients enabled those without, draw for draw?"""
    with torch.no_grad():
        plain = ask(target, x, seen)
    with torch.enable_grad():
        tracked = ask(target, x.detach().clone().requires_grad_(), seen).detach()
    _deployed(target, tracked, plain, seen)


def _deployed(target: Target, tracked: Tensor, logits: Tensor, seen: Preflight) -> None:
    each, rounded = drift_of(tracked, logits), rounding(target, logits)
    drift = float(each.max())
    flips = int(((tracked.argmax(1) != logits.argmax(1)) & (each > rounded)).sum())
    if (drift > max(COMPANY, rounded) or flips) and not seen.randomized:
        seen.findings.append(
            checks.GRADIENT_MODEL.finding(
                f"with gradients enabled logits move by {drift:.2g} of their spread and {flips} predictions change"
            )
        )


def uphill(target: Target, x: Tensor, y: Tensor, threat: Threat | None, seen: Preflight) -> None:
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
        return
    if threat is not None and found.share > scattering.UNEVEN:
        _scattered(target, x, y, threat, seen)


def _scattered(target: Target, x: Tensor, y: Tensor, threat: Threat, seen: Preflight) -> None:
    """Of a surface that bends much: do gradients around a sample go one way?"""
    share = scattering.scattered(target, x, y, threat)
    seen.forwards += scattering.POINTS * len(x) * target.draws
    seen.backwards += scattering.POINTS * len(x) * target.draws
    if share > scattering.MOST:
        seen.findings.append(
            checks.SCATTERED_GRADIENTS.finding(
                f"gradients at random points around a sample agree to a cosine under {scattering.ALIKE:g} for {share:.0%} of the samples"
            )
        )


def within_threat(
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
    dead = float((alive & ~passed(gradient.abs().amax(1))).float().mean())
    if dead > _DEAD_SHARE:
        seen.findings.append(
            checks.ZERO_GRADIENT.finding(
                f"within the threat the gradient is zero or not finite for {dead:.0%} of the samples, and not at them"
            )
        )


def squashed(target: Target, x: Tensor, y: Tensor, seen: Preflight) -> None:
    """Do the label's own logit and the best other both move, or is one of them at the end of what it can be?"""
    x, y = x[: slope.SAMPLES], y[: slope.SAMPLES]
    with torch.no_grad():
        logits = ask(target, x, seen)
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


def at_boundary(target: Target, x: Tensor, y: Tensor, _: None, seen: Preflight) -> None:
    """Does the margin come to 0 at a boundary, or jump over it? And does it fall towards it evenly?"""
    if checks.FLAT_MARGINS.name in {finding.check for finding in seen.findings}:
        return
    found = boundary.look(target, x[: slope.SAMPLES], y[: slope.SAMPLES])
    seen.forwards += found.forwards * target.draws
    if found.jump > boundary.JUMP:
        seen.findings.append(
            checks.FLAT_MARGINS.finding(
                f"at a boundary the margin jumps by {found.jump:.0%} of what it is at the samples"
            )
        )
    elif found.bend < boundary.BENT:
        seen.bend = max(boundary.LEAST, round(found.bend, 2))
        if found.bend < boundary.TOLD:
            seen.findings.append(
                checks.FLAT_MARGINS.finding(
                    f"towards a boundary the margin falls by the power of {found.bend:.2f} of the way that is left"
                )
            )


def blocked(target: Target, x: Tensor, y: Tensor, gradient: Tensor, seen: Preflight) -> None:
    """Does the margin's gradient ((N, D) at x) change from the faces of the box to just inside, as behind a clamp?

    It is asked of the samples with the most values at a face.
    """
    inward = copies.off_faces(x, target.bounds)
    at_faces = (inward != x).flatten(1).float().mean(1)
    if type(target).logits is not Target.logits or not bool(at_faces.any()):
        return
    rows = at_faces.topk(min(AGAIN, len(x))).indices
    y = y[rows]
    inside = _gradient_of(target, inward[rows], lambda logits: margin(logits, y), seen)
    here, there = ((slopes != 0) & slopes.isfinite() for slopes in (gradient[rows], inside))
    freed = (there.sum(1) - here.sum(1)) / there.sum(1).clamp_min(1)  # ties only move from pixel to pixel
    seen.blocked = int((freed > SHARE).sum()) > SHARE * len(x)


def passed(largest: Tensor) -> Tensor:
    """Of the largest slopes, (N,), which tell of a gradient: not 0, infinity or NaN."""
    return (largest > 0) & largest.isfinite()


def _gradient_of(target: Target, x: Tensor, height: Callable[[Tensor], Tensor], seen: Preflight) -> Tensor:
    """Gradient at x of a height of the logits, summed over the samples: -> (N, D)."""
    point = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = height(ask(target, point, seen)).sum()
    seen.backwards += len(x) * target.draws
    return torch.autograd.grad(value, point)[0].flatten(1)
