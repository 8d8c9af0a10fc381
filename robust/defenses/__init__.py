"""The defense registry: `DEFENSES` by name, `make_defense` from a name and options, one training loop."""

from robust.defenses import adapters as _adapters  # noqa: F401 - files `art:NAME`
from robust.defenses.awp import AWP
from robust.defenses.base import DEFENSES, Defense, make_defense
from robust.defenses.distillation import Distillation
from robust.defenses.fast import FGSMRS, NFGSM
from robust.defenses.fine_tuning import FineTuning
from robust.defenses.free import FreeTraining
from robust.defenses.gaussian import GaussianTraining
from robust.defenses.mart import MART
from robust.defenses.none import Standard
from robust.defenses.objective import AdversarialTraining, ObjectiveDefense
from robust.defenses.options import Batch, EpochResult, Objective, TrainingOptions
from robust.defenses.pgd_at import PGDTraining
from robust.defenses.recipes import RECIPES
from robust.defenses.regularised import ELLE, GradAlign
from robust.defenses.robust_distillation import ARD, RSLAD
from robust.defenses.trades import TRADES
from robust.defenses.training import Trainer
from robust.defenses.wrappers import JPEG, BitDepth, Median, Wrapper

__all__ = [
    "ARD",
    "AWP",
    "DEFENSES",
    "ELLE",
    "FGSMRS",
    "JPEG",
    "MART",
    "NFGSM",
    "RECIPES",
    "RSLAD",
    "TRADES",
    "AdversarialTraining",
    "Batch",
    "BitDepth",
    "Defense",
    "Distillation",
    "EpochResult",
    "FineTuning",
    "FreeTraining",
    "GaussianTraining",
    "GradAlign",
    "Median",
    "Objective",
    "ObjectiveDefense",
    "PGDTraining",
    "Standard",
    "Trainer",
    "TrainingOptions",
    "Wrapper",
    "make_defense",
]
