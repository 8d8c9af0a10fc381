"""When a training must be stopped, or an epoch undone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from robust.defenses.options import EpochResult
from robust.errors import TrainingError

_PATIENCE: Final = 3  # epochs without skill, after it was better, that count as collapse
_FEWEST: Final = 10  # validation samples that tell skill from chance
_CHANCE_SLACK: Final = 0.02  # above 1 / classes, still no skill
_DROP: Final = 0.2  # of robust accuracy under the best, and of PGD under FGSM: catastrophic overfitting


def finite(losses: Tensor, epoch: int, learning_rate: float) -> None:
    """Raise TrainingError unless all batch losses of an epoch, (B,), are finite."""
    if not bool(losses.isfinite().all()):
        bad = int((~losses.isfinite()).nonzero()[0])
        raise TrainingError(
            f"training diverged: loss is not finite in epoch {epoch}, batch {bad + 1} of {len(losses)}; lower "
            f"learning_rate (now {learning_rate:g}) or set gradient_clip"
        )


def overfits_catastrophically(result: EpochResult, history: Sequence[EpochResult]) -> bool:
    """Whether PGD accuracy fell far under its best while FGSM accuracy did not follow (Wong et al. 2020)."""
    if result.robust_accuracy is None or result.fgsm_accuracy is None:
        return False
    best = max((r.score() for r in history if not r.rolled_back), default=0.0)
    fell = best - result.robust_accuracy > _DROP
    return fell and result.fgsm_accuracy - result.robust_accuracy > _DROP


class Skill:
    """Watches for constant predictions and chance accuracy; its two counters are part of a checkpoint.

    Args:
        classes: how many there are.
        samples: of validation; a handful of them may well get the same class of a good model, and tells nothing.
    """

    def __init__(self, classes: int, samples: int) -> None:
        self._classes, self._tells = classes, samples >= _FEWEST
        self.constant = self.unskilled = 0  # epochs in a row: a single class predicted; at chance

    def note(self, clean: float, *, is_constant: bool) -> None:
        """An epoch's clean accuracy, and whether all samples got the same class."""
        self.constant = self.constant + 1 if is_constant else 0
        at_chance = is_constant or clean <= 1 / self._classes + _CHANCE_SLACK
        self.unskilled = self.unskilled + 1 if at_chance else 0

    def check(self, history: Sequence[EpochResult], *, over: bool) -> None:
        """Raise TrainingError where the model has lost, or never found, any skill."""
        if not history or not self._tells:
            return
        much = min(2, (1 + self._classes) / 2) / self._classes
        was_better = max(r.clean_accuracy for r in history) > much
        lost = was_better and self.unskilled >= _PATIENCE
        if lost or (over and self.constant):
            what = (
                "every validation sample gets the same class"
                if self.constant
                else "it is right by chance only"
            )
            raise TrainingError(
                f"training collapsed: after epoch {len(history)} {what} (clean accuracy "
                f"{history[-1].clean_accuracy:.1%}); lower learning_rate or eps, or raise warmup"
            )
