"""How torch's threads wait for each other."""

from __future__ import annotations

import os
import sys
from typing import Final

_SPINS: Final = "2000"


def yield_soon() -> None:
    """Let threads that wait spin for microseconds, not milliseconds, before they give their core away.

    By default threads of libgomp spin for so long that two of them slow each other down many times over as
    soon as another process wants a core, as on a CI runner. The library reads this when torch is imported: call
    it before. A choice that the user made in the environment stays.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
