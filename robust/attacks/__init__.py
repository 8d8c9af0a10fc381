"""The attack registry: `ATTACKS` by name, `make_attack` from a name and options."""

from robust.attacks import adapters as adapters  # files the names of other libraries
from robust.attacks.a3 import A3
from robust.attacks.apgd import APGD
from robust.attacks.base import ATTACKS, Attack, make_attack
from robust.attacks.basin_hopping import BasinHopping
from robust.attacks.cw import CW
from robust.attacks.ddn import DDN
from robust.attacks.deepfool import DeepFool
from robust.attacks.ead import EAD
from robust.attacks.enumerate import CommonCorruptions, SpatialGrid
from robust.attacks.fab import FAB
from robust.attacks.fgsm import FGSM
from robust.attacks.fmn import FMN
from robust.attacks.gradient_swaps import GradientSwaps
from robust.attacks.hopskipjump import HopSkipJump
from robust.attacks.md import MD
from robust.attacks.mifgsm import MIFGSM
from robust.attacks.multitargeted import MultiTargeted
from robust.attacks.noise import Noise
from robust.attacks.outer_boundary import OuterBoundary
from robust.attacks.patch import PatchPGD
from robust.attacks.pdpgd import PDPGD
from robust.attacks.pgd import PGD
from robust.attacks.pma import PMA
from robust.attacks.rays import RayS
from robust.attacks.sigma_zero import SigmaZero
from robust.attacks.smoothed_ascent import SmoothedAscent
from robust.attacks.sparse_rs import SparseRS
from robust.attacks.spsa import SPSA
from robust.attacks.square import Square
from robust.attacks.square_ascent import SquareAscent
from robust.attacks.superdeepfool import SuperDeepFool
from robust.attacks.swap_search import SwapSearch
from robust.attacks.transfer import Transfer
from robust.attacks.vfga import VFGA

__all__ = [
    "A3",
    "APGD",
    "ATTACKS",
    "CW",
    "DDN",
    "EAD",
    "FAB",
    "FGSM",
    "FMN",
    "MD",
    "MIFGSM",
    "PDPGD",
    "PGD",
    "PMA",
    "SPSA",
    "VFGA",
    "Attack",
    "BasinHopping",
    "CommonCorruptions",
    "DeepFool",
    "GradientSwaps",
    "HopSkipJump",
    "MultiTargeted",
    "Noise",
    "OuterBoundary",
    "PatchPGD",
    "RayS",
    "SigmaZero",
    "SmoothedAscent",
    "SparseRS",
    "SpatialGrid",
    "Square",
    "SquareAscent",
    "SuperDeepFool",
    "SwapSearch",
    "Transfer",
    "make_attack",
]
