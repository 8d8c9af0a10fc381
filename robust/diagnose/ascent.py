"""Do gradients lead uphill on the way of an ascent, as they do at the samples?"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from robust.attacks import PGD
from robust.attacks.geometry import ahead, per_row
from robust.diagnose import checks, slope
from robust.diagnose.answers import drift_of, in_half, margins_at, rounding
from robust.diagnose.checks import Finding
from robust.diagnose.probes import Subject
from robust.losses import margin
from robust.quantized import Quantized
from robust.target import in_parts

_ROWS, _ENOUGH = 16, 4  # survivors that are looked at, and how many tell something
_STEPS, _EVERY = 8, 2  # of an ascent on the margin, and after how many of them one looks
# Of the box, the pixel of the largest slope: what rounds shows its slope by the farther one.
_MOVES: Final = (0.003, 0.03)
_MOST: Final = 0.1  # of the points
_ENDS: Final = 8  # of the survivors: the ends of their ascents are looked at all around
ALIKE: Final = 0.9  # cosine there; benchmarks/signals.py prints that of any model


def ascents(subject: Subject) -> Finding | None:
    """Climb the margin from samples that stand: does it rise along the gradients met on the way, and are they right at the end?

    The way is held against differences of two forwards, some ends against slopes along random directions. Samples that have no
    gradient of their own do not count. Passed by models that are randomised, quantised or compute in half precision: such
    differences are noise or rounding. The share of the points where the margin does not rise, and the cosine at the ends, go to
    the subject's figures: ascent_level; ascent_alike, where the surface is straight there.
    """
    rows = subject.survivors(_ROWS)
    if (
        subject.threat.norm not in PGD.norms
        or len(rows) < _ENOUGH
        or isinstance(subject.target.model, Quantized)
    ):
        return None
    with torch.no_grad():
        logits, again = (subject.target.logits(subject.x[rows[:1]]) for _ in range(2))
    subject.forwards += 2 * subject.target.draws
    noisy = float(drift_of(again, logits)) > rounding(subject.target, logits)
    if noisy or in_half(subject.target, logits):
        return None
    climbs = [_climb(subject, part) for part in in_parts(rows, subject.micro_batch)]
    level, ends = (torch.cat(each) for each in zip(*climbs, strict=True))
    alive = ~level.isnan()
    if int(alive.sum()) < _ENOUGH:
        return None
    share, cosine = float(level[alive].mean()), _alike(subject, rows[alive][:_ENDS], ends[alive][:_ENDS])
    subject.figures["ascent_level"] = share
    if not math.isnan(cosine):
        subject.figures["ascent_alike"] = cosine
    if share > _MOST:
        return checks.MASKED_ASCENT.finding(
            f"at {share:.0%} of the points where ascents on {int(alive.sum())} samples that stand came by, the margin does not rise "
            "along its gradient, though it does at the samples"
        )
    if cosine < ALIKE:
        return checks.MASKED_ASCENT.finding(
            "where ascents on samples that stand end, slopes along random directions are not what the gradient says (cosine "
            f"{cosine:.2f} or less at a quarter)"
        )
    return None


def _alike(subject: Subject, rows: Tensor, ends: Tensor) -> float:
    """The cosine of the slopes around the ends of ascents and what gradients there say."""
    found = slope.alike_near(subject.target, ends, subject.y[rows])
    subject.forwards += found.forwards * subject.target.draws
    subject.backwards += found.backwards * subject.target.draws
    return found.cosine


def _climb(subject: Subject, rows: Tensor) -> tuple[Tensor, Tensor]:
    """At which share of the points of its ascent the margin does not rise, (M,), nan of a sample without a gradient; and its end."""
    target, threat, x, y = subject.target, subject.threat, subject.x[rows], subject.y[rows]
    point, level, alive = x, [], torch.zeros_like(y, dtype=torch.bool)
    for step in range(_STEPS + 1):
        leaf = point.detach().clone().requires_grad_()
        with torch.enable_grad():
            height = margin(target.logits(leaf), y).sum()
        gradient = torch.autograd.grad(height, leaf)[0].nan_to_num(0, 0, 0)
        steepest = gradient.flatten(1).abs().amax(1)
        if step == 0:
            alive = steepest > 0
        elif step % _EVERY == 0:
            unit = gradient * per_row(steepest.clamp_min(1e-30).reciprocal(), gradient)
            level.append(_is_level(subject, rows, point, unit))
        size = threat.radius * (1 + math.cos(math.pi * step / _STEPS)) / 2
        point = threat.project(ahead(point, gradient, threat, size), x)
    subject.backwards += len(rows) * (_STEPS + 1) * target.draws
    subject.forwards += len(rows) * (_STEPS + 1 + 2 * len(_MOVES) * len(level)) * target.draws
    return torch.stack(level).float().mean(0).masked_fill(~alive, torch.nan), point


@torch.no_grad()
def _is_level(subject: Subject, rows: Tensor, point: Tensor, along: Tensor) -> Tensor:
    """Where the margin rises by no move along a direction, (M,) bool; that is 1 at its steepest pixel."""
    low, high = subject.threat.bounds
    moves = [way * move * (high - low) for way in (-1, 1) for move in _MOVES]
    moved = [(point + move * along).clamp(low, high) for move in moves]
    behind, beyond = margins_at(subject.target, moved, subject.y[rows]).view(2, len(_MOVES), len(rows))
    return ~(beyond > behind).any(0)
