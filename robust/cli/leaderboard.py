"""`robust leaderboard`."""

from __future__ import annotations

import shutil
import sys
from enum import StrEnum
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, help="Records of robust accuracy per model and defense.", rich_markup_mode=None
)


class Format(StrEnum):
    """How to print the table."""

    terminal = "terminal"
    markdown = "markdown"
    csv = "csv"
    latex = "latex"
    json = "json"


@app.callback()
def _group() -> None:
    """Records of robust accuracy per model and defense."""


@app.command("show", epilog="Example: robust leaderboard show robust-demo --format markdown")
def show(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="a sweep's --out folder, or any fsspec URL of records")
    ],
    fmt: Annotated[Format, typer.Option("--format", help="how to print it")] = Format.terminal,
) -> int:
    """Print the ranked table of a store."""
    from robust.leaderboard import Store, render

    width = shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 80
    print(render(Store(store).records(), fmt.value, width=width))
    return 0
