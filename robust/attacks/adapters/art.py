"""The Adversarial Robustness Toolbox (Nicolae et al. 2018, arXiv 1807.01069) by name: `art:SquareAttack`."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from robust.attacks.adapters.library import Job, Library, Peer

_APGD_STEP = {"step": "eps_step", "share": 2.0, "steps": ""}
_CLASSES = "makes a backward pass for every class and step"


def _pgd(paper: str, norms: str = "linf l2 l1", differs: str = "") -> Peer:
    return Peer(norms, paper, step="eps_step", steps="max_iter", differs=differs)


class ART(Library):
    """Adapters of ART's evasion attacks on classifiers."""

    name = "art"
    package = "adversarial-robustness-toolbox"
    extra = "art"
    differs = (
        "labels are always passed: without, it would take the model's predictions for them",
        "clips to the box only because it is told the box",
        "draws from the global generators, which are seeded for it and put back afterwards",
    )
    peers: ClassVar[Mapping[str, Peer]] = {
        "FastGradientMethod": Peer("linf l2 l1", "Goodfellow et al. 2015", step="eps_step", share=0.1, steps="",
                                   differs="random starts are chosen for the whole batch"),
        "BasicIterativeMethod": _pgd("Kurakin et al. 2017", "linf"),
        "MomentumIterativeMethod": _pgd("Dong et al. 2018"),
        "ProjectedGradientDescent": _pgd("Madry et al. 2018"),
        "ProjectedGradientDescentPyTorch": _pgd("Madry et al. 2018"),
        "ProjectedGradientDescentNumpy": _pgd("Madry et al. 2018"),
        "AutoProjectedGradientDescent": Peer("linf l2 l1", "Croce & Hein 2020", **_APGD_STEP),  # type: ignore[arg-type]
        "AutoConjugateGradient": Peer("linf l2 l1", "Yamamura et al. 2022", **_APGD_STEP),  # type: ignore[arg-type]
        "RescalingAutoConjugateGradient": Peer("linf l2 l1", "Yamamura et al. 2024", **_APGD_STEP),  # type: ignore[arg-type]
        "AutoAttack": Peer("linf l2", "Croce & Hein 2020", **_APGD_STEP,  # type: ignore[arg-type]
                           differs="not AutoAttack: no FAB and no targeted APGD; DeepFool, and five restarts"),
        "SquareAttack": Peer("linf l2", "Andriushchenko et al. 2020", "score"),
        "CarliniL2Method": Peer("l2", "Carlini & Wagner 2017", minimum_norm=True,
                                differs="several passes a step for its line search"),
        "CarliniLInfMethod": Peer("linf", "Carlini & Wagner 2017", minimum_norm=True),
        "CarliniL0Method": Peer("l0", "Carlini & Wagner 2017", minimum_norm=True),
        "DeepFool": Peer("l2", "Moosavi-Dezfooli et al. 2016", minimum_norm=True, differs=_CLASSES),
        "ElasticNet": Peer("l1 l2", "Chen et al. 2018", minimum_norm=True,
                           differs="decision_rule chooses what it minimises: EN, L1 or L2"),
        "NewtonFool": Peer("l2", "Jang et al. 2017", minimum_norm=True, differs=_CLASSES),
        "VirtualAdversarialMethod": Peer("l2", "Miyato et al. 2016", "score", probabilities=True,
                                         differs="by finite differences, value by value: finite_diff=0.01 in float32"),
        "SaliencyMapMethod": Peer("l0", "Papernot et al. 2016",
                                  differs="draws its target classes; gamma is eps over the values of a sample"),
        "BoundaryAttack": Peer("l2", "Brendel et al. 2018", "decision", minimum_norm=True, alone=True),
        "HopSkipJump": Peer("l2 linf", "Chen et al. 2020", "decision", minimum_norm=True, alone=True),
        "SignOPTAttack": Peer("l2", "Cheng et al. 2020", "decision", minimum_norm=True, alone=True),
        "SimBA": Peer("l2", "Guo et al. 2019", "score", alone=True,
                      probabilities=True, differs="stops without regard to eps"),
        "ZooAttack": Peer("l2", "Chen et al. 2017", "score", minimum_norm=True, alone=True),
        "PixelAttack": Peer("l0", "Su et al. 2019", "score", alone=True, differs="th is eps over the channels"),
        "ThresholdAttack": Peer("linf", "Vargas & Kotyan 2019", "score", alone=True,
                                differs="th is eps in 1/255; es=0, CMA-ES, holds a matrix of values by values, es=1 does not"),
        "UniversalPerturbation": Peer("linf l2", "Moosavi-Dezfooli et al. 2017",
                                      differs="one perturbation for the whole batch"),
    }  # fmt: skip
    absent: ClassVar[Mapping[str, str]] = {
        "GeoDA": "it fails on NumPy 2 (a one-element array where a number is due); use hopskipjump",
        "BrendelBethgeAttack": "it needs numba; use foolbox:L2BrendelBethgeAttack",
        "AdversarialPatch": "it is bound by a patch, not by a norm",
        "AdversarialPatchPyTorch": "it is bound by a patch, not by a norm",
        "AdversarialPatchNumpy": "it is bound by a patch, not by a norm",
        "AdversarialTexturePyTorch": "it is bound by a patch, not by a norm",
        "CompositeAdversarialAttackPyTorch": "it is bound by colour and rotation, not by a norm",
        "SpatialTransformation": "it is bound by rotation and shift, not by a norm",
        "ShadowAttack": "it is bound by smoothness, not by a norm",
        "Wasserstein": "it is bound by the Wasserstein distance",
        "LaserAttack": "it is bound by a laser beam, not by a norm",
        "FeatureAdversariesPyTorch": "it needs guide images",
        "FeatureAdversariesNumpy": "it needs guide images",
        "TargetedUniversalPerturbation": "it needs target classes",
        "GRAPHITEBlackbox": "it needs target classes and a patch",
        "GRAPHITEWhiteboxPyTorch": "it needs target classes and a patch",
        "LowProFool": "it is for tables",
        "FrameSaliencyAttack": "it is for video",
        "OverTheAirFlickeringPyTorch": "it is for video",
        "DecisionTreeAttack": "it is for decision trees",
        "HighConfidenceLowUncertainty": "it is for Gaussian processes",
        "MalwareGDTensorFlow": "it is for executables",
        "DPatch": "it is for object detectors",
        "RobustDPatch": "it is for object detectors",
        "OverloadPyTorch": "it is for object detectors",
        "SNAL": "it is for object detectors",
        "CarliniWagnerASR": "it is for speech",
        "ImperceptibleASR": "it is for speech",
        "ImperceptibleASRPyTorch": "it is for speech",
        "ProjectedGradientDescentTensorFlowV2": "it is for TensorFlow",
        "FeatureAdversariesTensorFlowV2": "it is for TensorFlow",
        "AdversarialPatchTensorFlowV2": "it is for TensorFlow",
    }
    provided: ClassVar[Mapping[str, Callable[[Job], Any]]] = {
        "estimator": lambda job: _classifier(job),
        "classifier": lambda job: _classifier(job),
        "eps": lambda job: job.eps,
        "norm": lambda job: {"linf": math.inf, "l2": 2, "l1": 1}[job.norm],
        "targeted": lambda job: False,
        "gamma": lambda job: min(1.0, job.eps / job.values),
        "th": lambda job: job.pixels if job.norm == "l0" else max(1, int(255 * job.eps + 1e-6)),
        "batch_size": lambda job: len(job.x),
        "verbose": lambda job: False,
        "summary_writer": lambda job: False,
        "attacks": lambda job: None,
        "estimator_orig": lambda job: None,
        "parallel_pool_size": lambda job: 0,
        "adv_criterion": lambda job: None,
        "mask": lambda job: None,
    }

    def constructor(self, name: str) -> type[Any]:
        return getattr(self.load("art.attacks.evasion"), name)

    def options(self, name: str) -> dict[str, Any]:
        hidden = {"SquareAttack": {"loss"}, "UniversalPerturbation": {"attacker_params"}}.get(name, set())
        return {k: p for k, p in super().options(name).items() if k not in hidden}

    def arguments(self, name: str, job: Job) -> dict[str, Any]:
        given = super().arguments(name, job)
        if name == "UniversalPerturbation":
            del given["batch_size"]
        return given

    def search(self, name: str, job: Job) -> Tensor:
        attack = self.constructor(name)(**self.arguments(name, job))
        if name == "SaliencyMapMethod":  # takes labels for targets; without, it draws them
            return torch.from_numpy(attack.generate(job.x.cpu().numpy())).to(job.x)
        labels = nn.functional.one_hot(job.y, job.model.classes).float().cpu().numpy()
        with _seeded(job.seed):
            return torch.from_numpy(attack.generate(job.x.cpu().numpy(), labels)).to(job.x)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """For attacks that draw what no seed of ours decides.

    BoundaryAttack and HopSkipJump make a generator of their own from the system's entropy: give it the seed. cma, for
    ThresholdAttack, seeds the global one, which has ours, from the clock: have it leave that.
    """
    generator, reseed = np.random.RandomState, np.random.seed
    np.random.RandomState = functools.partial(generator, seed)  # type: ignore[misc, assignment]
    np.random.seed = lambda *_: None
    try:
        yield
    finally:
        np.random.RandomState, np.random.seed = generator, reseed  # type: ignore[misc]


def _classifier(job: Job) -> Any:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model=job.model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(job.x.shape[1:]),
        nb_classes=job.model.classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if job.x.device.type == "cuda" else "cpu",
    )
