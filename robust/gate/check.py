"""Is a model robust enough? The gate, as a function for any test framework."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import nn

from robust.default_device import books_on_the_cpu
from robust.eot import Vote
from robust.errors import DataError, InputError, ModelError
from robust.evaluation import Diagnose, Suite, as_target, evaluate, in_expectation, settings_of
from robust.gate.ending import Ending, told_of_errors
from robust.gate.options import Gate, check_values
from robust.gate.plan import looks
from robust.gate.portions import Search, rule_of, search, shuffled
from robust.in_front import Normalization
from robust.parts import Plan, join
from robust.report import STOPPED, Report
from robust.run import Precision
from robust.sources import Samples, as_samples
from robust.suites import resolve
from robust.target import Target
from robust.threat import Threat
from robust.whole_box import tell, whole_box


@dataclass(frozen=True)
class GateResult:
    """What a gate decided, and on what grounds.

    Attributes:
        outcome: "pass", "fail", "undecided", or "error" where samples ended in one.
        reason: why, in a sentence.
        report: verdicts of the samples that were used, with the adversarial examples.
        samples: these samples.
        at_least, confidence, gate: what was asked for.
        interval: robust accuracies of all the data that are still possible ("sequential"), or the
            binomial interval of the rate behind the data ("interval", "fixed").
        population: samples in the data.
        complete: False where the gate failed before the suite was through: the robust accuracy is then
            an upper bound.
    """

    outcome: Ending
    reason: str
    report: Report
    samples: Samples
    at_least: float
    confidence: float
    gate: Gate
    interval: tuple[float, float]
    population: int
    complete: bool

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"GateResult({self.outcome!r}, {self.reason!r}, {self.report.n} of {self.population} samples, "
            f"interval [{low:.4f}, {high:.4f}])"
        )

    @property
    def errors(self) -> int:
        """Samples that ended in an error: never survivors, and no gate passes with one."""
        return self.report.statuses["error"]


@books_on_the_cpu
def check(
    model: nn.Module | Target,
    data: Any,
    *,
    threat: str | Threat,
    at_least: float,
    suite: Suite = "standard",
    gate: Gate = "sequential",
    confidence: float = 0.95,
    max_samples: int | None = None,
    strict: bool = True,
    require_trust: bool = True,
    normalize: Normalization | None = None,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    batch_size: int | Literal["auto"] = "auto",
    precision: Precision = "auto",
    diagnose: Diagnose = "standard",
    eot: int | None = None,
    vote: Vote = "expectation",
    model_spec: str | None = None,
) -> GateResult:
    """Attack as many samples as it takes to say whether the robust accuracy is at least `at_least`.

    Samples are used in a random order that the seed decides, in growing portions, and each portion runs
    through the suite's attacks from the cheapest on; the gate looks after each. A sample counts as a
    survivor only after the whole suite.

    Args:
        at_least: the robust accuracy asked for, a fraction within (0, 1).
        gate: "sequential" decides about this data with as few samples as it can, and errs either way with
            a probability of 1 - confidence at most (see robust.stats.SequentialTest); "interval" attacks
            max_samples and decides where their exact binomial interval lies on one side of at_least;
            "fixed" compares their robust accuracy with at_least, chance or not.
        confidence: of the decision, within (0, 1).
        max_samples: most samples to use; None for all.
        strict: max_samples must not exceed the number of samples.
        require_trust: a pass whose verdict is "unreliable" is undecided instead.
        model, data, threat, suite, normalize, bounds, seed, device, batch_size, precision, diagnose, eot,
            vote, model_spec: as for `evaluate`.

    Raises:
        InputError and its kin: see robust.errors.
    """
    check_values({"at_least": at_least, "confidence": confidence, "max_samples": max_samples, "gate": gate})
    _on_one_device(model)
    if diagnose not in get_args(Diagnose):
        raise InputError(f"diagnose: expected 'standard' or 'full', got {diagnose!r}")
    settings = settings_of(seed, batch_size, precision, keep_examples=True)
    seed = settings.seed
    target = in_expectation(as_target(model, threat, normalize, bounds, device), eot, vote, seed)
    threat = Threat.parse(threat, target.bounds)
    name, stages = resolve(suite, threat)
    samples = as_samples(data, bounds=threat.bounds)
    tell(whole_box(threat, samples.x[0].numel()))
    limit = _limit(max_samples, len(samples), strict=strict)
    rule = rule_of(gate, at_least, len(samples), confidence)
    order = shuffled(samples, seed, limit)
    plan = Plan(threat, name, stages, full_checks=diagnose == "full")
    sizes = looks(limit) if gate == "sequential" else [limit]
    with target.sparing_randomness(), target:
        found = search(target, order, plan, settings, sizes=sizes, rule=rule)
    used = order.take(slice(0, found.n))
    report = join(
        found.parts,
        plan if found.complete else replace(plan, suite=f"{name}{STOPPED}"),
        data=used.about,
        n=found.n,
        seed=seed,
        model_spec=model_spec,
        stopped=True,
    )
    report.verdicts = report.verdicts.sort_values("sample_id", ignore_index=True)
    _note_source(report, samples)
    low, high = rule.interval(found.standing, found.n)
    outcome, reason = _explain(found, report, at_least, require_trust=require_trust)
    return GateResult(
        outcome=outcome,
        reason=reason,
        report=report,
        samples=used,
        at_least=at_least,
        confidence=confidence,
        gate=gate,
        interval=(low if found.complete else 0.0, high),
        population=len(samples),
        complete=found.complete,
    )


def assert_robust(
    model: nn.Module | Target, data: Any, *, threat: str | Threat, at_least: float, **options: Any
) -> Report:
    """Raise AssertionError with the evidence unless the robust accuracy is shown to be >= `at_least`.

    Undecided is not robust, nor is a sample in error: these raise too, and the message says what is missing.

    Args:
        model, data, threat: as for `robust.evaluate`.
        at_least: fraction within (0, 1).
        options: as for `robust.gate.check.check`: suite, gate, confidence, max_samples, seed, ...

    Returns:
        The report, when the assertion holds.

    Raises:
        AssertionError: it is not shown; InputError and its kin: as for `robust.evaluate`.
    """
    from robust.gate.evidence import message

    __tracebackhide__ = True  # pytest then shows the caller's line and the evidence, not these
    result = check(model, data, threat=threat, at_least=at_least, **options)
    if result.outcome != "pass":
        shown = {"threat": str(threat), "at_least": at_least, "seed": 0, **options}
        call = ", ".join(f"{key}={value!r}" for key, value in shown.items())
        raise AssertionError(message(result, replay=f"robust.assert_robust(model, data, {call})"))
    return result.report


@books_on_the_cpu
def evaluate_some(
    model: nn.Module | Target,
    data: Any,
    *,
    threat: str | Threat,
    max_samples: int | None = None,
    strict: bool = True,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    **options: Any,
) -> Report:
    """`evaluate` on the first `max_samples` of the order that gates use, put back in order of their ids."""
    _on_one_device(model)
    if bounds is None:
        within = model if isinstance(model, Target) else threat
        bounds = within.bounds if isinstance(within, Target | Threat) else (0.0, 1.0)
    samples = as_samples(data, bounds=bounds)
    limit = _limit(max_samples, len(samples), strict=strict)
    chosen = shuffled(samples, seed, limit)
    chosen = chosen.take(chosen.ids.argsort(stable=True))
    report = evaluate(model, chosen, threat=threat, bounds=bounds, seed=seed, **options)
    _note_source(report, samples)
    return report


def _note_source(report: Report, samples: Samples) -> None:
    """The hash of all the data, of which the samples used were drawn: what a baseline is for."""
    report.data = {**report.data, "population": len(samples), "population_sha256": samples.sha256}


def _limit(max_samples: int | None, available: int, *, strict: bool) -> int:
    if max_samples is None:
        return available
    if strict and max_samples > available:
        raise DataError(
            f"max_samples: {max_samples} asked for, but the data has {available} samples; "
            "give more data, or None for all there are"
        )
    return min(max_samples, available)


def _on_one_device(model: object) -> None:
    module = model.model if isinstance(model, Target) else model
    if not isinstance(module, nn.Module):
        return  # the target says what it expects
    tensors = [*module.named_parameters(), *module.named_buffers()]
    if empty := [name for name, tensor in tensors if tensor.is_meta]:
        raise ModelError(
            f"model: {empty[0]} is on the meta device and holds no numbers; "
            "load the weights (model.to_empty(device=...), then load_state_dict) before testing it"
        )
    homes = sorted({str(tensor.device) for _, tensor in tensors})
    if len(homes) > 1:
        raise ModelError(
            f"model: its tensors are on {' and '.join(homes)}; move all to one device with model.to(...)"
        )


def _explain(found: Search, report: Report, at_least: float, *, require_trust: bool) -> tuple[Ending, str]:
    asked = f"{at_least:.1%}"
    if found.outcome == "fail":
        return "fail", f"robust accuracy is below {asked}"
    if errors := told_of_errors(report):
        return "error", errors
    if found.outcome == "undecided":
        return "undecided", f"{report.n} samples do not tell whether robust accuracy is at least {asked}"
    if require_trust and report.trust == "unreliable":
        named = ", ".join(finding["check"] for finding in report.findings)
        return "undecided", f"at least {asked} withstood the attacks, but the verdict is unreliable ({named})"
    return "pass", f"robust accuracy is at least {asked}"
