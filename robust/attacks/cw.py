"""CW, Carlini and Wagner's L2 attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from robust.attacks.aims import aimed_margin, runs
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import Adam, choose, per_row
from robust.errors import InputError
from robust.oracle import Access, Oracle, State

_WINDOW: Final = 10  # steps at least between looks at the objective


@ATTACKS.register("cw")
@dataclass(frozen=True)
class CW(Attack):
    """Minimise ||x_adv - x||^2 - c * min(margin, confidence) in tanh space with Adam, searching c.

    Carlini & Wagner 2017 (arXiv 1608.04644). Trade-off constant, success and early stop are each
    sample's own. After a constant that failed the next one goes on from there, not from x: few steps go
    further. The tanh box is wider than the real one by `slack`, then clipped: in the paper's parametrisation
    the derivative vanishes at the box, so pixels that start at 0 or 1 never move.

    Args:
        steps: Adam steps per constant, >= 1.
        binary_search_steps: constants tried, >= 1.
        learning_rate: Adam's, in tanh space, > 0.
        initial_const: first c, for distances in units of the box; times ten after a failure, then bisected, > 0.
        confidence: margin to reach, in logits, >= 0.
        abort_early: a sample skips the rest of a constant's steps once its objective falls by less
            than 0.01 % over a tenth of them, and ten at least: in its first few steps Adam may well lose.
        targets: one search for each of so many nearest classes (all of them: the paper's best case); 0 for one
            against whichever class leads.
        slack: how much wider the tanh box is, as a share of the real one, > 0.
    """

    name: ClassVar[str] = "cw"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "Carlini & Wagner 2017"
    minimum_norm: ClassVar[bool] = True

    steps: int = 100
    binary_search_steps: int = 9
    learning_rate: float = 0.05
    initial_const: float = 0.1
    confidence: float = 0.0
    abort_early: bool = True
    targets: int = 1
    slack: float = 0.1

    def __post_init__(self) -> None:
        self.check_numbers("learning_rate", "initial_const")
        if min(self.steps, self.binary_search_steps) < 1 or self.targets < 0:
            raise InputError(
                "cw: expected steps >= 1, binary_search_steps >= 1 and targets >= 0, got "
                f"{self.steps}, {self.binary_search_steps} and {self.targets}"
            )
        if self.slack <= 0 or self.confidence < 0:
            raise InputError(
                f"cw: expected slack > 0 and confidence >= 0, got {self.slack} and {self.confidence}"
            )

    def run(self, oracle: Oracle) -> None:
        s = oracle.state()
        for _ in runs(oracle, s, self.targets):
            self._search(oracle, s)

    def _search(self, oracle: Oracle, s: State) -> None:
        low, high = oracle.threat.bounds
        middle, half = (low + high) / 2, (high - low) / 2 * (1 + self.slack)
        first = self.initial_const * (high - low) ** 2
        s.const = torch.full(oracle.y.shape, first, device=oracle.x.device)
        s.lower, s.upper = torch.zeros_like(s.const), torch.full_like(s.const, torch.inf)
        s.w = self._begin(oracle)
        for _ in oracle.steps(self.binary_search_steps):
            adam = Adam(s, s.w)
            s.success = torch.zeros_like(oracle.y, dtype=torch.bool)
            s.reference = torch.full_like(s.const, torch.inf)
            for step in oracle.steps(self.steps):
                tanh = s.w.tanh()
                x_adv = torch.rsub(tanh, middle, alpha=-half).clamp_(low, high)  # in one pass
                out = oracle.gradient(x_adv, self._capped_margin, s.aim)
                s.success = s.success | (out.value >= self.confidence)
                delta = oracle.change(x_adv)
                slope = torch.addcmul(delta, per_row(s.const, delta), out.gradient, value=-0.5)
                # Times 1 - tanh^2, the derivative but for what is the same for all values: Adam ignores that.
                slope.sub_(tanh.square_().mul_(slope))
                s.w = adam.descended(s.w, slope, step, self.learning_rate)
                if self.abort_early and (step + 1) % max(_WINDOW, self.steps // 10) == 0:
                    objective = delta.flatten(1).square().sum(1) - s.const * out.value
                    oracle.rest(objective > s.reference - 1e-4 * s.reference.abs())
                    s.reference = objective
            s.upper = torch.where(s.success, torch.minimum(s.upper, s.const), s.upper)
            s.lower = torch.where(s.success, s.lower, torch.maximum(s.lower, s.const))
            s.const = torch.where(s.upper.isinf(), s.const * 10, (s.lower + s.upper) / 2)
            s.w = choose(s.success, self._begin(oracle), s.w)

    def _begin(self, oracle: Oracle) -> Tensor:
        """x in tanh space."""
        low, high = oracle.threat.bounds
        return torch.atanh((oracle.x - (low + high) / 2) / ((high - low) / 2 * (1 + self.slack)))

    def _capped_margin(self, logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
        return aimed_margin(logits, y, aim).clamp_max(self.confidence)
