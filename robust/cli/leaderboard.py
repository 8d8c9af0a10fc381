"""`robust leaderboard`."""

from __future__ import annotations

import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robust.cli import common

if TYPE_CHECKING:
    from robust.leaderboard import Store
    from robust.target import Target

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


@app.command("add", epilog="Example: robust leaderboard add runs/mine --store board --name my-net")
def add(
    folder: Annotated[Path, typer.Argument(metavar="REPORT", help="folder that `robust attack --out` wrote")],
    store: Annotated[str, typer.Option("--store", metavar="STORE", help="a folder, or any fsspec URL")],
    name: Annotated[str, typer.Option("--name", help="of the model, to show")],
    defense: Annotated[str, typer.Option("--defense", metavar="NAME", help="how it was hardened")] = "none",
    set_: common.SetOption = None,
    trained_threat: Annotated[
        str | None, typer.Option("--trained-threat", metavar="NORM:EPS", help="hardened against")
    ] = None,
    trained_by: Annotated[str | None, typer.Option("--trained-by", help="who hardened it")] = None,
    source: Annotated[str | None, typer.Option("--source", metavar="URL", help="of the weights")] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="of the weights")] = None,
    extra_data: Annotated[
        bool | None, typer.Option("--extra-data/--no-extra-data", help="trained on more than its own set")
    ] = None,
    paper: Annotated[
        str | None, typer.Option("--paper", metavar="TITLE", help="where it was published")
    ] = None,
    paper_url: Annotated[str | None, typer.Option("--paper-url", metavar="URL")] = None,
) -> int:
    """File a saved report in a store, with its adversarial examples where they were kept."""
    from robust.errors import InputError, RobustError
    from robust.leaderboard import Record, Store, examples_bytes, with_clean
    from robust.report import Report
    from robust.sources import load_data

    if paper_url and not paper:
        raise InputError("--paper-url: needs --paper, its title")
    report = Report.load(folder)
    examples = None
    if report.examples is not None:
        kept = dict(report.examples)
        try:  # beside their clean points they can be audited and shown without the data
            kept = with_clean(kept, load_data(str(report.data["spec"]), bounds=report.threat.bounds))
        except RobustError as error:
            print(f"robust: examples are filed without their clean points: {error}", file=sys.stderr)
        examples = examples_bytes(kept)
    record = Record.from_report(
        report,
        name=name,
        defense={
            "name": defense,
            "parameters": common.settings(set_),
            "trained_threat": trained_threat,
            "trained_by": trained_by,
        },
        command=" ".join(["robust", *sys.argv[1:]]),
        examples=examples,
        model={"source": source, "licence": licence, "extra_data": extra_data},
        paper={"title": paper, "url": paper_url} if paper else None,
    )
    Store(store).add(record, report.verdicts, examples=examples)
    print(f"{store}/records/{record.id}.json")
    return 0


@app.command(
    "verify",
    epilog="Example: robust leaderboard verify board/records/ID.json --model builtin:mnist-cnn "
    "--weights weights.safetensors --rerun 20",
)
def verify(
    path: Annotated[
        str, typer.Argument(metavar="RECORD", help="STORE/records/ID.json, or an id with --store")
    ],
    model: Annotated[
        str | None, typer.Option("--model", metavar="SPEC", help="forward what was saved through this model")
    ] = None,
    weights: common.WeightsOption = None,
    normalize: common.NormalizeOption = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="SPEC", help="the samples [default: those that the record names]"),
    ] = None,
    rerun: Annotated[
        int, typer.Option("--rerun", metavar="N", min=0, help="attack N random samples again")
    ] = 0,
    draw: Annotated[
        int | None,
        typer.Option("--draw", metavar="SEED", min=0, help="of their choice [default: a fresh one]"),
    ] = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="STORE", help="where the record with this id is")
    ] = None,
    device: common.DeviceOption = "auto",
) -> int:
    """Check a record without believing it: a line per check, exit status 1 on any mismatch."""
    import secrets

    from robust.errors import InputError
    from robust.leaderboard import Store
    from robust.leaderboard import verify as run

    if rerun and model is None:
        raise InputError("--rerun: needs --model, what to attack")
    where, name = Store.locate(path) if store is None else (Store(store), f"{Store(store).find(path)}.json")
    failed = 0
    target = None if model is None else _target(where, name, model, weights, normalize, device)
    draw = secrets.randbits(32) if draw is None else draw
    for outcome in run(where, name, target=target, data=data, rerun=rerun, draw=draw):
        print(outcome, flush=True)
        failed += outcome.ok is False
    print(f"{failed} of the checks failed" if failed else "nothing contradicts the record")
    return 1 if failed else 0


def _target(
    store: Store, name: str, model: str, weights: str | None, normalize: tuple[str, str] | None, device: str
) -> Target:
    """The model to verify with, in front of it what the record says, unless told otherwise."""
    from contextlib import suppress

    from robust.errors import StoreError
    from robust.sources import load_model
    from robust.target import Normalization, Target

    bounds = (0.0, 1.0)
    moments: Normalization | None = common.normalization(normalize)
    with suppress(StoreError):  # a damaged record is the verification's to tell
        record = store.read(name)
        bounds, moments = record.threat.bounds, moments or record.model.normalize
    return Target(load_model(model, weights), normalize=moments, bounds=bounds, device=device)
