"""adv_lib (Rony & Ben Ayed 2020, BSD 3-Clause) by name, for comparison only: `adv_lib:ddn`.

Its authors wrote DDN, ALMA and the reference of several others. `pip install adv-lib`, or its checkout on PYTHONPATH.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from robust.attacks import ATTACKS
from robust.attacks.adapters import Job, Library, Peer, adapter_of

_ORDER = {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}


def _nearest(norms: str, paper: str) -> Peer:
    return Peer(norms, paper, minimum_norm=True)


class AdvLib(Library):
    """Adapters of adv_lib's attacks; each is a function of (model, inputs, labels, ...)."""

    name = "adv_lib"
    package = "adv-lib"
    extra = "none; pip install adv-lib"
    differs = ("returns the nearest adversarial point that it visited",)
    peers: ClassVar[Mapping[str, Peer]] = {
        "alma": _nearest("l2 l1", "Rony et al. 2021"),
        "apgd": Peer("linf l2 l1", "Croce & Hein 2020"),
        "apgd_targeted": Peer("linf l2 l1", "Croce & Hein 2020"),
        "carlini_wagner_l2": _nearest("l2", "Carlini & Wagner 2017"),
        "ddn": _nearest("l2", "Rony et al. 2019"),
        "df": _nearest("linf l2", "Moosavi-Dezfooli et al. 2016"),
        "fab": _nearest("linf l2 l1", "Croce & Hein 2020b"),
        "fmn": _nearest("linf l2 l1 l0", "Pintor et al. 2021"),
        "pdgd": _nearest("l2", "Matyasko & Chau 2021"),
        "pdpgd": _nearest("linf l2 l1 l0", "Matyasko & Chau 2021"),
        "pgd_linf": Peer("linf", "Madry et al. 2018"),
        "sdf": _nearest("l2", "Abdolahpourrostam et al. 2024"),
        "sigma_zero": _nearest("l0", "Cina et al. 2025"),
        "tr": _nearest("linf l2", "Yao et al. 2019"),
        "vfga": _nearest("l0", "Hajri et al. 2020"),
    }
    absent: ClassVar[Mapping[str, str]] = {}
    real = frozenset({"μ_init", "ρ_init", "confidence", "random_init", "p", "η_0"})
    provided: ClassVar[Mapping[str, Callable[[Job], Any]]] = {
        "model": lambda job: job.model,
        "inputs": lambda job: job.x,
        "labels": lambda job: job.y,
        "targeted": lambda job: False,
        "norm": lambda job: _ORDER[job.norm],
        "p": lambda job: _ORDER[job.norm],
        "distance": lambda job: job.norm,
        "eps": lambda job: job.eps,
        "ε": lambda job: job.eps,
        "callback": lambda job: None,
    }

    def constructor(self, name: str) -> Any:
        return getattr(self.load("adv_lib.attacks"), name)

    def options(self, name: str) -> dict[str, Any]:
        return {k: p for k, p in super().options(name).items() if k != "penalty"}  # a function

    def search(self, name: str, job: Job) -> Tensor:
        return self.constructor(name)(**self.arguments(name, job))


def register() -> bool:
    """Let its attacks be found by name; False where it is not installed."""
    library = AdvLib()
    try:
        library.load("adv_lib.attacks")
    except Exception:
        return False
    ATTACKS.annex(library.name, partial(adapter_of, library), library.names, library.refuse)
    return True
