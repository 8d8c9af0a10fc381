"""foolbox (Rauber et al. 2020, JOSS 5(53), 2607) by name: `foolbox:L2DeepFoolAttack`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from robust.attacks.adapters.library import Job, Library, Peer

_MADRY, _BIM, _MI = "Madry et al. 2018", "Kurakin et al. 2017", "Dong et al. 2018"
_NOISE, _FMN, _BB = "Rauber et al. 2020", "Pintor et al. 2021", "Brendel et al. 2019"
_ALL = "linf l2 l1 l0"
_STEPS = 10  # of VirtualAdversarialAttack
_LAST = "returns the last iterate, not the best: a point that was adversarial on the way is lost"


def _bounded(norm: str, paper: str) -> Peer:
    return Peer(norm, paper, differs=_LAST)


def _nearest(norms: str, paper: str, differs: str = "") -> Peer:
    return Peer(norms, paper, minimum_norm=True, differs=differs)


def _asks(norms: str, paper: str, differs: str = "") -> Peer:
    return Peer(norms, paper, "decision", minimum_norm=True, differs=differs)


class Foolbox(Library):
    """Adapters of foolbox's attacks that need neither target classes nor starting points."""

    name = "foolbox"
    package = "foolbox"
    extra = "foolbox"
    differs = (
        "of its three results the one clipped to eps is scored; for minimum-norm attacks the unclipped one",
        "rel_stepsize is in units of eps, abs_stepsize in units of the box",
        "draws from the global generators, which are seeded for it and put back afterwards",
    )
    peers: ClassVar[Mapping[str, Peer]] = {
        "FGSM": Peer("linf", "Goodfellow et al. 2015"),
        "FGM": Peer("l2", "Goodfellow et al. 2015"),
        "L1FastGradientAttack": Peer("l1", "Goodfellow et al. 2015"),
        "LinfPGD": _bounded("linf", _MADRY), "L2PGD": _bounded("l2", _MADRY), "L1PGD": _bounded("l1", _MADRY),
        "PGD": _bounded("linf", _MADRY),
        "LinfAdamPGD": _bounded("linf", _MADRY), "L2AdamPGD": _bounded("l2", _MADRY),
        "L1AdamPGD": _bounded("l1", _MADRY),
        "LinfBasicIterativeAttack": _bounded("linf", _BIM), "L2BasicIterativeAttack": _bounded("l2", _BIM),
        "L1BasicIterativeAttack": _bounded("l1", _BIM),
        "LinfAdamBasicIterativeAttack": _bounded("linf", _BIM),
        "L2AdamBasicIterativeAttack": _bounded("l2", _BIM), "L1AdamBasicIterativeAttack": _bounded("l1", _BIM),
        "MIFGSM": _bounded("linf", _MI),
        "L2MomentumIterativeFastGradientMethod": _bounded("l2", _MI),
        "L1MomentumIterativeFastGradientMethod": _bounded("l1", _MI),
        "SparseL1DescentAttack": _bounded("l1", "Tramer & Boneh 2019"),
        "VirtualAdversarialAttack": Peer(
            "l2", "Miyato et al. 2016", differs=f"steps has no default there; {_STEPS} here, as in ART"
        ),
        "L2ContrastReductionAttack": Peer("l2", _NOISE, "decision"),
        "LinfAdditiveUniformNoiseAttack": Peer("linf", _NOISE, "decision"),
        "L2AdditiveUniformNoiseAttack": Peer("l2", _NOISE, "decision"),
        "L2AdditiveGaussianNoiseAttack": Peer("l2", _NOISE, "decision"),
        "L2ClippingAwareAdditiveUniformNoiseAttack": Peer("l2", _NOISE, "decision"),
        "L2ClippingAwareAdditiveGaussianNoiseAttack": Peer("l2", _NOISE, "decision"),
        "LinfRepeatedAdditiveUniformNoiseAttack": Peer("linf", _NOISE, "decision"),
        "L2RepeatedAdditiveUniformNoiseAttack": Peer("l2", _NOISE, "decision"),
        "L2RepeatedAdditiveGaussianNoiseAttack": Peer("l2", _NOISE, "decision"),
        "L2ClippingAwareRepeatedAdditiveUniformNoiseAttack": Peer("l2", _NOISE, "decision"),
        "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack": Peer("l2", _NOISE, "decision"),
        "DDNAttack": _nearest("l2", "Rony et al. 2019"),
        "L2CarliniWagnerAttack": _nearest("l2", "Carlini & Wagner 2017", "stops early for the whole batch at once"),
        "EADAttack": _nearest("l1", "Chen et al. 2018", "stops early for the whole batch at once"),
        "NewtonFoolAttack": _nearest("l2", "Jang et al. 2017"),
        "L2DeepFoolAttack": _nearest("l2", "Moosavi-Dezfooli et al. 2016"),
        "LinfDeepFoolAttack": _nearest("linf", "Moosavi-Dezfooli et al. 2016"),
        "LInfFMNAttack": _nearest("linf", _FMN), "L2FMNAttack": _nearest("l2", _FMN),
        "L1FMNAttack": _nearest("l1", _FMN), "L0FMNAttack": _nearest("l0", _FMN),
        "LinfinityBrendelBethgeAttack": _nearest("linf", _BB, "starts from blended noise; needs numba"),
        "L2BrendelBethgeAttack": _nearest("l2", _BB, "starts from blended noise; needs numba"),
        "L1BrendelBethgeAttack": _nearest("l1", _BB, "starts from blended noise; needs numba"),
        "L0BrendelBethgeAttack": _nearest("l0", _BB, "starts from blended noise; needs numba"),
        "BoundaryAttack": _asks("l2", "Brendel et al. 2018"),
        "HopSkipJumpAttack": _asks("l2 linf", "Chen et al. 2020"),
        "PointwiseAttack": _asks("l0 l1 l2", "Schott et al. 2019"),
        "SaltAndPepperNoiseAttack": _asks("l2 l0", _NOISE),
        "InversionAttack": _asks(_ALL, "Hosseini et al. 2017"),
        "BinarySearchContrastReductionAttack": _asks(_ALL, _NOISE),
        "LinearSearchContrastReductionAttack": _asks(_ALL, _NOISE),
        "LinearSearchBlendedUniformNoiseAttack": _asks(_ALL, _NOISE),
        "GaussianBlurAttack": _asks(_ALL, _NOISE),
    }  # fmt: skip
    absent: ClassVar[Mapping[str, str]] = {
        "SpatialAttack": "it is bound by rotation and shift, not by a norm",
        "GenAttack": "it needs target classes",
        "DatasetAttack": "it needs a data set to draw from",
        "BinarizationRefinementAttack": "it needs starting points",
    }
    real = frozenset({"confidence", "max_translation", "max_rotation"})
    provided: ClassVar[Mapping[str, Callable[[Job], Any]]] = {
        "distance": lambda job: _distance(job.norm),
        "constraint": lambda job: job.norm,
        "init_attack": lambda job: None,
        "tensorboard": lambda job: False,
        "channel_axis": lambda job: 1,
    }

    def constructor(self, name: str) -> type[Any]:
        return getattr(self.load("foolbox.attacks"), name)

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        found = super().options(name)
        if name == "VirtualAdversarialAttack":
            found["steps"] = found["steps"].replace(default=_STEPS)
        return found

    def search(self, name: str, job: Job) -> Tensor:
        from foolbox.criteria import Misclassification
        from foolbox.models import PyTorchModel

        attack = self.constructor(name)(**self.arguments(name, job))
        model = PyTorchModel(job.model, bounds=(0, 1), device=job.x.device)
        nearest = self.peers[name].minimum_norm
        raw, clipped, _ = attack(
            model, job.x, Misclassification(job.y), epsilons=None if nearest else job.eps
        )
        return raw if nearest else clipped


def _distance(norm: str) -> Any:
    from foolbox import distances

    return getattr(distances, norm)
