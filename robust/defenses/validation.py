"""What is measured after every epoch."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from robust.attacks import FGSM, PGD, Attack
from robust.attacks.geometry import random_start
from robust.defenses.data import OnDevice
from robust.oracle import Oracle
from robust.rng import Streams
from robust.target import Target
from robust.threat import Threat

_BATCH: Final = 256
_ALIGNED: Final = 128  # samples whose gradients are compared


class Figures(NamedTuple):
    """Of one model; accuracies are shares of the validation samples."""

    clean: float
    robust: float | None  # under PGD; None without a threat, as the other two
    fgsm: float | None
    alignment: float | None
    is_constant: bool  # all samples get the same class


class Validator:
    """Measures models on held-out samples.

    Args:
        held_out: the samples.
        threat: None measures clean accuracy only.
        steps: of PGD.
        classes: how many the models have.
        share: (rank, world): every world-th sample from rank on is measured here.
    """

    def __init__(
        self,
        held_out: OnDevice,
        threat: Threat | None,
        steps: int,
        classes: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._held_out, self._threat, self._classes = held_out, threat, classes
        self._pgd, self._fgsm = PGD(steps=steps), FGSM()
        self._share = share
        if threat is not None:
            self._pgd.check(threat)

    def counts(self, model: nn.Module, device: torch.device) -> Tensor:
        """This share's sums, to be added up over shares and read by `figures`: float64 (6 + classes,)."""
        sums = torch.zeros(6, dtype=torch.float64)
        seen = torch.zeros(self._classes, dtype=torch.float64)
        rank, world = self._share
        with Target(model, device=device) as target:
            for rows in torch.arange(rank, len(self._held_out), world, device=device).split(_BATCH):
                x, y, ids = self._held_out.x(rows), self._held_out.y[rows], self._held_out.ids[rows]
                with torch.no_grad():
                    logits = target.logits(x)
                prediction = logits.argmax(1)
                good = prediction == y
                seen += prediction.bincount(minlength=self._classes).cpu()
                sums[0] += len(y)
                sums[1] += int(good.sum())
                if self._threat is not None and bool(good.any()):
                    part = target, x[good], y[good], ids[good]
                    sums[2] += self._standing(self._pgd, *part)
                    sums[3] += self._standing(self._fgsm, *part)
                    left = _ALIGNED - int(sums[5])
                    if left > 0:
                        cosine = self._alignment(target, x[:left], y[:left], ids[:left])
                        sums[4] += float(cosine.sum())
                        sums[5] += len(cosine)
        return torch.cat([sums, seen])

    def figures(self, counts: Tensor) -> Figures:
        """From the added-up sums."""
        n, right, robust, fgsm, cosine, compared = counts[:6].tolist()
        attacked = self._threat is not None
        return Figures(
            clean=right / n,
            robust=robust / n if attacked else None,
            fgsm=fgsm / n if attacked else None,
            alignment=cosine / compared if compared else None,
            is_constant=int((counts[6:] > 0).sum()) == 1 and right < n,
        )

    def _standing(self, attack: Attack, target: Target, x: Tensor, y: Tensor, ids: Tensor) -> int:
        assert self._threat is not None
        oracle = Oracle(target, x, y, ids, self._threat)
        attack(oracle)
        return int((~(oracle.ledger.broken | oracle.ledger.failed)).sum())

    def _alignment(self, target: Target, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        """Cosine of the gradients at x and at a random point of its threat set: (N,)."""
        assert self._threat is not None
        around = random_start(x, self._threat, Streams(0, ids, ("alignment",)))
        gradients = []
        for place in (x, around):
            point = place.detach().requires_grad_()
            value = functional.cross_entropy(target.logits(point), y, reduction="sum")
            gradients.append(torch.autograd.grad(value, point)[0].flatten(1))
        return functional.cosine_similarity(gradients[0], gradients[1], dim=1, eps=1e-12)
