"""The defense registry: `DEFENSES` by name, `make_defense` from a name and options, one training loop."""

from robust.defenses.base import DEFENSES, Defense, make_defense
from robust.defenses.distillation import Distillation
from robust.defenses.none import Standard
from robust.defenses.options import RECIPES, Batch, EpochResult, Objective, TrainingOptions
from robust.defenses.pgd_at import PGDTraining
from robust.defenses.training import Trainer

__all__ = [
    "DEFENSES",
    "RECIPES",
    "Batch",
    "Defense",
    "Distillation",
    "EpochResult",
    "Objective",
    "PGDTraining",
    "Standard",
    "Trainer",
    "TrainingOptions",
    "make_defense",
]
