"""The checks by name: what each measures, when it fires, what it detects and what to do then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from robust.registry import Registry
from robust.report import Trust

Severity = Literal["suspect", "unreliable"]
When = Literal["always", "alone", "full"]


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
        when: "always"; "alone": where attacks ran side by side on the same samples (cascade=False); "full":
            where all checks were asked for (diagnose="full").
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
    advice="attack and judge it in expectation over its draws: eot=32 (--eot 32), or make the model deterministic",
)
TOO_FEW_DRAWS = _declare(
    "too-few-draws",
    rule="over > 5 % of the samples the class by K draws (eot=K) is not the class by 4 K others",
    detects="a randomised model whose answer takes more draws than it was given",
    advice="give more draws: a larger eot",
    severity="suspect",
)
BATCH_DEPENDENT = _declare(
    "batch-dependent",
    rule="a sample's logits differ by > 1e-3 of their spread alone, in a batch of a few, and in one of the run's own size, "
    "or by > 3 % where the model computes in bfloat16 (0.4 % in float16)",
    detects="normalisation by the batch's own statistics: the verdict would depend on who stands beside whom",
    advice="normalise with stored statistics (eval mode), not with the batch's own",
)
STATEFUL = _declare(
    "stateful",
    rule="once the attacks are done, logits of the first 32 samples differ from those before by > 1e-3 of their spread, "
    "or by > 3 % where the model computes in bfloat16 (0.4 % in float16)",
    detects="a model that changes while it is asked: adaptation at test time, a memory of queries (Chen et al. 2019), or "
    "an attack that writes into its weights. What counts as broken depends on what was asked before",
    advice="evaluate it in a state that stays: switch off what adapts or remembers",
)
PROBABILITIES = _declare(
    "probabilities",
    rule="outputs lie in [0, 1] and add up to 1 within 1e-5, or come within 0.01 of both ends",
    detects="a softmax or sigmoid inside the model: margins shrink to nothing and saturated classes have no gradient",
    advice="attacked on their logarithm, which cannot undo saturation: remove it and return logits",
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
    rule="logits with gradients enabled and disabled differ in a prediction or by > 1e-3 of their spread (both by > 3 % in "
    "bfloat16, 0.4 % in float16); or the gradient of the "
    "same input differs by > 10 % from one time to the next; or the margin "
    "rises along its gradient at under 20 % of the steepest slope that random directions show, with pixels moved by "
    "eps (at most a tenth of the box) or, where the surface bends too much there, a hundredth of the box; or under half of the "
    "adversarial examples of a quantised model's float twin fool that model",
    detects="the model that is differentiated is not the model that is deployed: what fools one may not fool the other; "
    "gradients that are turned, scrambled or shattered lead nowhere",
    advice="make forward the same in both modes and its gradient its own, or attack with score and decision attacks",
)
PARTIAL_GRADIENT = _declare(
    "partial-gradient",
    rule="with pixels moved by a hundredth of the box along its gradient, the margin rises > 1.5 times as fast as the "
    "gradient says, and not in proportion: the quartiles of the samples are apart by > 5 %; or along random directions it rises as "
    "the gradient says with a cosine under 0.97: the median of up to 12 samples, over 16 directions, with pixels moved by "
    "0.3, 1 or 3 % of the box, whichever says most for the gradient and along which the surface is nearly straight",
    detects="a part of the model that passes no gradient, detached or rounded, beside one that does: attacks see the rest only",
    advice="let gradients through all of the model, or attack it with score and decision attacks, or by transfer from a model "
    "like it",
    severity="suspect",
)
_OF_WHAT_STANDS: Final = (
    ". An evaluation at one eps says nothing of it where fewer than 3 samples, and no more than 5 %, stand in the end, nor where "
    "random points bear the number out (black-box-wins)"
)
SHATTERED_GRADIENT = _declare(
    "shattered-gradient",
    rule="with pixels moved by eps (at most a tenth of the box) along its gradient, the margin rises by under 30 % of what "
    "it does by a thousandth of the box, step for step; looked at where eps is over 1.5 % of the box, under linf and l2"
    f"{_OF_WHAT_STANDS}",
    detects="a surface of waves or steps finer than the threat: gradients say what is a step away, and attacks end in the "
    "nearest of many maxima",
    advice="attack without what makes the waves (BPDA), average gradients over noise, or use score and decision attacks",
    severity="suspect",
)
ROUGH_SURFACE = _declare(
    "rough-surface",
    rule="at nine points along its gradient, up to three times eps each way (no pixel by more than a tenth of the box), the "
    "margin's third differences add up to > 60 % of its first ones, on average; and its gain changes by > 6 % of all that it "
    "moves more than by one rise and fall (the median), or of its steepest interval's gain > 20 % are left when the interval "
    "is halved six times, as at a jump; looked at where eps moves a pixel by over 3 % of the box, under linf and l2"
    f"{_OF_WHAT_STANDS}",
    detects="a surface that goes in steps, jumps or waves that are fine beside the threat, whatever gradient it gives: rounded "
    "activations or inputs of few levels, a thermometer's code, k winners that take all; attacks end on the nearest high step",
    advice="attack without what makes the steps and carry the examples over, or search the steps themselves; 'thorough' may see "
    "no more",
    severity="suspect",
)
SCATTERED_GRADIENTS = _declare(
    "scattered-gradients",
    rule="along its gradient, as for rough-surface, the margin's third differences add up to > 40 % of its first ones, and for > 25 % "
    "of the samples its gradients at four random points, pixels moved by up to 2 eps (at most a fifth of the box), agree to a "
    "cosine under 0.5 on average; looked at where eps moves a pixel by over 3 % of the box, under linf and l2"
    f"{_OF_WHAT_STANDS}",
    detects="a net that switches within the threat between what it looks at, as attention by a softmax of small temperature, sharp "
    "selection of patches or units: each gradient is that of one selection, and attacks end at the best of that",
    advice="attack the same net with a softer selection, such as a higher temperature, and carry the examples over, or average "
    "gradients over noise wider than the threat; 'thorough' may see no more",
    severity="suspect",
)
ZERO_GRADIENT = _declare(
    "zero-gradient",
    rule="the margin's input gradient is exactly zero for > 15 % of the samples, or for as many at random points of the threat "
    "and not at them",
    detects="quantisation, a step function, saturation: gradient attacks stand still",
    advice="attack through a substitute gradient (BPDA) or with score attacks",
)
LOGIT_SCALE = _declare(
    "logit-scale",
    rule="the cross-entropy's input gradient is under 1e-30 of the margin's for > 25 % of the samples, as where the "
    "leading two logits lie some 70 apart",
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
INTERRUPTED = _declare(
    "interrupted",
    rule="the evaluation was stopped before the suite had passed over all samples, or before its last checks",
    detects="nothing about the model: what no attack had reached counts as an error",
    advice="run it again to the end",
)
NO_START = _declare(
    "no-start",
    rule="a decision attack found no misclassified point to begin with for some samples (`unstarted` of its entry)",
    detects="a model that gives one class nearly everywhere; such samples stand because nothing attacked them",
    advice="add gradient or score attacks to the suite, or give the attack more start_tries or queries",
    severity="suspect",
)
AUDIT = _declare(
    "audit",
    rule="a claimed adversarial example failed the re-measurement of norm, box, finiteness or class",
    detects="a model that answers differently a second time, or an attack that leaves the threat",
    advice="such claims were not counted: is the model deterministic?",
    severity="suspect",
)
HIDDEN_BOUNDARY = _declare(
    "hidden-boundary",
    rule="in l2, an attack that is shown only samples that no search saw broken within 2.5 times the radius breaks 5 % and more (at "
    "least 3) of them; or, in linf, l2 and l1, ascents on the label's own logit and outer-boundary break as many of what ascents on margins "
    "left over half of the clean margin of; and 3 samples or more stand in the end",
    detects="boundaries that only one search finds its way in to, as of some nets trained to be certified in another norm, or of a class "
    "that follows the label's logit and never takes over: what it did not reach may yet be within reach",
    advice="run the suite 'thorough', which looks towards every class, or 'autoattack'",
    severity="suspect",
)
FLAT_MARGINS = _declare(
    "flat-margins",
    rule="of five samples or more that stand and were seen broken within twice the radius, over half have kept > 95 % of "
    "their clean margin within it (linf, l2 and l1, where an attack of 10 steps and more ascends); or over half of the samples' "
    "own logits have under 1 % of the slope of the best other's, or those of the own's (of three classes and more, logarithms of "
    "probabilities aside); or on the way to a sample of another class, or to the negative, the margin jumps by > 50 % of what it "
    "is at the first, or falls by a power under .4 of the way that is left (the medians)",
    detects="logits that hardly move before they jump, such as ranks, a winner that is raised or rounded with a little of the "
    "logits, or what a tanh, a clamp or a ReLU lets through: how "
    "near a boundary is cannot be told from them, and by that the longest searches are chosen; losses that compare differences "
    "of logits are misled",
    advice="return the logits as they were before that; in linf and l2 the longest searches of the suite 'thorough' are for all",
    severity="suspect",
)
BLACK_BOX_WINS = _declare(
    "black-box-wins",
    rule="score and decision attacks break 5 % and more (at least 2) of the samples that they were given after the gradient "
    "attacks of the suite, or of all that stood, where they were given those that were near or moved last; or, of some 16 and more survivors "
    "of attacks inside the threat of 10 steps and more, above all such as many passes were spent on, 48 queries of random search "
    "bring 10 % and more (at least 2) nearer than all gradients did, by over a tenth of the clean margin; or, of 4 features and fewer, "
    "1,000 random points inside the threat break 5 % and more (at least 2) of the survivors among some 128 samples: where they break "
    "fewer of at least 3, they bear the number out, and being nearer says nothing",
    detects="masked gradients: the surface can be descended, but not by its derivative",
    advice="run the suite 'thorough', and look at what forward does to gradients",
)
SHRINKING_LOGITS = _declare(
    "shrinking-logits",
    rule="5 % of the samples and more (at least 2), and a quarter of those that stand, do so though every other class came "
    "within 15 % (of three and four classes 5 %) of the "
    "clean gap of the farthest that is not ruled out (linf, l2 and l1, where an attack of 10 steps and more ascends)",
    detects="logits that shrink, all of them, as the input changes, so that no boundary comes near by it: a temperature that falls "
    "with the change, or another answer where the first is unsure. What climbs differences of logits is led to where they are small",
    advice="attack the logits before they are scaled, and what answers in their place; quote the number as an upper bound",
    severity="suspect",
)
MASKED_ASCENT = _declare(
    "masked-ascent",
    rule="of up to 16 samples that stand (at least 4) and have a gradient, at > 10 % of the points that 8 steps on the margin come by the "
    "margin does not rise along its gradient, with no pixel moved by more than 0.3 % of the box, nor by more than 3 % (linf, l2 and l1); "
    "or around the ends of these steps on up to 8 of them it rises along random directions as the gradient says with a cosine "
    "under 0.9, measured as for partial-gradient: the lower quartile, by the shortest of these moves along which the "
    "surface is nearly straight at four of them and more. "
    "An evaluation at one eps says nothing of it where random points bear the number out (black-box-wins)",
    detects="gradients that are right at the samples and vanish or mislead on the way to the boundary: an answer without a gradient "
    "where the first is unsure, a backward that changes near it",
    advice="attack the part that answers at the samples and carry the examples over, give the rest a substitute gradient (BPDA), or use "
    "score and decision attacks",
)
TURNING_GRADIENTS = _declare(
    "turning-gradients",
    rule="in linf, of the samples that a first PGD from x of 7 steps and more left (at least 8), over half had gradients that from one step to "
    "the next, on its second half, agree to a cosine under 0.5 on average; or, in linf and l2, smaller steps that are shown only samples of "
    "which they agree less break 5 % and more (at least 3) of them; or, in `standard` and `thorough` in l2, over a fifth of the samples that "
    "stand and were seen broken outside (at least 8) have kept a share of their margin that is by 0.15 under 1 - eps / distance. "
    "An evaluation at one eps says nothing of it where random points bear the number out (black-box-wins)",
    detects="a surface that bends sharply over less than the threat, as behind logarithms of small magnitudes: ascents with wide steps "
    "zigzag under its tops, and searches from outside do not find the way in",
    advice="run the suite 'thorough' or 'autoattack', or PGD with many small steps (steps=500, step_size=0.05)",
    severity="suspect",
)
LONGER_ASCENT_WINS = _declare(
    "longer-ascent-wins",
    rule="APGD of 40 steps and more from inside, shown what came near, breaks 5 % and more (at least 3) of that (in `standard` in l1)",
    detects="ascents that have not converged, as behind a code of each value, where the slope of one bump says nothing of the next: where "
    "longer ones break many, still longer ones break more",
    advice="run the suite 'thorough', or APGD with more steps and restarts",
    severity="suspect",
)
SPARSE_SEARCH_WINS = _declare(
    "sparse-search-wins",
    rule="in l0 and l1, sparse-rs or swap-search breaks half and more (at least 2) of the samples that it was given after gradient attacks of "
    "the suite, or of all that stood, where it was given what is near, and more than these attacks did",
    detects="gradients that see little of what a few large changes do, as of some nets trained for large linf radii: where random search finds most, "
    "a longer one may find more",
    advice="run the suite 'thorough', and quote the number as an upper bound",
    severity="suspect",
)
UNBOUNDED = _declare(
    "unbounded",
    rule="within the whole box (linf, eps its width) 30 steps on the margin leave 15 % and more (at least 2) of up to 32 samples "
    "standing, though the model takes other samples, their negatives or noise for another class; of 16 features and fewer, 256 random "
    "points of the box, too",
    detects="masked gradients: the whole box holds other samples too, which the model takes for other classes",
    advice="run score and decision attacks; look at what forward does to gradients",
)
SILENT_SUCCESS = _declare(
    "silent-success",
    rule="for > 1 % (at least 2) of the samples that an attack saw, a point inside the threat was misclassified in "
    "the search and yet nothing was claimed",
    detects="a search that runs on a model that differs from the one judged, or an attack that forgets what it found",
    advice='search with precision="float32", and look at how the attack returns its points',
    severity="suspect",
)
SHORT_SEARCH = _declare(
    "short-search",
    rule="5 % of the samples and more (at least 2) stand in a norm ball after under 50 passes each (35 where two classes are seen), forward "
    "and backward together",
    detects="a suite too short to prove anything, as one step is, or 20 steps of PGD: the number is an upper bound",
    advice="run the suite 'standard' before quoting the number",
    severity="suspect",
)
BLACK_BOX_ALONE = _declare(
    "black-box-alone",
    rule="5 % of the samples and more (at least 2) stand in a norm ball and no attack of the suite used gradients, though the "
    "model gives them and nothing else makes the verdict unreliable",
    detects="a suite of score and decision attacks alone: attacks with gradients break more at far fewer queries",
    advice="run the suite 'standard', which has both, or quote the number as that of a black-box attack",
    severity="suspect",
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

# -- of more passes, where all checks are asked for ----------------------------------------------------

NOT_CONVERGED = _declare(
    "not-converged",
    rule="the last fifth (at most 10) of the steps of the suite's longest gradient attack, of those that stay inside the "
    "threat all the way, brings > 5 % of what its first run gains in margin on survivors",
    detects="too few steps: the search was cut off while it still gained",
    advice="give the attack more steps, or run the suite 'thorough'",
    severity="suspect",
    when="full",
)
DOUBLED_BUDGET = _declare(
    "doubled-budget",
    rule="twice the steps from other random starts break > 0.5 points (at least 2) more of up to 64 samples",
    detects="a search that has not converged: the number would fall further",
    advice="give the attacks more steps or restarts, or run the suite 'thorough'",
    severity="suspect",
    when="full",
)
STEP_SIZE = _declare(
    "step-size",
    rule="PGD with a quarter or four times its step breaks 5 % and more (at least 2) beyond what it does of up to 64 samples",
    detects="a badly set step, or a surface on which the usual step leads nowhere",
    advice="set the step that does best, or use attacks that adapt it (apgd, the suite 'standard')",
    severity="suspect",
    when="full",
)
MONOTONE = _declare(
    "monotone",
    rule="PGD breaks at eps but not at twice eps 5 % and more (at least 2) of up to 64 samples",
    detects="masked gradients, or a bug: what can be done within eps can be done within twice eps",
    advice="use more restarts and score attacks; look at what forward does to gradients",
    when="full",
)
RANDOM_NOISE = _declare(
    "random-noise",
    rule="1,000 random points inside the threat break at least 2 of up to 16 samples that gradient attacks left",
    detects="masked gradients: blind guessing beats the derivative",
    advice="run score and decision attacks with large budgets; look at what forward does to gradients",
    when="full",
)
BINARIZATION = _declare(
    "binarization",
    rule="the suite's gradient attacks find < 95 % (at least 2 missed) of adversarial points planted behind a linear "
    "head on the model's features, for up to 16 samples",
    detects="attacks too weak for this model: they miss what is known to exist",
    advice="use stronger or adaptive attacks before believing the number",
    when="full",
)


_WHEN = {
    "always": "with every evaluation",
    "alone": "where attacks ran side by side (`cascade=False`)",
    "full": 'where all checks are asked for (`diagnose="full"`, `--diagnose full`)',
}


def page() -> str:
    """docs/checks.md: a paragraph a check."""
    parts = [
        "# The checks",
        "",
        "Each looks for one way in which robust accuracy comes out too high. A finding makes the verdict *suspect* or "
        "*unreliable*; without any it is *trusted*. Thresholds are chosen so that honest models trip none.",
    ]
    for name in CHECKS:
        check = CHECKS[name]
        advice = f"{check.advice[0].upper()}{check.advice[1:]}"
        parts += [
            "",
            f"## {name}",
            "",
            f"Fires when {check.rule}. Detects {check.detects}. What to do: {advice.rstrip('?.')}"
            f"{'?' if advice.endswith('?') else '.'} Makes the verdict {check.severity}; runs {_WHEN[check.when]}.",
        ]
    return "\n".join(parts) + "\n"


def verdict(findings: list[Finding]) -> Trust:
    """The worst of the findings."""
    severities = {finding.severity for finding in findings}
    if "unreliable" in severities:
        return "unreliable"
    return "suspect" if severities else "trusted"
