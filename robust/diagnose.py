"""Checks that say whether the number can be trusted.

Each check has a name, a rule and a message that says what to do. Those that look at the model alone
run first, on a few samples, before the passes of the attacks are spent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from robust.errors import ModelError
from robust.losses import ce, margin
from robust.registry import Registry
from robust.report import Trust
from robust.target import Target

Severity = Literal["suspect", "unreliable"]
PREFLIGHT_SAMPLES: Final = 32


@dataclass(frozen=True)
class Finding:
    """A check that fired: how bad it is, and what to do."""

    check: str
    severity: Severity
    message: str


@dataclass(frozen=True)
class Check:
    """A named check, for `robust list checks`."""

    name: str
    rule: str


CHECKS: Registry[Check] = Registry("check")


def _declare(name: str, rule: str) -> str:
    CHECKS.register(name)(Check(name, rule))
    return name


RANDOMIZED = _declare(
    "randomized", "five forwards of the same input differ in a prediction or by > 1e-4 of the logits' spread"
)
BATCH_DEPENDENT = _declare(
    "batch-dependent", "a sample's logits differ by > 1e-3 of their spread alone and in a batch"
)
PROBABILITIES = _declare("probabilities", "outputs lie in [0, 1] and add up to 1 within 1e-5")
DETACHED = _declare("detached-graph", "no gradient reaches the input, or backward raises")
ZERO_GRADIENT = _declare(
    "zero-gradient", "the margin's input gradient is exactly zero for > 1 % of the samples"
)
LOGIT_SCALE = _declare(
    "logit-scale",
    "the cross-entropy's input gradient is under 1e-18 of the margin's, for > 1 % of the samples",
)
DYNAMIC = _declare("dynamic-defense", "autograd is called inside forward")
NON_FINITE = _declare("non-finite", "the model gave NaN or infinity for a sample")
CRASH = _declare("crash", "an attack raised an error on some samples")
AUDIT = _declare("audit", "a claimed adversarial example failed the re-measurement")
SINGLE_STEP = _declare(
    "single-step-wins", "a single step breaks more samples than an iterated attack with the same loss"
)
LOSS_GAP = _declare(
    "loss-gap", "the same attack with another loss breaks > 5 points more than with cross-entropy"
)


@dataclass(frozen=True)
class Preflight:
    """What was learnt of the model before the attacks, and at what cost."""

    findings: list[Finding]
    probabilities: bool
    differentiable: bool
    forwards: int
    backwards: int


@dataclass
class _Meter:
    forwards: int = 0
    backwards: int = 0


def preflight(target: Target, x: Tensor, y: Tensor) -> Preflight:
    """Look at the model on a few samples ((N, ...), (N,), on the target's device, target entered).

    Raises:
        ModelError: the output is not logits (N, C), or a label is not among the C classes.
    """
    meter, findings = _Meter(), list[Finding]()
    with torch.no_grad(), _autograd_calls() as calls:
        logits = target.logits(x)
        meter.forwards += len(x)
    if int(y.max()) >= logits.shape[1]:
        raise ModelError(
            f"model output: {logits.shape[1]} classes, but the labels go up to {int(y.max())}; expected labels in "
            f"[0, {logits.shape[1]}): give the model that was trained for this data"
        )
    if calls:
        findings.append(
            Finding(
                DYNAMIC,
                "unreliable",
                "the model optimises at inference; attacks that differentiate through "
                "forward miss it: attack the optimisation too (unrolled or by transfer)",
            )
        )
    probabilities = _gives_probabilities(logits)
    if probabilities:
        findings.append(
            Finding(
                PROBABILITIES,
                "suspect",
                "the model returns probabilities; attacked on their logarithm, but "
                "saturated probabilities have no gradient: remove the softmax and return logits",
            )
        )
    findings += _repeatability(target, x, logits, meter)
    differentiable, found = _gradients(target, x, y, meter)
    return Preflight(findings + found, probabilities, differentiable, meter.forwards, meter.backwards)


def _gives_probabilities(logits: Tensor) -> bool:
    in_unit = bool(((logits >= 0) & (logits <= 1)).all())
    return in_unit and bool(((logits.sum(1) - 1).abs() <= 1e-5).all())


def _spread(logits: Tensor) -> Tensor:
    return (logits.amax(1) - logits.amin(1)).clamp_min(1e-12)


@torch.no_grad()
def _repeatability(target: Target, x: Tensor, logits: Tensor, meter: _Meter) -> list[Finding]:
    """Does the same input give the same logits again, and alone as in company?"""
    repeats = [target.logits(x) for _ in range(4)]
    meter.forwards += 4 * len(x)
    moved = torch.stack([(r - logits).abs().amax(1) / _spread(logits) for r in repeats]).amax(0)
    flips = torch.stack([r.argmax(1) != logits.argmax(1) for r in repeats]).any(0)
    if bool((flips | (moved > 1e-4)).any()):
        return [
            Finding(
                RANDOMIZED,
                "unreliable",
                f"logits of the same input move by up to {float(moved.max()):.2g} of "
                "their spread; make the model deterministic, or attack it in expectation (EOT)",
            )
        ]
    alone = torch.cat([target.logits(x[i : i + 1]) for i in range(min(4, len(x)))])
    flipped = target.logits(x.flip(0)).flip(0)
    meter.forwards += len(alone) + len(x)
    drift = max(
        float(((alone - logits[: len(alone)]).abs().amax(1) / _spread(logits[: len(alone)])).max()),
        float(((flipped - logits).abs().amax(1) / _spread(logits)).max()),
    )
    if drift > 1e-3:
        return [
            Finding(
                BATCH_DEPENDENT,
                "unreliable",
                f"a sample's logits move by {drift:.2g} of their spread with its "
                "batch; normalise with stored statistics (eval mode), not the batch's own",
            )
        ]
    return []


def _gradients(target: Target, x: Tensor, y: Tensor, meter: _Meter) -> tuple[bool, list[Finding]]:
    """Do gradients reach the input, and does cross-entropy keep them?"""
    sizes = []
    for loss in (ce, margin):
        point = x.detach().clone().requires_grad_()
        try:
            with torch.enable_grad():
                value = loss(target.logits(point), y).sum()
            gradient = torch.autograd.grad(value, point, allow_unused=True)[0]
        except RuntimeError as error:
            gradient, reason = None, str(error).splitlines()[0]
        else:
            reason = "the output does not depend on the input in autograd's eyes"
        meter.forwards, meter.backwards = meter.forwards + len(x), meter.backwards + len(x)
        if gradient is None:
            return False, [
                Finding(
                    DETACHED,
                    "unreliable",
                    f"no gradient reaches the input ({reason}); give the "
                    "non-differentiable part a substitute gradient (BPDA) or use score and decision attacks",
                )
            ]
        sizes.append(gradient.flatten(1).abs().amax(1))
    of_ce, of_margin = sizes
    dead = float((of_margin == 0).float().mean())
    vanished = float(((of_ce <= 1e-18 * of_margin) & (of_margin > 0)).float().mean())
    found = []
    if dead > 0.01:
        found.append(
            Finding(
                ZERO_GRADIENT,
                "unreliable",
                f"the gradient is zero for {dead:.0%} of the samples; something "
                "quantises or saturates: attack through a substitute gradient (BPDA) or with score attacks",
            )
        )
    if vanished > 0.01:
        found.append(
            Finding(
                LOGIT_SCALE,
                "suspect",
                f"cross-entropy has no gradient for {vanished:.0%} of the samples where "
                "the margin has one (logits too large, as after defensive distillation): robust accuracy "
                "under cross-entropy attacks means nothing; use margin, dlr or mifpe",
            )
        )
    return True, found


@contextmanager
def _autograd_calls() -> Iterator[list[str]]:
    """Collect calls into autograd made while the context is open."""
    calls: list[str] = []
    grad, backward = torch.autograd.grad, torch.autograd.backward

    def noting(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return function(*args, **kwargs)

        return call

    torch.autograd.grad, torch.autograd.backward = noting("grad", grad), noting("backward", backward)
    try:
        yield calls
    finally:
        torch.autograd.grad, torch.autograd.backward = grad, backward


def verdict(findings: list[Finding]) -> Trust:
    """The worst of the findings."""
    severities = {finding.severity for finding in findings}
    if "unreliable" in severities:
        return "unreliable"
    return "suspect" if severities else "trusted"


def review(attacks: list[dict[str, Any]], correct: int, *, cascade: bool) -> list[Finding]:
    """What the finished attacks say about themselves and each other.

    Args:
        attacks: the report's attack entries, in order.
        correct: samples that were classified correctly before any attack.
        cascade: each attack saw only the survivors of those before it.
    """
    found = []
    for entry in attacks:
        if entry["rejected"]:
            found.append(
                Finding(
                    AUDIT,
                    "suspect",
                    f"{entry['rejected']} adversarial examples claimed by {entry['label']} did not "
                    "hold outside the attack and were not counted; is the model deterministic?",
                )
            )
    if not cascade:
        found += _compare(attacks, correct)
    return found


def _compare(attacks: list[dict[str, Any]], correct: int) -> Iterator[Finding]:
    """Attacks that saw the same samples: does the weaker kind win?"""
    single = [a for a in attacks if a["name"] == "fgsm"]
    iterated = [a for a in attacks if a["name"] == "pgd"]
    for weak in single:
        for strong in iterated:
            same_loss = weak["parameters"]["loss"] == strong["parameters"]["loss"]
            if same_loss and weak["broke"] > strong["broke"] + 0.01 * correct:
                yield Finding(
                    SINGLE_STEP,
                    "unreliable",
                    f"{weak['label']} breaks {weak['broke']} samples, {strong['label']} only "
                    f"{strong['broke']}: gradients are masked (or training overfitted to single steps)",
                )
    for plain in iterated:
        for other in iterated:
            same = {**plain["parameters"], "loss": None} == {**other["parameters"], "loss": None}
            if (
                same
                and plain["parameters"]["loss"] == "ce"
                and other["broke"] > plain["broke"] + 0.05 * correct
            ):
                yield Finding(
                    LOSS_GAP,
                    "unreliable",
                    f"{other['label']} breaks {other['broke']} of {correct} samples, "
                    f"{plain['label']} {plain['broke']}: cross-entropy gradients are masked",
                )
