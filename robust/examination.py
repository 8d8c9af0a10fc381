"""Cheap checks of a model on a few of its samples, before passes are spent on attacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from robust import diagnose
from robust.diagnose import checks
from robust.failures import naming_failures
from robust.in_front import Normalization
from robust.sources import Samples
from robust.target import Target
from robust.timing import pick_micro_batch

State = Literal["ok", "look", "bad"]
_SAMPLES: Final = 256
_BATCHES: Final = (1, 7, 32, 256)
_FEWER: Final = 4  # mistakes, and half of them at least, that another normalisation must save to be named
_MANY: Final = 0.05  # of the samples: that many mistakes saved are a flaw
_USUAL: Final[dict[str, Normalization]] = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "MNIST's": (0.1307, 0.3081),
    "-1 to 1": (0.5, 0.5),
    "0 to 255": (0.0, 1 / 255),
    "none": (0.0, 1.0),
}


@dataclass(frozen=True)
class Line:
    """One thing looked at.

    Args:
        what: its name.
        found: what was seen.
        state: "ok"; "look": worth a look; "bad": the verdict of an evaluation would not be trusted.
        advice: what to do, where there is anything.
    """

    what: str
    found: str
    state: State = "ok"
    advice: str = ""


@dataclass
class _Patient:
    target: Target
    x: Tensor
    y: Tensor
    lines: list[Line] = field(default_factory=list)


def examine(target: Target, samples: Samples, *, seed: int = 0) -> list[Line]:
    """Look at a model: outputs, determinism, gradients, normalisation, accuracy, types, memory.

    Args:
        target: the model with its preprocessing.
        samples: what it is for; 256 of them are used at most.
        seed: of their choice.

    Raises:
        ModelError: it fails on the samples, or gives anything but (N, C) floats.
    """
    few = samples.limit(min(len(samples), _SAMPLES), seed)
    with target.sparing_randomness(), target, naming_failures():
        x = few.rows(slice(None)).clamp(*target.bounds).to(target.device)
        patient = _Patient(target, x, few.y.to(target.device))
        head = slice(0, diagnose.PREFLIGHT_SAMPLES)
        seen = diagnose.preflight(target, patient.x[head], patient.y[head])
        findings = {finding.check: finding for finding in seen.findings}
        for what, names, good in _QUESTIONS:
            hits = [findings.pop(name) for name in names if name in findings]
            if not hits:
                patient.lines.append(Line(what, good))
            for hit in hits:
                patient.lines.append(_line(what, hit))
        patient.lines += [_line("other", finding) for finding in findings.values()]
        if seen.probabilities:
            target.take_for_probabilities()
        _accuracy(patient, few, randomized=any(f.check == checks.RANDOMIZED.name for f in seen.findings))
        _normalization(patient)
        _types(patient)
        _memory(patient, differentiable=seen.differentiable)
    return patient.lines


# What is asked, the checks that answer, and what is said where none of them fires.
_QUESTIONS: Final = (
    ("outputs", (checks.PROBABILITIES.name,), "logits"),
    ("randomness", (checks.RANDOMIZED.name,), "the same input gives the same logits"),
    ("batch", (checks.BATCH_DEPENDENT.name,), "a sample's logits do not depend on its batch"),
    (
        "gradients",
        (
            checks.DETACHED.name,
            checks.ZERO_GRADIENT.name,
            checks.LOGIT_SCALE.name,
            checks.GRADIENT_MODEL.name,
        ),
        "reach the input for nearly every sample",
    ),
    ("surface", (checks.UNSTABLE_LOSS.name,), "margins move little under little noise"),
    ("inference", (checks.DYNAMIC.name,), "forward does not optimise"),
)


def _line(what: str, finding: Any) -> Line:
    found, _, advice = finding.message.partition("; ")
    return Line(what, found, "bad" if finding.severity == "unreliable" else "look", advice)


@torch.no_grad()
def _predict(target: Target, x: Tensor, batch: int) -> Tensor:
    return torch.cat([target.logits(part).argmax(1) for part in x.split(batch)])


def _accuracy(patient: _Patient, samples: Samples, *, randomized: bool) -> None:
    """Clean accuracy, at several batch sizes."""
    target, x, y = patient.target, patient.x, patient.y
    sizes = [size for size in _BATCHES if size < len(x)] + [len(x)]
    with torch.no_grad():
        classes = target.logits(x[:1]).shape[1]
    predictions = {size: _predict(target, x[:64] if size == 1 else x, size) for size in sizes}
    rates = {size: float((p == y[: len(p)]).float().mean()) for size, p in predictions.items()}
    whole = predictions[len(x)]
    moved = max(int((p != whole[: len(p)]).sum()) for p in predictions.values())
    right = int((whole == y).sum())
    text = f"{right} of {len(x)} ({right / len(x):.1%}), {classes} classes"
    state, advice = _judge_accuracy(right / len(x), classes, samples)
    patient.lines.append(Line("clean accuracy", text, state, advice))
    by_batch = ", ".join(
        f"{size}: {rate:.1%}" + (f" of the first {n}" if (n := len(predictions[size])) < len(x) else "")
        for size, rate in rates.items()
    )
    found = f"{by_batch}; {moved} predictions differ"
    advice = "" if moved == 0 else "the verdict would move with the batch: use eval mode's stored statistics"
    if moved and randomized:  # the same samples in the same batch would differ too
        found, advice = f"{found}, as they may by the draws alone", ""
    patient.lines.append(Line("accuracy by batch", found, "look" if advice else "ok", advice))


def near_chance(accuracy: float, classes: int) -> bool:
    """Whether a clean accuracy is one that a guess might have."""
    return accuracy <= 2 / classes and not (classes == 2 and accuracy > 0.6)


def _judge_accuracy(rate: float, classes: int, samples: Samples) -> tuple[State, str]:
    if not near_chance(rate, classes):
        return "ok", ""
    named = f" (class 0 is {samples.class_names[0]!r})" if samples.class_names else ""
    return (
        "bad",
        "near chance: are these the model's weights (--weights), its normalisation (--normalize) and its numbering "
        f"of the classes{named}?",
    )


def _normalization(patient: _Patient) -> None:
    """Does one of the usual normalisations serve the model better than its own?"""
    target, x, y = patient.target, patient.x, patient.y
    declared = f"declared: {target.preprocessing}" if target.preprocessing is not None else None
    found = declared or ("none" if target.normalize is None else f"given: {target.normalize}")
    own = least = int((_predict(target, x, len(x)) != y).sum())
    name = ""
    for label, moments in _USUAL.items():
        channels = len(moments[0]) if isinstance(moments[0], tuple) else 1
        if x.dim() != 4 or channels not in (1, x.shape[1]):
            continue
        other = Target(
            target.model, normalize=moments, bounds=target.bounds, device=target.device,
            probabilities=target.probabilities, size=target.size,
        )  # fmt: skip
        wrong = int((_predict(other, x, len(x)) != y).sum())
        if wrong < least:
            least, name = wrong, label
    if own - least < _FEWER or least > own / 2:
        patient.lines.append(Line("normalisation", found))
        return
    mean, std = (_numbers(part) for part in _USUAL[name])
    seen = f"{found}; {own} of {len(x)} are wrong, but {least} with {name}"
    state: State = "bad" if own - least > _MANY * len(x) else "look"
    patient.lines.append(Line("normalisation", seen, state, f"give --normalize {mean} {std}"))


def _numbers(values: Any) -> str:
    return ",".join(f"{v:.4g}" for v in (values if isinstance(values, tuple) else (values,)))


def _types(patient: _Patient) -> None:
    counts: Counter[str] = Counter()
    for tensor in [*patient.target.model.parameters(), *patient.target.model.buffers()]:
        if tensor.is_floating_point():
            counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    total = sum(counts.values())
    found = ", ".join(f"{name} {count:,}" for name, count in counts.most_common()) or "no float weights"
    plain = total == counts.get("float32", 0)
    advice = "" if plain else "verdicts are judged by the model as it is; load it in float32 to judge exactly"
    patient.lines.append(Line("weights", found, "ok" if plain else "look", advice))


def _memory(patient: _Patient, *, differentiable: bool) -> None:
    """Bytes that a sample's forward and gradient pass hold, and the micro-batch chosen by measurement."""
    target, x = patient.target, patient.x
    n = min(len(x), 8)
    row = x[:1].numel() * x.element_size()
    held = row + (
        _saved_bytes(target.model, lambda: target.logits(x[:n].detach().requires_grad_())) / n
        if differentiable
        else 0
    )
    micro_batch = pick_micro_batch(
        target, lambda size: x[torch.arange(size, device=x.device) % len(x)], max(len(x), _SAMPLES)
    )
    patient.lines.append(Line("memory per sample", f"{held / 2**20:.2f} MiB (input {row / 2**20:.2f} MiB)"))
    patient.lines.append(
        Line(
            "micro-batch",
            f"{micro_batch} by measurement, {micro_batch * held / 2**20:.0f} MiB on {target.device}",
        )
    )


def _saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass, the model's own not counted."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()).data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = forward()
    total = sum(sizes.values())
    del out
    return total
