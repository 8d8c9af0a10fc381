"""The checks by name: what each measures, when it fires, what it detects and what to do then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from robust.registry import Registry
from robust.report import Trust

Severity = Literal["suspect", "unreliable"]
When = Literal["always", "alone"]


@dataclass(frozen=True)
class Finding:
    """A check that fired: how bad it is, and what to do."""

    check: str
    severity: Severity
    message: str


@dataclass(frozen=True)
class Check:
    """A named check.

    Attributes:
        rule: when it fires, with its threshold.
        detects: what is likely wrong then.
        advice: what to do.
        severity: what the finding makes of the verdict.
        when: "always", or "alone": where attacks ran side by side on the same samples (cascade=False).
    """

    name: str
    rule: str
    detects: str
    advice: str
    severity: Severity = "unreliable"
    when: When = "always"

    def finding(self, seen: str) -> Finding:
        """This check fired, on account of what was seen."""
        return Finding(self.name, self.severity, f"{seen}; {self.advice}")


CHECKS: Registry[Check] = Registry("check")


def _declare(name: str, **texts: str) -> Check:
    check = Check(name, **texts)  # type: ignore[arg-type]
    CHECKS.register(name)(check)
    return check


# -- of the model, on a few samples, before the passes are spent --------------------------------------

RANDOMIZED = _declare(
    "randomized",
    rule="five forwards of the same input differ in a prediction, or by > 1e-4 of the logits' spread",
    detects="noise or dropout at inference: one gradient is a sample of a distribution, and so is one prediction",
    advice="make the model deterministic, or attack it in expectation (EOT)",
)
BATCH_DEPENDENT = _declare(
    "batch-dependent",
    rule="a sample's logits differ by > 1e-3 of their spread alone and in a batch",
    detects="normalisation by the batch's own statistics: the verdict would depend on who stands beside whom",
    advice="normalise with stored statistics (eval mode), not with the batch's own",
)
PROBABILITIES = _declare(
    "probabilities",
    rule="outputs lie in [0, 1] and add up to 1 within 1e-5",
    detects="a softmax inside the model: margins shrink to nothing and saturated classes have no gradient",
    advice="attacked on their logarithm, which cannot undo saturation: remove the softmax and return logits",
    severity="suspect",
)
DETACHED = _declare(
    "detached-graph",
    rule="no gradient reaches the input, or backward raises",
    detects="a step that autograd cannot pass: detach, no_grad, integers, another library",
    advice="give the non-differentiable part a substitute gradient (BPDA), or use score and decision attacks",
)
GRADIENT_MODEL = _declare(
    "gradient-model",
    rule="logits with gradients enabled and disabled differ in a prediction or by > 1e-3 of their spread",
    detects="the model that is differentiated is not the model that is deployed: what fools one may not fool the other",
    advice="make forward the same in both modes, or attack the deployed one with score and decision attacks",
)
ZERO_GRADIENT = _declare(
    "zero-gradient",
    rule="the margin's input gradient is exactly zero for > 5 % of the samples",
    detects="quantisation, a step function, saturation: gradient attacks stand still",
    advice="attack through a substitute gradient (BPDA) or with score attacks",
)
LOGIT_SCALE = _declare(
    "logit-scale",
    rule="the cross-entropy's input gradient is under 1e-18 of the margin's for > 5 % of the samples",
    detects="logits so large that the softmax saturates, as after defensive distillation",
    advice="robust accuracy under cross-entropy attacks means nothing here: use margin, dlr or mifpe",
    severity="suspect",
)
DYNAMIC = _declare(
    "dynamic-defense",
    rule="autograd is called inside forward",
    detects="optimisation at inference: a gradient through forward misses what the optimisation will do",
    advice="attack the optimisation too (unrolled, or by transfer)",
)
UNSTABLE_LOSS = _declare(
    "unstable-loss",
    rule="under noise of a thousandth of the box the margin moves by > 10 % on average (each sample at most 100 %)",
    detects="a surface that jumps: shattered or noisy gradients lead nowhere",
    advice="smooth the gradient (attack in expectation over noise) or use score attacks",
    severity="suspect",
)

# -- of the attacks, from what they saw ---------------------------------------------------------------

NON_FINITE = _declare(
    "non-finite",
    rule="the model gave NaN or infinity for a sample",
    detects="overflow, a division by zero, a bad checkpoint",
    advice="its samples count as errors: find out why before believing any number",
)
CRASH = _declare(
    "crash",
    rule="an attack, or a check that attacks, raised an error on some samples",
    detects="a bug in the attack or a model that cannot take every input of the box",
    advice="its samples count as errors: see failures",
)
AUDIT = _declare(
    "audit",
    rule="a claimed adversarial example failed the re-measurement of norm, box, finiteness or class",
    detects="a model that answers differently a second time, or an attack that leaves the threat",
    advice="such claims were not counted: is the model deterministic?",
    severity="suspect",
)
BLACK_BOX_WINS = _declare(
    "black-box-wins",
    rule="score and decision attacks break > 5 % (at least 2) of the samples that they were given after the gradient "
    "attacks of the suite",
    detects="masked gradients: the surface can be descended, but not by its derivative",
    advice="run the suite 'thorough', and look at what forward does to gradients",
)
UNBOUNDED = _declare(
    "unbounded",
    rule="within the whole box (linf, eps its width) 30 steps on the margin leave > 5 % (at least 2) of up to 32 samples standing",
    detects="masked gradients: within the whole box every classifier can be fooled",
    advice="run score and decision attacks; look at what forward does to gradients",
)
SINGLE_STEP = _declare(
    "single-step-wins",
    rule="one step breaks more samples (by over 5 % of those tried, at least 2) than many with the same loss",
    detects="masked gradients, or adversarial training that overfitted to single steps",
    advice="harden with more steps; attack with random starts and score attacks",
    when="alone",
)
LOSS_GAP = _declare(
    "loss-gap",
    rule="the same attack with another loss breaks > 5 points more than with cross-entropy",
    detects="cross-entropy gradients that are masked, as by saturated logits",
    advice="never report cross-entropy attacks alone for this model",
    when="alone",
)


def verdict(findings: list[Finding]) -> Trust:
    """The worst of the findings."""
    severities = {finding.severity for finding in findings}
    if "unreliable" in severities:
        return "unreliable"
    return "suspect" if severities else "trusted"
