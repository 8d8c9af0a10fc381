"""The attack registry: `ATTACKS` by name, `make_attack` from a name and options."""

from robust.attacks import adapters as adapters  # files the names of other libraries
from robust.attacks.apgd import APGD
from robust.attacks.base import ATTACKS, Attack, make_attack
from robust.attacks.cw import CW
from robust.attacks.ddn import DDN
from robust.attacks.fab import FAB
from robust.attacks.fgsm import FGSM
from robust.attacks.fmn import FMN
from robust.attacks.multitargeted import MultiTargeted
from robust.attacks.pgd import PGD
from robust.attacks.sigma_zero import SigmaZero
from robust.attacks.square import Square

__all__ = [
    "APGD",
    "ATTACKS",
    "CW",
    "DDN",
    "FAB",
    "FGSM",
    "FMN",
    "PGD",
    "Attack",
    "MultiTargeted",
    "SigmaZero",
    "Square",
    "make_attack",
]
