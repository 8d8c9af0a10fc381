"""Defenses of ART (Nicolae et al. 2018, arXiv 1807.01069) by name: `art:FeatureSqueezing`.

The library is imported when a defense of it is first asked for. Its preprocessors go in front of a model, its
augmentations and trainers give the gradients of a step on the one training loop.
"""

from functools import cache

from robust.defenses.adapters.art import ART, Peer
from robust.defenses.adapters.augmentations import augmentation_of
from robust.defenses.adapters.preprocessors import preprocessor_of
from robust.defenses.adapters.trainers import trainer_of
from robust.defenses.base import DEFENSES, Defense

LIBRARY = ART()
_MAKERS = {"preprocessor": preprocessor_of, "augmentation": augmentation_of, "trainer": trainer_of}


@cache
def adapter_of(name: str) -> type[Defense]:
    """ART's defense as one of ours: its parameters are the library's own, with the library's defaults."""
    return _MAKERS[LIBRARY.peers[name].role](LIBRARY, name)


DEFENSES.annex(LIBRARY.name, adapter_of, LIBRARY.names, LIBRARY.refuse)

__all__ = ["LIBRARY", "Peer", "adapter_of"]
