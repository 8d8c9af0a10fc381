"""From a model, data and a threat to a verdict per sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from robust.attacks import Attack
from robust.default_device import books_on_the_cpu
from robust.eot import EOT, Vote
from robust.errors import InputError
from robust.in_front import Normalization
from robust.parts import PartInterrupted, Plan, attack_part, join
from robust.quantized import attackable
from robust.report import Report
from robust.rng import checked_seed
from robust.run import Precision, Progress, Settings
from robust.sources import as_samples
from robust.suites import resolve, resolve_minimizing
from robust.target import Target, check_given
from robust.threat import Threat
from robust.whole_box import tell, whole_box

Suite = str | Attack | Mapping[str, Any] | Iterable[str | Attack | Mapping[str, Any]]

Diagnose = Literal["standard", "full"]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during an attack. `report`: what was found; samples still standing then count as errors."""

    def __init__(self, report: Report) -> None:
        super().__init__("interrupted during an attack")
        self.report = report


@books_on_the_cpu
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
    minimize: bool = False,
    groups: Any = None,
    model_spec: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Attack a classifier and say, sample by sample, what happened.

    A sample's verdict depends on the model, the sample, the threat, the suite and the seed; not on
    batch size, order or what else is in the data. Every break is re-measured on the plain model.

    Args:
        model: module giving logits (N, C), or a Target. It is handed back as it was, but for what its own passes change.
        data: (x, y) with x float in `bounds` or uint8, (N, ...), and y integers (N,); a Samples, Dataset,
            DataLoader, or the name of a source.
        threat: "linf:8/255", or robust.Linf("8/255") and its kin. An eps that covers the whole box, such as a
            forgotten /255, is logged as a warning of the logger "robust".
        suite: suite or attack name, an attack, or a list of attacks.
        normalize: (mean, std) that the model expects, applied inside the Target.
        bounds: lowest and highest valid input value; (0, 1) unless the threat or target says otherwise. A target's
            are its own, and a threat's, unless they are (0, 1), must be the same.
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
        minimize: let every attack go on, on every correctly classified sample, for its nearest adversarial
            point: one run of a minimum-norm attack then gives `report.curve`. The verdicts stay those at eps.
        groups: N labels (numbers or text), such as who took the picture: `report.groups` and the record then
            give the accuracy of each; by default those that the data bring.
        model_spec: name of the model for the report.
        progress: called with a Progress as work is done.

    Raises:
        InputError and its kin: see robust.errors.
        Interrupted: Ctrl-C during an attack; its `report` keeps what was found until then.
    """
    settings = settings_of(seed, batch_size, precision, keep_examples=keep_examples, progress=progress)
    for option, value in (("cascade", cascade), ("keep_examples", keep_examples), ("minimize", minimize)):
        if not isinstance(value, bool | np.bool_):
            raise InputError(f"{option}: expected True or False, got {value!r}")
    if diagnose not in get_args(Diagnose):
        raise InputError(f"diagnose: expected 'standard' or 'full', got {diagnose!r}")
    seed = settings.seed
    target = in_expectation(as_target(model, threat, normalize, bounds, device), eot, vote, seed)
    threat = Threat.parse(threat, target.bounds)
    name, stages = (resolve_minimizing if minimize else resolve)(suite, threat)
    samples = as_samples(data, bounds=threat.bounds)
    if groups is not None:
        samples = samples.grouped(groups)
    tell(whole_box(threat, samples.x[0].numel()))
    plan = Plan(threat, name, stages, cascade, full_checks=diagnose == "full", minimize=minimize)
    stopped = False
    try:
        part = attack_part(target, samples, plan, settings)
    except PartInterrupted as cut:
        part, stopped = cut.part, True
    report = join([part], plan, data=samples.about, n=len(samples), seed=seed, model_spec=model_spec)
    if stopped:
        raise Interrupted(report)
    return report


def settings_of(
    seed: int,
    batch_size: int | Literal["auto"],
    precision: Precision,
    *,
    keep_examples: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Settings:
    """Options of `evaluate`, checked, as a run takes them."""
    if precision not in get_args(Precision):
        raise InputError(f"precision: expected 'auto', 'float32' or 'bfloat16', got {precision!r}")
    counts = isinstance(batch_size, int | np.integer) and not isinstance(batch_size, bool) and batch_size >= 1
    if batch_size != "auto" and not counts:
        raise InputError(f"batch_size: expected 'auto' or a positive integer, got {batch_size!r}")
    micro_batch = None if batch_size == "auto" else int(batch_size)
    return Settings(checked_seed(seed), micro_batch, precision, keep_examples, progress)


def in_expectation(target: Target, eot: int | None, vote: Vote, seed: int) -> Target:
    """The target over `eot` draws, where any are asked for."""
    if eot is not None:
        return EOT(target, eot, vote=vote, seed=seed)
    if vote != "expectation":
        raise InputError(f"vote: needs eot, the number of draws that vote {vote!r} is taken over")
    return target


def as_target(
    model: nn.Module | Target,
    threat: str | Threat,
    normalize: Normalization | None,
    bounds: tuple[float, float] | None,
    device: str | torch.device,
) -> Target:
    """The model as a Target, or the Target that it is."""
    if isinstance(model, Target):
        check_given(model, normalize, bounds)
        return model
    if bounds is None:
        bounds = threat.bounds if isinstance(threat, Threat) else (0.0, 1.0)
    if isinstance(model, nn.Module):  # anything else the Target refuses
        model = attackable(model)
    return Target(model, normalize=normalize, bounds=bounds, device=device)
