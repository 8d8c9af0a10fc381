"""What the model answers on a few samples: the same again, in whatever company, near them and after the attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from robust.diagnose import checks
from robust.diagnose.checks import Check, Finding
from robust.failures import out_of_memory
from robust.losses import margin, spread
from robust.rng import Streams
from robust.target import Target

SHARE: Final = 0.05  # of the few samples that must show a flaw
COMPANY: Final = 1e-3  # of the logits' spread
AGAIN: Final = 8  # of the few samples, which are asked about more often
_SAME: Final = 1e-4  # of the logits' spread
_ROUNDINGS: Final = 8  # of the last place, one after another
_FINE: Final = _ROUNDINGS * torch.finfo(torch.float32).eps
_NOISE: Final = 1e-3  # of the box
_MOVED: Final = 0.1  # of the margin
_CLEAR: Final = 0.3  # of that: less at once, and no second look is needed
_NEAR: Final = 0.01  # of an end of [0, 1]


@dataclass
class Preflight:
    """What was learnt of the model, and at what cost in rows passed."""

    findings: list[Finding] = field(default_factory=list)
    probabilities: bool = False
    differentiable: bool = True
    blocked: bool = False  # gradients end at the faces of the box and begin just inside
    bend: float = 1.0  # power of the way that is left by which margins fall towards a boundary
    drift: float = 0.0  # how far a logit moved with its batch, of the spread; 0 where that is a finding
    forwards: int = 0
    backwards: int = 0
    logits: Tensor | None = None  # of the few samples, where the same input gives the same again

    @property
    def randomized(self) -> bool:
        """Whether the same input gave two answers."""
        return any(finding.check == checks.RANDOMIZED.name for finding in self.findings)


def ask(target: Target, x: Tensor, seen: Preflight) -> Tensor:
    """Logits of x, whose passes are counted: (N, ...) -> (N, C)."""
    seen.forwards += len(x) * target.draws
    return target.logits(x)


@torch.no_grad()
def margins_at(target: Target, points: Sequence[Tensor], y: Tensor) -> Tensor:
    """Margins of the same samples moved in several ways ((N, ...) each), in one pass where memory lasts: (points, N)."""
    margins = margin(_logits_of_many(target, torch.cat([*points])), y.repeat(len(points)))
    return margins.double().view(len(points), len(y))


def _logits_of_many(target: Target, x: Tensor) -> Tensor:
    try:
        return target.logits(x)
    except Exception as error:
        if not out_of_memory(error) or len(x) == 1:
            raise
    return torch.cat([_logits_of_many(target, half) for half in x.tensor_split(2)])


def drift_of(logits: Tensor, reference: Tensor) -> Tensor:
    """Largest change of a logit in units of the reference's spread: -> (N,)."""
    return (logits - reference).abs().amax(1) / spread(reference)


def rounding(target: Target, logits: Tensor) -> float:
    """How far logits may be off by rounding alone, of their spread, in the type that the model computes in.

    That is told by its parameters, or by logits that are all of a coarser type.
    """
    types = {parameter.dtype for parameter in target.model.parameters()}
    for coarse in (torch.bfloat16, torch.float16):
        if coarse in types or logits.equal(logits.to(coarse).to(logits.dtype)):
            return _ROUNDINGS * torch.finfo(coarse).eps
    return _FINE


def in_half(target: Target, logits: Tensor) -> bool:
    """Whether the model computes in half precision, bfloat16 or float16."""
    return rounding(target, logits) > _FINE


def in_company(target: Target, logits: Tensor, before: Tensor) -> Finding | None:
    """What is to be said of the same samples' logits in two batches, (N, C) each."""
    return _told_apart(checks.BATCH_DEPENDENT, target, logits, before, "with its batch")


def afterwards(target: Target, logits: Tensor, before: Tensor) -> Finding | None:
    """What is to be said of the same samples' logits before the attacks and after them, (N, C) each."""
    return _told_apart(checks.STATEFUL, target, logits, before, "while the model is attacked")


def _told_apart(check: Check, target: Target, logits: Tensor, before: Tensor, when: str) -> Finding | None:
    drift = float(drift_of(logits, before).max())
    if not drift > max(COMPANY, rounding(target, before)):
        return None
    return check.finding(f"a sample's logits move by {drift:.2g} of their spread {when}")


def gives_probabilities(logits: Tensor) -> bool:
    """A softmax's outputs, or a sigmoid's: within [0, 1], adding up to 1 or reaching both ends."""
    in_unit = bool(((logits >= 0) & (logits <= 1)).all())
    of_softmax = bool(((logits.sum(1) - 1).abs() <= 1e-5).all())
    return in_unit and (of_softmax or bool((logits.amin() < _NEAR) & (logits.amax() > 1 - _NEAR)))


@torch.no_grad()
def repeatability(target: Target, x: Tensor, logits: Tensor, seen: Preflight) -> None:
    """Do the same inputs give the same logits again? A few are asked about more often: a model may draw once a batch."""
    few = [ask(target, x[:AGAIN], seen) for _ in range(4)]
    pairs = [(ask(target, x, seen), logits), *((again, few[0]) for again in few[1:])]
    moved = max(float(drift_of(again, before).max()) for again, before in pairs)
    flipped = any(bool((again.argmax(1) != before.argmax(1)).any()) for again, before in pairs)
    if flipped or moved > _SAME:
        seen.findings.append(
            checks.RANDOMIZED.finding(f"logits of the same input move by up to {moved:.2g} of their spread")
        )


@torch.no_grad()
def company(target: Target, x: Tensor, logits: Tensor, seen: Preflight) -> None:
    """Does a sample get the same logits alone as in a batch?"""
    few = min(4, len(x))
    alone = torch.cat([ask(target, x[i : i + 1], seen) for i in range(few)])
    flipped = ask(target, x.flip(0), seen).flip(0)
    again, before = torch.cat([alone, flipped]), torch.cat([logits[:few], logits])
    if found := in_company(target, again, before):
        seen.findings.append(found)
    else:
        seen.drift = float(drift_of(again, before).max())


@torch.no_grad()
def stability(target: Target, x: Tensor, y: Tensor, logits: Tensor, seen: Preflight) -> None:
    """Does the margin move smoothly?"""
    low, high = target.bounds
    before = margin(logits, y)
    moved: list[float] = []  # half of the margins by at least that much
    while len(x) > 1 and len(moved) < 2 and (not moved or moved[0] > _CLEAR * _MOVED):
        streams = Streams(0, torch.arange(len(x), device=x.device), ("stability", len(moved)))
        noise = streams.uniform(x.shape[1:], -_NOISE, _NOISE) * (high - low)
        after = margin(ask(target, (x + noise).clamp(low, high), seen), y)
        moves = ((after - before).abs() / before.abs().clamp_min(1e-12)).clamp_max(1.0)
        moved.append(float(moves.median()))
    mean = sum(moved) / max(1, len(moved))
    if mean > _MOVED:
        seen.findings.append(
            checks.UNSTABLE_LOSS.finding(
                f"noise of {_NOISE:g} of the box moves half of the margins by > {mean:.0%}"
            )
        )


@torch.no_grad()
def steadiness(target: Target, x: Tensor, y: Tensor, logits: Tensor, seen: Preflight) -> None:
    """Do other draws of a randomised model give the same classes?"""
    other = target.searcher()
    changed = float((ask(other, x, seen).argmax(1) != logits.argmax(1)).float().mean())
    if changed > SHARE:
        seen.findings.append(
            checks.TOO_FEW_DRAWS.finding(
                f"{changed:.0%} of the predictions over {target.draws} draws differ from those over {other.draws}"
            )
        )
