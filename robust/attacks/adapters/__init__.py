"""Attacks of other libraries by name: `torchattacks:NAME`, `art:NAME`, `foolbox:NAME`.

A library is imported when an attack of it is first asked for. Its attack sees the same target through the same
oracle as ours, is scored on the points it returns by the same audit, and its passes are counted by hooks; see
`Meter` for how they are split over samples.
"""

from functools import partial

from robust.attacks.adapters.art import ART
from robust.attacks.adapters.base import Adapter, adapter_of
from robust.attacks.adapters.foolbox import Foolbox
from robust.attacks.adapters.library import Job, Library, Peer
from robust.attacks.adapters.meter import Meter
from robust.attacks.adapters.torchattacks import Torchattacks
from robust.attacks.base import ATTACKS

LIBRARIES: dict[str, Library] = {library.name: library for library in (Torchattacks(), ART(), Foolbox())}
for _library in LIBRARIES.values():
    ATTACKS.annex(_library.name, partial(adapter_of, _library), _library.names, _library.refuse)

__all__ = ["LIBRARIES", "Adapter", "Job", "Library", "Meter", "Peer", "adapter_of"]
