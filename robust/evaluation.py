"""From a model, data and a threat to a verdict per sample."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, Literal, get_args

import torch
from torch import nn

import robust
from robust import diagnose as checks
from robust.attacks import Attack
from robust.eot import EOT, Vote
from robust.errors import InputError
from robust.report import Report
from robust.run import Precision, Progress, Run, Settings
from robust.sources import as_samples, model_sha256
from robust.suites import resolve
from robust.target import Normalization, Target
from robust.threat import Threat

Suite = str | Attack | Mapping[str, Any] | Iterable[str | Attack | Mapping[str, Any]]

Diagnose = Literal["standard", "full"]


def evaluate(
    model: nn.Module | Target,
    data: Any,
    *,
    threat: str | Threat,
    suite: Suite = "standard",
    normalize: Normalization | None = None,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    batch_size: int | Literal["auto"] = "auto",
    precision: Precision = "auto",
    diagnose: Diagnose = "standard",
    eot: int | None = None,
    vote: Vote = "expectation",
    cascade: bool = True,
    keep_examples: bool = False,
    model_spec: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Attack a classifier and say, sample by sample, what happened.

    A sample's verdict depends on the model, the sample, the threat, the suite and the seed; not on
    batch size, order or what else is in the data. Every break is re-measured on the plain model.

    Args:
        model: module giving logits (N, C), or a Target. It is handed back as it was.
        data: (x, y) with x float in `bounds` or uint8, (N, ...), and y integers (N,); a Samples, Dataset,
            DataLoader, or the name of a source.
        threat: "linf:8/255", or robust.Linf("8/255") and its kin.
        suite: suite or attack name, an attack, or a list of attacks.
        normalize: (mean, std) that the model expects, applied inside the Target.
        bounds: lowest and highest valid input value; (0, 1) unless the threat or target says otherwise.
        seed: of all random draws.
        device: "auto", "cpu", "cuda", "cuda:1".
        batch_size: rows a pass takes at most; "auto" measures.
        precision: of the search: "float32" runs the model as it is; "auto" takes a copy with folded batch
            norm or channels_last where that is measured to be faster and to agree; "bfloat16" searches in
            half precision. Judging is always the model itself in float32.
        diagnose: "standard" runs the checks that cost little; "full" all of them, some with searches of their
            own on up to 64 samples (see `robust list checks`).
        eot: draws of a randomised model that make up an answer (see `robust.EOT`); None: one.
        vote: of those draws: "expectation" or "majority".
        cascade: let each attack see only the survivors of those before it. Without, every attack sees
            every correctly classified sample, and the report has each one's robust accuracy alone.
        keep_examples: keep the audited adversarial examples in the report.
        model_spec: name of the model for the report.
        progress: called with a Progress as work is done.

    Raises:
        InputError and its kin: see robust.errors.
    """
    if precision not in get_args(Precision):
        raise InputError(f"precision: expected 'auto', 'float32' or 'bfloat16', got {precision!r}")
    if diagnose not in get_args(Diagnose):
        raise InputError(f"diagnose: expected 'standard' or 'full', got {diagnose!r}")
    if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size >= 1):
        raise InputError(f"batch_size: expected 'auto' or a positive integer, got {batch_size!r}")
    target = _as_target(model, threat, normalize, bounds, device)
    if eot is None and vote != "expectation":
        raise InputError(f"vote: needs eot, the number of draws that vote {vote!r} is taken over")
    if eot is not None:
        target = EOT(target, eot, vote=vote, seed=seed)
    threat = Threat.parse(threat, target.bounds)
    name, stages = resolve(suite, threat)
    samples = as_samples(data, bounds=threat.bounds)
    start = time.perf_counter()
    with target:
        micro_batch = None if batch_size == "auto" else batch_size
        run = Run(target, samples, threat, Settings(seed, micro_batch, precision, keep_examples, progress))
        run.look()
        for stage in stages:
            run.attack(stage, cascade=cascade)
        run.probe(stages, full=diagnose == "full")
    findings = [*run.findings, *checks.review(run.entries, run.correct, cascade=cascade)]
    return Report(
        threat=threat,
        suite=name,
        seed=seed,
        verdicts=run.table(),
        attacks=run.entries,
        trust=checks.verdict(findings),
        findings=[asdict(finding) for finding in findings],
        checks=run.checks,
        model=_describe(target, model_spec),
        data={"spec": samples.spec, "sha256": samples.sha256},
        device=_device_name(target.device),
        engine=run.engine,
        versions=_versions(),
        seconds=time.perf_counter() - start,
        cascade=cascade,
        eot={"samples": target.samples, "vote": target.vote} if isinstance(target, EOT) else None,
        failures=run.failures,
        examples=run.examples() if keep_examples else None,
    )


def assert_robust(
    model: nn.Module | Target, data: Any, *, threat: str | Threat, at_least: float, **options: Any
) -> Report:
    """Evaluate, and raise AssertionError with the evidence unless robust accuracy >= `at_least`.

    Args:
        at_least: fraction in [0, 1].
        options: as for `evaluate`.

    Returns:
        The report, when the assertion holds.
    """
    if not 0 <= at_least <= 1:
        raise InputError(f"at_least: expected a fraction in [0, 1], got {at_least!r}")
    report = evaluate(model, data, threat=threat, **options)
    if report.statuses["error"]:
        raise AssertionError(f"undecided: {report.statuses['error']} samples ended in an error\n{report}")
    if report.robust_accuracy < at_least:
        best = max(report.attacks, key=lambda entry: int(entry["broke"]))
        raise AssertionError(
            f"robust accuracy below {at_least:.1%}\n{report}\nbroke most: {best['label']} ({best['broke']} samples)"
        )
    return report


def _as_target(
    model: nn.Module | Target,
    threat: str | Threat,
    normalize: Normalization | None,
    bounds: tuple[float, float] | None,
    device: str | torch.device,
) -> Target:
    if isinstance(model, Target):
        if normalize is not None:
            raise InputError("normalize: the model is a Target, which has its own; give it there")
        return model
    if bounds is None:
        bounds = threat.bounds if isinstance(threat, Threat) else (0.0, 1.0)
    return Target(model, normalize=normalize, bounds=bounds, device=device)


def _describe(target: Target, spec: str | None) -> dict[str, Any]:
    model, moments = target.model, target.normalize
    return {
        "spec": spec or "memory",
        "sha256": model_sha256(model),
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "normalize": moments and [torch.as_tensor(part).reshape(-1).tolist() for part in moments],
    }


def _device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu ({torch.get_num_threads()} threads)"
    )


def _versions() -> dict[str, str]:
    return {"robust": robust.__version__, "torch": torch.__version__, "python": platform.python_version()}
