"""What can be learnt of the model on a few samples, before the passes of the attacks are spent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from robust.diagnose import answers, checks, gradients
from robust.diagnose.answers import Preflight
from robust.eot import EOT
from robust.errors import ModelError
from robust.failures import out_of_memory
from robust.target import Target
from robust.threat import Threat

PREFLIGHT_SAMPLES: Final = 32
# What is put in autograd's place is taken out again in the reverse order.
_WATCHING: Final = threading.RLock()


def preflight(
    target: Target, x: Tensor, y: Tensor, threat: Threat | None = None, *, highest: int | None = None
) -> Preflight:
    """Look at the model on a few samples ((N, ...), (N,), on the target's device, target entered).

    Args:
        threat: gradients are looked at on its scale too; None for the finest alone.
        highest: label of all the data, where these are a few of more.

    Raises:
        ModelError: the output is not logits (N, C), or a label is not among the C classes.
    """
    declared = target.probabilities and not target.found_probabilities
    target.probabilities = declared  # what one evaluation found the next one finds again
    try:
        return _looked(target, x, y, threat, highest)
    finally:
        target.probabilities = declared or target.found_probabilities


def _looked(target: Target, x: Tensor, y: Tensor, threat: Threat | None, highest: int | None) -> Preflight:
    seen = Preflight()
    with torch.no_grad(), _autograd_calls() as calls:
        logits = answers.ask(target, x, seen)
    highest = int(y.max()) if highest is None else highest
    if highest >= logits.shape[1]:
        raise ModelError(
            f"model output: {logits.shape[1]} classes, but the labels go up to {highest}; expected labels in "
            f"[0, {logits.shape[1]}): give the model that was trained for this data"
        )
    if calls:
        seen.findings.append(checks.DYNAMIC.finding("the model optimises at inference"))
    if answers.gives_probabilities(target.inner.logits(x) if isinstance(target, EOT) else logits):
        seen.probabilities = True
        seen.findings.append(checks.PROBABILITIES.finding("the model returns probabilities"))
    answers.repeatability(target, x, logits, seen)
    if not seen.randomized:
        seen.logits = logits
        answers.company(target, x, logits, seen)
        if target.randomized:
            answers.steadiness(target, x, y, logits, seen)
        else:
            _moved(answers.stability, target, x, y, logits, seen)
    gradient = gradients.of_margin(target, x, y, logits, seen)
    if gradient is not None and not seen.randomized:
        steady = target.randomized or gradients.steady(target, x, y, seen)
        still = target.still() if isinstance(target, EOT) else target
        if still is not target:
            _moved(gradients.as_deployed, still, x, y, None, seen)
        if steady:
            _moved(gradients.uphill, still, x, y, threat, seen)
        _moved(gradients.within_threat, still, x, y, (threat, gradients.passed(gradient.abs().amax(1))), seen)
        gradients.squashed(still, x, y, seen)
        _moved(gradients.at_boundary, still, x, y, None, seen)
        if still is target:
            _moved(gradients.blocked, target, x, y, gradient, seen)
    return seen


def _moved(look: Callable[[Target, Tensor, Tensor, Any, Preflight], None], *asked: Any) -> None:
    """A look at moved samples. The model answered for the samples themselves: if it refuses these, attacks will tell whose."""
    seen: Preflight = asked[-1]
    try:
        look(*asked)
    except Exception as error:
        if out_of_memory(error):
            raise
        if checks.CRASH.name not in {finding.check for finding in seen.findings}:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            seen.findings.append(
                checks.CRASH.finding(f"the model fails on slightly moved samples ({reason})")
            )


@contextmanager
def _autograd_calls() -> Iterator[list[str]]:
    """Collect calls into autograd that this thread makes while the context is open; another thread waits to open its own."""
    calls: list[str] = []
    mine = threading.get_ident()
    with _WATCHING:
        grad, backward = torch.autograd.grad, torch.autograd.backward

        def noting(name: str, function: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                if threading.get_ident() == mine:
                    calls.append(name)
                return function(*args, **kwargs)

            return call

        torch.autograd.grad, torch.autograd.backward = noting("grad", grad), noting("backward", backward)
        try:
            yield calls
        finally:
            torch.autograd.grad, torch.autograd.backward = grad, backward
