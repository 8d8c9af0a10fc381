"""An evaluation in parts: ranges of the samples are attacked apart, then joined to one report.

A sample's verdict does not depend on who else is attacked, so parts may be computed in any order and
place. `robust.evaluate` is the case of one part.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import robust
from robust import diagnose, run_checks
from robust.bpda import BPDA
from robust.diagnose import Finding
from robust.entries import total
from robust.eot import EOT
from robust.errors import InputError
from robust.failures import naming_failures
from robust.report import Report
from robust.run import Run, Settings
from robust.sources import Samples, model_sha256
from robust.suites import Stage, version_of
from robust.target import Target
from robust.threat import Threat

_BEFORE, _AFTER = -1, 1 << 30  # ranks of what was found before the first attack, and after the last


@dataclass(frozen=True)
class Plan:
    """What is to be done to every sample, whichever part it is in."""

    threat: Threat
    suite: str  # its name
    stages: Sequence[Stage]
    cascade: bool = True
    full_checks: bool = False  # also those that search at length; of the part that begins at 0
    minimize: bool = False  # attacks go on after their first success, and all see every sample


@dataclass
class Part:
    """What attacking the samples at `rows` gave; the fields are those of Report.

    Attributes:
        rows: positions among the samples, [start, stop).
        findings: with the rank at which each was made, so that parts can be put in one order.
        correct: samples classified correctly before any attack.
    """

    rows: tuple[int, int]
    verdicts: pd.DataFrame
    attacks: list[dict[str, Any]]
    findings: list[tuple[int, Finding]]
    correct: int
    checks: dict[str, float]
    model: dict[str, Any]
    device: str
    engine: str
    seconds: float
    failures: list[str]
    eot: dict[str, Any] | None = None
    draws: int = 1  # passes of the model that an answer to a search takes
    examples: dict[str, Tensor] | None = None


class PartInterrupted(KeyboardInterrupt):
    """Ctrl-C during an attack. `part`: what was found; samples still standing then count as errors."""

    def __init__(self, part: Part) -> None:
        super().__init__("interrupted during an attack")
        self.part = part


def attack_part(
    target: Target,
    samples: Samples,
    plan: Plan,
    settings: Settings,
    rows: range | None = None,
    near: Tensor | None = None,
) -> Part:
    """Attack the samples at `rows` (None: all).

    The model as a whole is looked at on the first samples of all; the part that begins at 0 counts that.

    Args:
        near: an adversarial point beyond the threat of every sample at `rows`, (N, ...), where searches begin
            that begin at no random point; None: at the samples themselves.

    Raises:
        InputError: an empty range, or one that leaves the samples.
        PartInterrupted: Ctrl-C during an attack.
    """
    rows = range(len(samples)) if rows is None else rows
    if not 0 <= rows.start < rows.stop <= len(samples):
        raise InputError(f"rows: expected a range within the {len(samples)} samples, got {rows}")
    mine = samples if len(rows) == len(samples) else samples.take(slice(rows.start, rows.stop))
    start = time.perf_counter()
    with target.sparing_randomness(), target, naming_failures(on=False):
        run = Run(
            target,
            mine,
            plan.threat,
            replace(settings, minimize=plan.minimize),
            samples,
            near,
            plan.stages if plan.cascade else (),
        )
        with naming_failures():
            run.look()
        if rows.start:
            run.checks |= {"forwards": 0, "backwards": 0}
        try:
            for stage in plan.stages:
                run.attack(stage, cascade=plan.cascade)
                if run.interrupted:
                    break
        except KeyboardInterrupt:  # between two searches
            run.interrupted = True
        if run.interrupted:
            run.stop()
        run.forget_breaks()
        before_probes = len(run.findings)
        if not run.interrupted:
            try:
                before_probes = run_checks.after_attacks(
                    run, plan.stages, whole=True, first=not rows.start, full=plan.full_checks
                )
            except KeyboardInterrupt:
                run.stop_checks()
    part = part_of(run, rows, describe(target), time.perf_counter() - start, before_probes)
    if run.interrupted:
        raise PartInterrupted(part)
    return part


def part_of(run: Run, rows: range, model: dict[str, Any], seconds: float, before_probes: int) -> Part:
    """What a run of the samples at `rows` has found so far.

    Args:
        model: from `describe`.
        seconds: that the run took.
        before_probes: how many of its findings were made before the probes, if they ran.
    """
    target = run.target
    return Part(
        rows=(rows.start, rows.stop),
        verdicts=run.table(),
        attacks=run.entries,
        findings=[
            (_AFTER if i >= before_probes else run.since.get(found.check, _BEFORE), found)
            for i, found in enumerate(run.findings)
        ],
        correct=run.correct,
        checks=run.checks,
        model=model,
        device=_device_name(target.device),
        engine=run.engine,
        seconds=seconds,
        failures=run.failures,
        eot={"samples": target.samples, "vote": target.vote} if isinstance(target, EOT) else None,
        draws=target.searcher().draws,
        examples=run.examples() if run.settings.keep_examples else None,
    )


def join(
    parts: Sequence[Part],
    plan: Plan,
    *,
    data: Mapping[str, Any],
    n: int,
    seed: int = 0,
    model_spec: str | None = None,
    stopped: bool = False,
) -> Report:
    """The report of parts that together cover the samples.

    Args:
        parts: in any order.
        plan: that they were made by.
        data: {"spec", "sha256"} of the samples, all of them.
        n: how many they are.
        seed: that the parts were made with.
        model_spec: name of the model.
        stopped: parts may lack the last attacks; what nothing broke there counts as survived.

    Raises:
        InputError: parts that miss samples, overlap, or are of different models or attacks.
    """
    parts = sorted(parts, key=lambda part: part.rows)
    _check_cover(parts, n, stopped=stopped)
    cascade = plan.cascade and not plan.minimize
    attacks = [
        total([entry for entry in entries if entry is not None])
        for entries in zip_longest(*(part.attacks for part in parts))
    ]
    checks = {key: sum(part.checks.get(key, 0) for part in parts) for key in parts[0].checks}
    reviewed = diagnose.review(attacks, sum(part.correct for part in parts), cascade=cascade, checks=checks)
    findings = list(_in_order(parts))
    told = {finding.check for finding in findings}
    findings += [finding for finding in reviewed if finding.check not in told]
    verdicts = pd.concat([part.verdicts for part in parts], ignore_index=True)
    whole = all(_attacked_to_the_end(part, plan) for part in parts)
    detached = any(finding.check == diagnose.DETACHED.name for finding in findings)
    if whole and not plan.minimize:  # of which radii below eps are read, too
        findings = diagnose.spared(findings, verdicts, checks)
    if whole and not detached and plan.threat.family is None:
        findings += diagnose.review_passes(verdicts, parts[0].draws)
        if diagnose.verdict(findings) != "unreliable":
            findings += diagnose.review_access(verdicts, attacks)
    return Report(
        threat=plan.threat,
        suite=plan.suite,
        suite_version=version_of(plan.suite),
        seed=seed,
        verdicts=verdicts,
        attacks=attacks,
        trust=diagnose.verdict(findings),
        findings=[asdict(finding) for finding in findings],
        checks=checks,
        model={"spec": model_spec or "memory", **parts[0].model},
        data=dict(data),
        device=" + ".join(sorted({part.device for part in parts})),
        engine=" + ".join(sorted({part.engine for part in parts})),
        versions=_versions(attacks),
        seconds=sum(part.seconds for part in parts),
        cascade=cascade,
        minimize=plan.minimize,
        eot=parts[0].eot,
        failures=[failure for part in parts for failure in part.failures],
        examples=_all_examples(parts),
    )


def _check_cover(parts: Sequence[Part], n: int, *, stopped: bool) -> None:
    ends = [0, *(part.rows[1] for part in parts)]
    if [part.rows[0] for part in parts] != ends[:-1] or ends[-1] != n:
        ranges = ", ".join(f"[{a}, {b})" for a, b in (part.rows for part in parts))
        raise InputError(f"parts: expected ranges that cover the {n} samples once, got {ranges or 'none'}")
    lists = [[_written([entry["name"], entry["parameters"]]) for entry in part.attacks] for part in parts]
    longest = max(lists, key=len)
    same = {
        "model": len({_written(part.model) for part in parts}) == 1,
        "attacks": all(own == (longest[: len(own)] if stopped else longest) for own in lists),
    }
    for key, holds in same.items():
        if not holds:
            raise InputError(f"parts: they differ in {key}; join only what one plan made")


def _written(content: object) -> str:
    """The content as JSON: the same for a part that was kept in a file, where tuples are lists, as for a fresh one."""
    return json.dumps(content, sort_keys=True, default=str)


def _attacked_to_the_end(part: Part, plan: Plan) -> bool:
    return len(part.attacks) == len(plan.stages) or not (part.verdicts["status"] == "survived").any()


def _in_order(parts: Sequence[Part]) -> list[Finding]:
    """Every check that fired, once, as one run over all samples would have noted them."""
    found: dict[str, Finding] = {}
    for _, finding in sorted((f for part in parts for f in part.findings), key=lambda ranked: ranked[0]):
        found.setdefault(finding.check, finding)
    return list(found.values())


def _all_examples(parts: Sequence[Part]) -> dict[str, Tensor] | None:
    kept = [part.examples for part in parts if part.examples is not None]
    if len(kept) == 1:
        return kept[0]  # as it is, which may be on disk
    return {key: torch.cat([examples[key] for examples in kept]) for key in kept[0]} if kept else None


def describe(target: Target) -> dict[str, Any]:
    """The model in a report, without its name."""
    model = target.model
    behind = target.inner if isinstance(target, EOT) else target
    moments = behind.normalize_behind if isinstance(behind, BPDA) else target.normalize
    return {
        "sha256": model_sha256(model),
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "normalize": moments and [torch.as_tensor(part).reshape(-1).tolist() for part in moments],
        "preprocess": _preprocess(target),
    }


def _preprocess(target: Target) -> dict[str, Any] | None:
    """What images go through before the normalisation."""
    declared = target.preprocessing
    size = target.size or (None if declared is None else declared.size)
    if size is None:
        return None
    more = {} if declared is None else {"resize": declared.resize, "interpolation": declared.interpolation}
    listed = {key: list(v) if isinstance(v, tuple) else v for key, v in more.items()}
    return {"size": list(size), **listed}


def _device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu ({torch.get_num_threads()} threads)"
    )


def _versions(attacks: list[dict[str, Any]]) -> dict[str, str]:
    """Of this package and of every library whose attacks were used."""
    libraries = dict(entry["source"].split(" ", 1) for entry in attacks if " " in entry["source"])
    own = {"robust": robust.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {**own, **libraries}
