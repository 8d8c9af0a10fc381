"""What is known of each sample while an evaluation goes on, and the table of verdicts that it ends in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pandas as pd
import torch
from torch import Tensor

from robust.audit import Audit
from robust.ledger import Ledger
from robust.report import STATUSES
from robust.selection import Known
from robust.sources import Samples

MISCLASSIFIED, BROKEN, SURVIVED, ERROR = range(4)
_CLASSES: Final = 3  # of fewer the farthest is the nearest
_RULED_OUT: Final = 10  # times as far as the middle one of the other classes
_UNKNOWN: Final = -1  # class of what gave no numbers


class Verdicts:
    """The samples' verdicts so far, and how near attacks came. All of it (n,) on the CPU, unless said.

    Args:
        n: how many samples.
    """

    def __init__(self, n: int) -> None:
        self.status = torch.full((n,), SURVIVED)
        self.prediction = torch.zeros(n, dtype=torch.int64)
        self.prediction_adv = torch.zeros(n, dtype=torch.int64)
        self.broken_by = torch.full((n,), -1)  # number of the attack
        self.distance = torch.full((n,), torch.nan, dtype=torch.float64)  # of the adversarial example
        self.nearest = torch.full((n,), torch.nan, dtype=torch.float64)  # audited, in or out of the threat
        self.clean_margin = torch.full((n,), -torch.inf)
        self.clean_gaps = self.gaps = torch.empty(n, 0)  # (n, C) once the clean samples are classified
        # Distance of the nearest adversarial point seen, in or out of the threat.
        self.reach = torch.full((n,), torch.inf)
        # The latest attack came nearer than those before it: by its margins inside, by an adversarial point anywhere.
        self.rose, self.closer = torch.zeros(2, n, dtype=torch.bool)
        self.agreement = torch.full((n,), torch.nan)  # of the first ascent's successive gradients
        self.spent = torch.zeros(n, dtype=torch.int64)  # most passes of a minimum-norm attack
        self.forwards = torch.zeros(n, dtype=torch.int64)
        self.backwards = torch.zeros(n, dtype=torch.int64)

    @property
    def standing(self) -> int:
        """Samples that nothing has broken yet."""
        return int((self.status == SURVIVED).sum())

    @property
    def errors(self) -> int:
        """Samples that ended in an error."""
        return int((self.status == ERROR).sum())

    @property
    def margin(self) -> Tensor:
        """The highest margin seen inside the threat, (n,)."""
        return self.gaps.amax(1)

    def classify(self, rows: Tensor, y: Tensor, logits: Tensor) -> None:
        """Take in the logits, (N, C), of clean samples at these positions, whose labels are y; all on the CPU or not."""
        finite = logits.isfinite().all(1).cpu()
        gaps = (logits - logits.gather(1, y[:, None])).scatter(1, y[:, None], -torch.inf).cpu()
        if not self.gaps.shape[1]:
            self.gaps = gaps.new_full((len(self.status), gaps.shape[1]), -torch.inf)
        self.gaps[rows] = gaps
        self.prediction[rows] = logits.argmax(1).cpu()
        self.status[rows[self.prediction[rows] != y.cpu()]] = MISCLASSIFIED
        self.status[rows[~finite]] = ERROR
        self.prediction[rows[~finite]] = _UNKNOWN

    def begin(self) -> None:
        """All are classified: attacks may begin."""
        self.clean_margin = self.margin
        self.clean_gaps = self.gaps.clone()
        self.prediction_adv = self.prediction.clone()

    def known(self, radius: float, bend: float = 1.0) -> Known:
        """What stages choose by, with distances in units of the threat's radius.

        Args:
            bend: power of the way that is left by which margins fall towards a boundary.
        """
        lead, farthest = _lead(self.clean_gaps), _farthest(self.gaps, self.clean_gaps)
        return Known(
            self.margin,
            self.clean_margin,
            lead,
            farthest,
            self.reach / radius,
            self.agreement,
            self.spent,
            self.rose,
            self.closer,
            bend,
        )

    def note(self, rows: Tensor, ledger: Ledger) -> None:
        """Take in how near an attack of these rows came, and what it spent."""
        assert ledger.gaps is not None
        self.forwards[rows] += ledger.forwards.cpu()
        self.backwards[rows] += ledger.backwards.cpu()
        self.reach[rows] = self.reach[rows].fmin(ledger.distance.cpu())
        self.gaps[rows] = self.gaps[rows].fmax(ledger.gaps.cpu())
        first = self.agreement[rows]
        self.agreement[rows] = torch.where(first.isnan(), ledger.agreement.cpu(), first)

    def settle(self, rows: Tensor, found: Audit, inside: Tensor, attack: int, *, minimize: bool) -> Tensor:
        """Take in what an audit says of adversarial points of these rows.

        Args:
            inside: which of the points lie in the threat, (N,) bool.
            attack: number of the attack that found them.
            minimize: a nearer one takes the place of one that was found before.

        Returns:
            Which of them are the rows' adversarial examples now, (N,) bool.
        """
        distance = found.distance.cpu()
        nearer = found.valid.cpu() & ~(self.nearest[rows] <= distance)
        self.nearest[rows[nearer]] = distance[nearer]
        fresh = inside & found.valid.cpu() & (nearer if minimize else self.status[rows] == SURVIVED)
        new = rows[fresh]
        self.broken_by[new[self.status[new] == SURVIVED]] = attack
        self.status[new] = BROKEN
        self.distance[new] = distance[fresh]
        self.prediction_adv[new] = found.prediction.cpu()[fresh]
        return fresh

    def fail(self, rows: Tensor) -> None:
        """Of these rows those that nothing broke before something failed have no verdict."""
        self.status[rows[self.status[rows] == SURVIVED]] = ERROR

    def table(self, samples: Samples, attacks: Sequence[str]) -> pd.DataFrame:
        """A row per sample; see Report. `attacks` are the attacks' labels."""
        names = [*attacks, ""]
        groups = samples.group_labels
        return pd.DataFrame(
            {
                "sample_id": samples.ids.numpy(),
                "label": samples.y.numpy(),
                "prediction": self.prediction.numpy(),
                "status": [STATUSES[code] for code in self.status.tolist()],
                "attack": [names[index] for index in self.broken_by.tolist()],
                "distance": self.distance.numpy(),
                "nearest": self.nearest.masked_fill(self.status == MISCLASSIFIED, 0.0).numpy(),
                "margin": self.margin.numpy(),
                "prediction_adv": self.prediction_adv.numpy(),
                "forwards": self.forwards.numpy(),
                "backwards": self.backwards.numpy(),
                **({} if groups is None else {"group": groups}),
            }
        )


def _lead(gaps: Tensor) -> Tensor:
    """By how much the leading class but the label leads the mean of the others, (n,); gaps (n, C) are -inf at the label."""
    leader, *others = gaps.sort(1, descending=True).values[:, :-1].unbind(1)
    return leader - torch.stack(others).mean(0) if others else torch.full_like(leader, torch.inf)


def _farthest(gaps: Tensor, clean: Tensor) -> Tensor:
    """The lowest gap of another class as a share of the lowest clean one, (n,); both (n, C) are -inf at the label.

    Of classes but those that are ruled out, with a logit far below all others.
    """
    if gaps.shape[1] < _CLASSES:
        return torch.ones(len(gaps))
    others = clean.masked_fill(clean == -torch.inf, torch.nan)
    counts = others >= _RULED_OUT * others.nanmedian(1, keepdim=True).values
    now, before = (part.masked_fill(~counts, torch.inf).amin(1) for part in (gaps, clean))
    return now / before
