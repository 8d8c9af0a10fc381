"""The binarisation test (Zimmermann et al. 2022, arXiv 2206.13991): can the attacks find what is known to exist?

For each sample a linear head is put on the model's last features that calls random points inside the threat
inliers and one known point on its rim an outlier. An adversarial point then exists for certain, random points
miss it, and an attack that is any good on this model must find one.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from robust.attacks.geometry import random_boundary_start, random_start
from robust.diagnose import checks
from robust.diagnose.checks import Finding
from robust.diagnose.probes import Subject
from robust.oracle import Oracle
from robust.rng import Streams
from robust.target import Target

_SAMPLES: Final = 16
_INNER: Final = 256  # random points a head is fitted to
_RIM: Final = 8  # rim points that are tried until one can be told from the inner ones
_RIDGE: Final = 1e-3
_FOUND: Final = 0.95


def binarization(subject: Subject) -> Finding | None:
    """The share of planted points that the suite's gradient attacks find."""
    features = _Features(subject.target)
    planted = found = 0
    for row in range(min(_SAMPLES, len(subject))):
        head = _plant(subject, features, row)
        if head is None:
            continue
        planted += 1
        found += _search(subject, head, row)
    if planted < 2 or found >= _FOUND * planted or planted - found < 2:
        return None
    return checks.BINARIZATION.finding(f"the suite finds {found} of {planted} planted adversarial points")


class _Features(nn.Module):
    """What the model's last linear layer is given, flattened; its logits where it has none."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target
        linear = [m for m in target.model.modules() if isinstance(m, nn.Linear)]
        self._layer = linear[-1:]  # in a list: not a part of this module

    def forward(self, x: Tensor) -> Tensor:
        if not self._layer:
            return self._target.logits(x)
        seen: list[Tensor] = []
        handle = self._layer[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            logits = self._target.logits(x)
        finally:
            handle.remove()
        return seen[-1].flatten(1) if seen and len(seen[-1]) == len(x) else logits


class _Head(nn.Module):
    """Two classes by the sign of a linear function of the features."""

    def __init__(self, features: _Features, weight: Tensor, threshold: Tensor) -> None:
        super().__init__()
        self._features = [features]
        self._weight, self._threshold = weight, threshold

    def forward(self, x: Tensor) -> Tensor:
        score = self._features[0](x) @ self._weight - self._threshold
        return torch.stack([-score, score], 1)


@torch.no_grad()
def _plant(subject: Subject, features: _Features, row: int) -> _Head | None:
    """A head that tells one rim point from the inner ones, or None where the features cannot."""
    x, ids, threat = subject.x[row : row + 1], subject.ids[row : row + 1], subject.threat

    def draws(kind: str, count: int) -> list[Streams]:
        return [Streams(subject.seed, ids, ("check/binarization", kind, i)) for i in range(count)]

    inner = torch.cat([x, *(random_start(x, threat, s) for s in draws("inner", _INNER))])
    rim = torch.cat([random_boundary_start(x, threat, s) for s in draws("rim", _RIM)])
    subject.forwards += (len(inner) + len(rim)) * subject.target.draws
    parts = [features(part) for part in torch.cat([inner, rim]).split(subject.micro_batch)]
    seen = torch.cat(parts).double()
    centre = seen[: len(inner)].mean(0)
    scatter = seen[: len(inner)] - centre
    for point in seen[len(inner) :]:
        weight = _discriminant(scatter, point - centre)
        inside, planted = (seen[: len(inner)] @ weight).max(), point @ weight
        if planted > inside + 1e-6 * (planted.abs() + inside.abs()):
            return _Head(features, weight.to(x.dtype), ((inside + planted) / 2).to(x.dtype))
    return None


def _discriminant(scatter: Tensor, direction: Tensor) -> Tensor:
    """The ridge-regularised discriminant, of unit spread: (F,)."""
    gram = scatter @ scatter.T  # (M, M): fewer points than features, mostly
    ridge = (
        _RIDGE
        * gram.diagonal().mean().clamp_min(1e-12)
        * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    )
    weight = direction - scatter.T @ torch.linalg.solve(gram + ridge, scatter @ direction)
    return weight / (scatter @ weight).abs().amax().clamp_min(1e-12)


def _search(subject: Subject, head: _Head, row: int) -> bool:
    """Whether any gradient attack of the suite leaves the inlier side."""
    one = slice(row, row + 1)
    x, ids = subject.x[one], subject.ids[one]
    inlier = torch.zeros(1, dtype=torch.int64, device=x.device)
    with Target(head, bounds=subject.threat.bounds, device=x.device) as target:
        for attack in subject.attacks:
            if attack.access != "gradient":
                continue
            oracle = Oracle(
                target, x, inlier, ids, subject.threat, seed=subject.seed, purpose=f"check/{attack.label}",
                stays_inside=attack.stays_inside,
            )  # fmt: skip
            attack(oracle)
            subject.forwards += int(oracle.ledger.forwards.sum())
            subject.backwards += int(oracle.ledger.backwards.sum())
            if bool(oracle.ledger.broken.any()):
                return True
    return False
