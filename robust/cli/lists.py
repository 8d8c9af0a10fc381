"""`robust list`."""

from __future__ import annotations

import inspect
from enum import StrEnum
from typing import Annotated

import typer

EPILOG = "Example: robust list attacks, or: robust list attacks art:SquareAttack"


class What(StrEnum):
    """What can be listed."""

    attacks = "attacks"
    defenses = "defenses"
    suites = "suites"
    models = "models"
    data = "data"
    checks = "checks"


def show(
    what: Annotated[What, typer.Argument(help="what to list")],
    name: Annotated[
        str | None, typer.Argument(help="one attack or defense, or one library's: art, art:DeepFool")
    ] = None,
) -> int:
    """List what there is by name."""
    from tabulate import tabulate

    from robust.cli import attack_lists, defense_lists
    from robust.errors import InputError

    if what is What.attacks:
        return attack_lists.show(name)
    if what is What.defenses:
        return defense_lists.show(name)
    if name is not None:
        raise InputError(
            f"list {what.value}: takes no name, got {name!r}; only attacks and defenses are shown one by one"
        )
    heads, rows, widths = _TABLES[what]()
    print(tabulate(rows, heads, tablefmt="simple", maxcolwidths=widths))
    return 0


Table = tuple[list[str], list[list[str]], list[int | None]]


def _first_line(item: object) -> str:
    return (inspect.getdoc(item) or "").partition("\n")[0]


def _suites() -> Table:
    from robust.suites import SUITES, VERSIONS

    rows = [[name, str(VERSIONS.get(name, "-")), _first_line(SUITES[name])] for name in SUITES]
    return ["suite", "version", "what it is"], rows, [None, None, 53]


def _models() -> Table:
    from robust.sources import MODELS

    return (
        ["model", "what it is"],
        [[f"builtin:{name}", _first_line(MODELS[name])] for name in MODELS],
        [None, 50],
    )


def _data() -> Table:
    from robust.sources import DATASETS

    return (
        ["data", "what it is"],
        [[f"builtin:{name}", _first_line(DATASETS[name])] for name in DATASETS],
        [None, 55],
    )


def _checks() -> Table:
    from robust.diagnose import CHECKS

    return ["check", "fires when"], [[name, CHECKS[name].rule] for name in CHECKS], [None, 58]


_TABLES = {
    What.suites: _suites,
    What.models: _models,
    What.data: _data,
    What.checks: _checks,
}
