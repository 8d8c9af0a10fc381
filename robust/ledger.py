"""What is known of every sample of an attack's run: the book that the oracle keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prior:
    """What earlier attacks have found out about N samples."""

    gaps: Tensor  # (N, C): each class's logit minus the label's at its highest inside the threat; -inf for the label
    clean_margin: Tensor  # (N,): the highest of them at x
    near: Tensor | None = None  # (N, ...): known breaks to begin at, or x; None where none are known
    bend: float = 1.0  # see `Oracle.left_at`


@dataclass
class Ledger:
    """What is known of every row of a run, whether still live or not. All (N,) but `x_adv`."""

    broken: Tensor  # an adversarial point inside the threat was seen
    failed: Tensor  # the model gave a non-finite logit
    strayed: Tensor  # of those, where it was asked about a non-finite point
    stuck: Tensor  # the attack gave the row up before it could begin
    distance: Tensor  # of x_adv, in the threat's norm; inf where none was seen
    gaps: Tensor | None  # (N, C): each class's logit minus the label's, at its highest; None before a pass
    forwards: Tensor
    backwards: Tensor
    x_adv: Tensor  # the adversarial point with the least distance; x where none was seen
    agreement: Tensor  # mean cosine of successive gradients late in an ascent; nan where none was measured

    @property
    def margin(self) -> Tensor:
        """The highest margin seen inside the threat (best other logit - label's): (N,)."""
        if self.gaps is None:
            return torch.full_like(self.distance, -torch.inf)
        return self.gaps.amax(1)

    @staticmethod
    def empty(x: Tensor, gaps: Tensor | None) -> Ledger:
        n, device = len(x), x.device
        no = torch.zeros(n, dtype=torch.bool, device=device)
        count = torch.zeros(n, dtype=torch.int64, device=device)
        return Ledger(
            broken=no,
            failed=no.clone(),
            strayed=no.clone(),
            stuck=no.clone(),
            distance=torch.full((n,), torch.inf, device=device),
            gaps=None if gaps is None else gaps.clone(),
            forwards=count,
            backwards=count.clone(),
            x_adv=x.clone(),
            agreement=torch.full((n,), torch.nan, device=device),
        )
