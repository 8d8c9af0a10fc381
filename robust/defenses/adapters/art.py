"""What is known of ART's defenses before it is imported, and their parameters once it is."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from robust.attacks.adapters.library import Package
from robust.attacks.adapters.options import read_option
from robust.defenses.base import Defense
from robust.errors import InputError

Role = Literal["preprocessor", "augmentation", "trainer"]
_VIDEO, _TENSORFLOW = "it is for sound and video", "it is for TensorFlow"
_ABSTRACT = "it is abstract; use {}"


@dataclass(frozen=True)
class Peer:
    """What is known of one.

    Args:
        role: "preprocessor": in front of the deployed model; "augmentation": of training batches; "trainer":
            gives the gradients of a training step.
        paper: its source.
        layout: its images are "NCHW", or "NHWC".
        attack: a trainer that is given an attack: ART's PGD, whose parameters it then has too.
        differs: what else to know of it.
    """

    role: Role
    paper: str
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    attack: bool = False
    differs: str = ""

    @property
    def masks_gradients(self) -> bool:
        """Whether it is known to stop gradient attacks without holding."""
        return self.role == "preprocessor"


class ART(Package):
    """ART's defenses."""

    name = "art"
    package = "adversarial-robustness-toolbox"
    extra = "art"
    kind = "defense"
    peers: ClassVar[Mapping[str, Peer]] = {
        "FeatureSqueezing": Peer("preprocessor", "Xu et al. 2018"),
        "SpatialSmoothing": Peer("preprocessor", "Xu et al. 2018"),
        "JpegCompression": Peer("preprocessor", "Das et al. 2017", differs="cuts values off to 8 bits"),
        "TotalVarMin": Peer("preprocessor", "Guo et al. 2018", layout="NHWC",
                            differs="draws pixels: attack it with EOT; solves a problem per image, slow"),
        "GaussianAugmentation": Peer("augmentation", "Zantedeschi et al. 2017"),
        "Cutout": Peer("augmentation", "DeVries & Taylor 2017"),
        "Mixup": Peer("augmentation", "Zhang et al. 2018"),
        "CutMix": Peer("augmentation", "Yun et al. 2019"),
        "LabelSmoothing": Peer("augmentation", "Warde-Farley & Goodfellow 2016"),
        "AdversarialTrainer": Peer("trainer", "Goodfellow et al. 2015", attack=True),
        "AdversarialTrainerMadryPGD": Peer("trainer", "Madry et al. 2018"),
        "AdversarialTrainerTRADESPyTorch": Peer("trainer", "Zhang et al. 2019", attack=True),
        "AdversarialTrainerAWPPyTorch": Peer("trainer", "Wu et al. 2020", attack=True),
        "AdversarialTrainerFBFPyTorch": Peer("trainer", "Wong et al. 2020",
                                             differs="trains with batch norms in eval mode"),
    }  # fmt: skip
    absent: ClassVar[Mapping[str, str]] = {
        "SpatialSmoothingPyTorch": "it needs kornia; SpatialSmoothing does the same",
        "ThermometerEncoding": "it changes the shape of inputs: a model for it must be made first",
        "PixelDefend": "it needs a trained generative model",
        "Resample": _VIDEO,
        "Mp3Compression": _VIDEO,
        "Mp3CompressionPyTorch": _VIDEO,
        "VideoCompression": _VIDEO,
        "VideoCompressionPyTorch": _VIDEO,
        "SpatialSmoothingTensorFlowV2": _TENSORFLOW,
        "CutoutTensorFlowV2": _TENSORFLOW,
        "MixupTensorFlowV2": _TENSORFLOW,
        "CutMixTensorFlowV2": _TENSORFLOW,
        "CutoutPyTorch": "Cutout does the same",
        "MixupPyTorch": "Mixup does the same",
        "CutMixPyTorch": "CutMix does the same",
        "AdversarialTrainerFBF": _ABSTRACT.format("AdversarialTrainerFBFPyTorch"),
        "AdversarialTrainerTRADES": _ABSTRACT.format("AdversarialTrainerTRADESPyTorch"),
        "AdversarialTrainerAWP": _ABSTRACT.format("AdversarialTrainerAWPPyTorch"),
        "AdversarialTrainerOAAT": "it needs a second network for distances between images",
        "AdversarialTrainerOAATPyTorch": "it needs a second network for distances between images",
        "AdversarialTrainerCertifiedPytorch": "it needs a model of ART's own, made for its certificates",
        "AdversarialTrainerCertifiedIBPPyTorch": "it needs a model of ART's own, made for its certificates",
        "DPInstaHideTrainer": "it defends against poisoned training data, which is not measured here",
    }
    provided: ClassVar[tuple[str, ...]] = (
        "classifier", "proxy_classifier", "attack", "attacks", "eps", "nb_epochs", "batch_size", "use_amp", "warmup",
        "num_classes", "clip_values", "channels_first", "apply_fit", "apply_predict", "verbose",
    )  # fmt: skip

    def names(self) -> list[str]:
        """The defenses that can be asked for."""
        return sorted(self.peers)

    def constructor(self, name: str) -> type[Any]:
        """The library's own class of that name; imports the library."""
        part = "trainer" if self.peers[name].role == "trainer" else "preprocessor"
        found: type[Any] = getattr(self.load(f"art.defences.{part}"), name)
        return found

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The parameters of the library's defense that are the user's to set.

        A class whose own signature lacks a default is asked for that of the class that it specialises.
        """
        found: dict[str, inspect.Parameter] = {}
        for cls in self.constructor(name).__mro__[:2]:
            for key, parameter in inspect.signature(cls).parameters.items():
                known = found.get(key)
                if known is None or known.default is inspect.Parameter.empty:
                    found[key] = parameter
        own = inspect.signature(self.constructor(name)).parameters
        return {key: found[key] for key in own if key not in self.provided}

    def call(self, name: str, given: Mapping[str, Any]) -> Any:
        """An object of the library's class from those of the given arguments that it takes.

        Raises:
            InputError: it refuses a value.
        """
        constructor = self.constructor(name)
        taken = inspect.signature(constructor).parameters
        try:
            return constructor(**{key: value for key, value in given.items() if key in taken})
        except (TypeError, ValueError, AssertionError) as error:
            raise InputError(f"art:{name}: {' '.join(str(error).split())}") from error


def make_class(library: ART, name: str, base: type[Defense], **defaults: Any) -> type[Any]:
    """A subclass of `base` whose further fields are the library's parameters.

    Args:
        defaults: of parameters that the library has none or another for.
    """
    peer, options = library.peers[name], []
    for key, parameter in library.options(name).items():
        like = defaults.get(key, parameter.default)
        whole = type(like) is int and "float" not in str(parameter.annotation)
        kind = Annotated[Any, BeforeValidator(partial(read_option, like=like, whole=whole))]
        options.append((key, kind, field(default=like)))
    about = {
        "name": f"{library.name}:{name}", "paper": peer.paper, "library": library, "peer": peer, "label": name,
        "keys": tuple(key for key, *_ in options), "masks_gradients": peer.masks_gradients, "__module__": __name__,
        "__doc__": f"{name} of {library.name} ({peer.paper}).",
    }  # fmt: skip
    return make_dataclass(f"{library.name}_{name}", options, bases=(base,), namespace=about, frozen=True)
