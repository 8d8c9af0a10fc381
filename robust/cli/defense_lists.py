"""`robust list defenses`: all, another library's, or one in full."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Final

from robust.cli import common

if TYPE_CHECKING:
    from robust.defenses import Defense

_MASKS: Final = "masks gradients; attacked through BPDA"


def show(name: str | None) -> int:
    """Print all defenses, those of one library, or one."""
    from robust.defenses import DEFENSES
    from robust.defenses.adapters import LIBRARY

    if name is not None and name != LIBRARY.name:
        print(_one(name, DEFENSES[name]))
        return 0
    if name is None:
        _own()
    _library()
    print("`robust list defenses NAME` shows one with its options.")
    return 0


def _own() -> None:
    from tabulate import tabulate

    from robust.defenses import DEFENSES

    rows = [
        [name, common.wrapped(_paper(cls), "", 24), common.wrapped(", ".join(_options(cls)), "", 38)]
        for name, cls in ((name, DEFENSES[name]) for name in DEFENSES)
    ]
    heads = ["defense", "paper", "options (--set)"]
    print(tabulate(rows, heads, tablefmt="simple") + "\n")


def _library() -> None:
    from tabulate import tabulate

    from robust.defenses.adapters import LIBRARY

    state = LIBRARY.version or f'not installed: pip install "robust-harness[{LIBRARY.extra}]"'
    rows = [
        [
            f"{LIBRARY.name}:{name}",
            peer.paper,
            peer.role + ("; masks gradients" if peer.masks_gradients else ""),
        ]
        for name, peer in sorted(LIBRARY.peers.items())
    ]
    print(f"source: {LIBRARY.name} {state}\n")
    heads = ["defense", "paper", "what it is"]
    print(tabulate(rows, heads, tablefmt="simple", maxcolwidths=[None, 22, 18]) + "\n")


def _paper(cls: type[Defense]) -> str:
    return cls.paper + ("; masks gradients" if cls.masks_gradients else "")


def _options(cls: type[Defense]) -> list[str]:
    simple = (f for f in fields(cls) if f.default is not MISSING)  # no mapping of a wrapped one's options
    return [f"{f.name}={f.default}" for f in simple]


def _one(name: str, cls: type[Defense]) -> str:
    from robust.defenses.adapters import LIBRARY

    peer = LIBRARY.peers.get(name.partition(":")[2])
    facts = [("paper", cls.paper), ("options (--set)", ", ".join(_options(cls)) or "none")]
    if cls.masks_gradients:
        facts.append(("warning", _MASKS))
    if peer and peer.differs:
        facts.append(("note", peer.differs))
    lines = [name, "", common.described(cls), ""]
    return "\n".join(lines + [common.wrapped(f"{key}: {value}", "  ") for key, value in facts])
