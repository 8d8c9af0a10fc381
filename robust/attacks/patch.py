"""PGD within a patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.base import ATTACKS, Attack
from robust.errors import InputError
from robust.families import Patch
from robust.families.base import images
from robust.losses import LOSSES
from robust.oracle import Access, Oracle


@ATTACKS.register("patch")
@dataclass(frozen=True)
class PatchPGD(Attack):
    """Sign ascent on the pixels of one rectangle, at several places (LaVAN, Karmon et al. 2018, arXiv 1801.02608).

    The first place is where the gradient at x is largest, the others are drawn at random. A start from
    random pixels, then steps that shrink from a quarter of the box's width to a hundredth.

    Args:
        steps: gradient steps a place, >= 1.
        places: how many are tried, >= 1.
        loss: "ce", "margin", "dlr", "mifpe", "logit" or "probability".
    """

    name: ClassVar[str] = "patch"
    norms: ClassVar[tuple[str, ...]] = ("patch",)
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Karmon et al. 2018"

    steps: int = 40
    places: int = 10
    loss: str = "margin"

    def __post_init__(self) -> None:
        self.check_numbers()
        if self.steps < 1 or self.places < 1:
            raise InputError(
                f"patch: expected steps >= 1 and places >= 1, got {self.steps} and {self.places}"
            )

    def run(self, oracle: Oracle) -> Tensor:
        patch, loss = oracle.threat.family, LOSSES[self.loss]
        assert isinstance(patch, Patch)
        images(oracle.x, "patch")
        low, high = oracle.threat.bounds
        s = oracle.state()
        s.x_adv = oracle.x
        for place in oracle.steps(self.places):
            streams = oracle.random(place)
            if place == 0:
                slope = oracle.gradient(oracle.x, loss).gradient.abs().sum(1)
                s.inside = patch.window(patch.scores(slope).flatten(1).argmax(1), oracle.x)
            else:
                s.inside = patch.random_window(oracle.x, streams)
            start = streams.child("start").uniform(oracle.x.shape[1:], low, high)
            s.x_adv = torch.where(s.inside, start, oracle.x)
            for step in oracle.steps(self.steps):
                gradient = oracle.gradient(s.x_adv, loss).gradient
                size = (high - low) * 0.25 * 0.04 ** (step / self.steps)
                s.x_adv = torch.where(s.inside, oracle.clip(s.x_adv + size * gradient.sign()), oracle.x)
            oracle.visit(s.x_adv)
        return s.x_adv
