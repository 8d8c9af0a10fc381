"""`robust leaderboard`."""

from __future__ import annotations

import shlex
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robust.cli import common

if TYPE_CHECKING:
    from robust.leaderboard import Store
    from robust.report import Report
    from robust.target import Target

_INCOMPLETE = 3
_MISSPELT = 0.8  # so much like a registered name: a name of one's own is seldom
app = typer.Typer(
    no_args_is_help=True, help="Records of robust accuracy per model and defense.", rich_markup_mode=None
)
imports = typer.Typer(no_args_is_help=True, help="Take in other leaderboards.", rich_markup_mode=None)
app.add_typer(imports, name="import")


class Format(StrEnum):
    """How to print the table."""

    terminal = "terminal"
    markdown = "markdown"
    csv = "csv"
    latex = "latex"
    json = "json"


class Trust(StrEnum):
    """Which verdicts to show."""

    trusted = "trusted"
    suspect = "suspect"
    unreliable = "unreliable"
    unknown = "unknown"


class Sort(StrEnum):
    """What to sort the rows of a board by."""

    robust = "robust"
    clean = "clean"
    worst = "worst"
    passes = "passes"
    model = "model"
    defense = "defense"


@app.callback()
def _group() -> None:
    """Records of robust accuracy per model and defense."""


@app.command("show", epilog="Example: robust leaderboard show robust-demo --format markdown")
def show(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="a sweep's --out folder, or any fsspec URL of records")
    ],
    fmt: Annotated[Format, typer.Option("--format", help="how to print it")] = Format.terminal,
    threat: Annotated[
        str | None, typer.Option("--threat", metavar="NORM[:EPS]", help="only boards of this threat")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="TEXT", help="only boards on this data")
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", metavar="NAME", help="only boards of this suite")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="TEXT", help="only models named so")] = None,
    defense: Annotated[
        str | None, typer.Option("--defense", metavar="TEXT", help="only defenses named so")
    ] = None,
    trust: Annotated[Trust | None, typer.Option("--trust", help="only rows of this verdict")] = None,
    sort: Annotated[Sort, typer.Option("--sort", help="order within a board")] = Sort.robust,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="rows per board")] = None,
) -> int:
    """Print the ranked tables of a store.

    Ranks are among all rows of a board, whatever is shown of it: a range where paired tests, at 5 % for
    the board as a whole, cannot tell. Unreliable rows have none and stand below.
    """
    from functools import partial

    from robust.leaderboard import Store, choose, render, survivors

    width = shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 80
    where = Store(store)
    records, references = where.entries()
    if threat is not None:
        _check_threat(threat, {reference.norm for reference in references})
    chosen = partial(
        choose, threat=threat, data=data, suite=suite, model=model, defense=defense,
        trust=trust and trust.value, sort=sort.value, limit=limit,
    )  # fmt: skip
    survived = survivors(where, records)
    print(render(records, fmt.value, width=width, references=references, survived=survived, chosen=chosen))
    return 0


def _check_threat(threat: str, reported: set[str]) -> None:
    """Refuse what no board can be of, for a misspelt norm would read as "no records".

    Args:
        reported: threats of references, which may have names of their own.
    """
    from robust.errors import InputError
    from robust.registry import nearest
    from robust.threat import KINDS, Threat

    norm, _, eps = threat.strip().lower().partition(":")
    known = [*KINDS, *sorted(reported - set(KINDS))]
    if norm not in known:
        near = nearest(norm, known)
        hint = f"; did you mean {near!r}?" if near else ""
        raise InputError(f"--threat: expected one of {', '.join(known)}, got {norm!r}{hint}")
    if eps and norm in KINDS:
        Threat(norm, eps)


def _threat(text: str, option: str) -> str:
    """A threat, as it is written everywhere."""
    from robust.errors import InputError
    from robust.threat import Threat

    try:
        return str(Threat.parse(text))
    except InputError as error:
        raise InputError(f"{option}: {error}") from error


@app.command("compare", epilog="Example: robust leaderboard compare robust-demo 1f3a 9c07")
def compare(
    store: Annotated[str, typer.Argument(metavar="STORE", help="a folder, or any fsspec URL")],
    a: Annotated[
        str, typer.Argument(metavar="A", help="the first digits of a record's id, which is its file's name")
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="of another's")],
    json_: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="write the result as JSON")
    ] = None,
) -> int:
    """Compare two records sample by sample. Difference, interval and exact test, per class too."""
    import json

    from robust.leaderboard import Store, comparison_text
    from robust.leaderboard import compare as run

    common.writable_file(json_)
    where = Store(store)
    left, right = where.get(a), where.get(b)
    found = run(left, right, where.verdicts(left), where.verdicts(right))
    text = json.dumps(found.to_dict(), indent=1)
    unwritten = common.write_all(
        lambda: print(text if json_ == "-" else comparison_text(found)),
        lambda: common.write_json(json_, text) if json_ not in (None, "-") else None,
    )
    if unwritten:
        common.fail(unwritten)
    return 0


@imports.callback()
def _imports() -> None:
    """Take in other leaderboards."""


@imports.command(
    "robustbench", epilog="Example: robust leaderboard import robustbench model_info --out board"
)
def import_robustbench(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="entries, one a line, or RobustBench's model_info folder")
    ],
    out: Annotated[str, typer.Option("--out", metavar="STORE", help="a folder, or any fsspec URL")],
) -> int:
    """Take in RobustBench's entries. They become reference rows, marked as reported elsewhere."""
    from robust.leaderboard import Store, read_robustbench

    found = read_robustbench(path)
    amended = Store(out).amend_references(found.references)
    print(f"{len(found.references)} entries filed in {out}")
    if amended:
        print(f"{amended} amended since: what they said before is gone")
    if found.repeated:
        print(f"{found.repeated} came twice in the same words")
    for note, count in sorted(found.oddities.items()):
        print(f"{count} with a note: {note}")
    return 0


@app.command("publish", epilog="Example: robust leaderboard publish robust-demo --out site")
def publish(
    store: Annotated[str, typer.Argument(metavar="STORE", help="a folder, or any fsspec URL")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="folder of the site; made if missing")],
) -> int:
    """Make a static site of a store. Boards, a page per entry, comparisons, exports; and the files to verify it."""
    from robust.leaderboard import Store
    from robust.leaderboard.site import publish as run

    written = run(Store(store), out)
    print(f"{len(written)} files; open {out / 'index.html'}")
    return 0


@app.command("schema", epilog="Example: robust leaderboard schema > record.schema.json")
def schema() -> int:
    """Print the JSON schema of a record."""
    import json

    from robust.leaderboard import Record

    print(json.dumps(Record.model_json_schema(), indent=1))
    return 0


@app.command("add", epilog="Example: robust leaderboard add runs/mine --store board --name my-net")
def add(
    folder: Annotated[Path, typer.Argument(metavar="REPORT", help="folder that `robust attack --out` wrote")],
    store: Annotated[str, typer.Option("--store", metavar="STORE", help="a folder, or any fsspec URL")],
    name: Annotated[str, typer.Option("--name", help="of the model, to show")],
    defense: Annotated[
        str | None,
        typer.Option(
            "--defense",
            metavar="NAME",
            help="how it was hardened [default: the transform that it was attacked behind, else none]",
        ),
    ] = None,
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
    """File a saved report in a store. Its adversarial examples come along where they were kept."""
    from robust.errors import InputError, RobustError
    from robust.leaderboard import Record, Store, examples_bytes, with_clean
    from robust.report import Report
    from robust.sources import load_data

    if paper_url and not paper:
        raise InputError("--paper-url: needs --paper, its title")
    if not name.strip():
        raise InputError("--name: expected what the model is to be called, got nothing")
    trained_against = None if trained_threat is None else _threat(trained_threat, "--trained-threat")
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
            **_defense(report, defense, common.settings(set_)),
            "trained_threat": trained_against,
            "trained_by": trained_by,
        },
        command=shlex.join(["robust", *sys.argv[1:]]),
        examples=examples,
        model={"source": source, "licence": licence, "extra_data": extra_data},
        paper={"title": paper, "url": paper_url} if paper else None,
    )
    Store(store).add(record, report.verdicts, examples=examples)
    print(f"{store}/records/{record.id}.json")
    _tell_near_miss(record.defense.name)
    return 0


def _tell_near_miss(defense: str) -> None:
    """A defense may be anybody's, by any name; but one almost like a registered one's is hardly meant."""
    from robust.defenses import DEFENSES

    for name in defense.split("+"):
        near = None if name in DEFENSES else DEFENSES.near(name, _MISSPELT)
        if near:
            print(
                f"robust: --defense: filed as {name!r}, which no defense here is called; did you mean {near!r}?",
                file=sys.stderr,
            )


def _defense(report: Report, name: str | None, options: dict[str, str]) -> dict[str, Any]:
    """Name and parameters of the defense: as given, else of the transform that the report's model is behind."""
    from robust.behind import transform_of

    transform = None if name or options else transform_of(str(report.model["spec"]))
    if transform is None:
        return {"name": name or "none", "parameters": options}
    return {"name": transform.title, "parameters": transform.parameters}


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
    """Check a record without believing it, a line per check.

    Exit status 1 on any mismatch; 3 where nothing contradicts the record, and a check that was asked for could not be
    made ("?"). "-" marks checks that need more than was given.
    """
    import secrets

    from robust.errors import InputError
    from robust.failures import naming_failures
    from robust.leaderboard import Store
    from robust.leaderboard import verify as run

    if rerun and model is None:
        raise InputError("--rerun: needs --model, what to attack")
    where, name = Store.locate(path) if store is None else (Store(store), f"{Store(store).find(path)}.json")
    target = None if model is None else _target(where, name, model, weights, normalize, device)
    draw = secrets.randbits(32) if draw is None else draw
    found = []
    with naming_failures():
        for outcome in run(where, name, target=target, data=data, rerun=rerun, draw=draw):
            print(outcome, flush=True)
            found.append(outcome)
    failed = sum(outcome.ok is False for outcome in found)
    unverified = any(outcome.ok is None and outcome.asked for outcome in found)
    if failed:
        print(f"{failed} of the checks failed")
        return 1
    if unverified:
        print("nothing contradicts the record, but not all is verified: see the lines with ?")
        return _INCOMPLETE
    print("nothing contradicts the record")
    return 0


def _target(
    store: Store, name: str, model: str, weights: str | None, normalize: tuple[str, str] | None, device: str
) -> Target:
    """The model to verify with, in front of it what the record says, unless told otherwise."""
    from robust.errors import StoreError
    from robust.leaderboard.rebuild import rebuild, wrapper_of
    from robust.sources import load

    moments = common.normalization(normalize)
    try:
        record = store.read(name)
    except StoreError:  # a damaged record is the verification's to tell
        return load(model, weights, normalize=moments, device=device)
    wrapper = wrapper_of(record)
    if wrapper is not None:
        print(f"robust: {wrapper.title} goes in front of the model, as the record says", file=sys.stderr)
    return rebuild(record, model, weights, normalize=moments, device=device)
