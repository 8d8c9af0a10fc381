"""`robust attack`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast

import typer

from robust.cli import common

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from robust.attacks import Attack
    from robust.evaluation import Diagnose
    from robust.report import Report
    from robust.run import Precision, Progress
    from robust.sources import Samples
    from robust.target import Target
    from robust.threat import Threat

EPILOG = (
    "Example: robust attack --model builtin:mnist-cnn --weights weights.safetensors "
    "--data builtin:mnist5k --threat linf:0.1 --attack pgd --set steps=100 --json -"
)
_LONG: Final = 48  # characters of an attack's label
_COLUMN: Final = 24  # characters of a line of it
_BESIDE: Final = 3  # parameters beside the number of one of several of its name


def attack(
    model: common.ModelOption,
    data: common.DataOption,
    threat: common.ThreatOption,
    weights: common.WeightsOption = None,
    transform: Annotated[
        str | None,
        typer.Option(
            "--transform",
            metavar="NAME,...",
            help="an input transform in front of the model, attacked through BPDA: jpeg,quality=50",
        ),
    ] = None,
    suite: Annotated[str | None, typer.Option("--suite", help="a suite's name [default: standard]")] = None,
    attack_name: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            metavar="NAME",
            help="an attack instead of a suite (pgd, torchattacks:PGD, art:..., foolbox:...); may be repeated",
        ),
    ] = None,
    set_: common.SetOption = None,
    limit: common.LimitOption = None,
    seed: common.SeedOption = 0,
    device: common.DeviceOption = "auto",
    batch_size: Annotated[
        str, typer.Option("--batch-size", help="auto, or rows a pass takes at most")
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            "--precision", help="of the search: auto, float32 or bfloat16; judging is always float32"
        ),
    ] = "auto",
    diagnose: Annotated[
        str, typer.Option("--diagnose", help="standard, or full: all checks, with searches of their own")
    ] = "standard",
    normalize: common.NormalizeOption = None,
    groups: Annotated[
        str | None,
        typer.Option(
            "--groups",
            metavar="COLUMN",
            help="of the data: also robust accuracy per group [default: group, where there is one]",
        ),
    ] = None,
    eot: Annotated[
        int | None,
        typer.Option("--eot", metavar="K", help="draws of a randomised model that make up an answer"),
    ] = None,
    vote: Annotated[
        str, typer.Option("--vote", help="of those draws: expectation or majority")
    ] = "expectation",
    curve: Annotated[
        str | None,
        typer.Option(
            "--curve",
            metavar="EPS,...",
            help="also robust accuracy at these radii, from one search: upper bounds, looser than an evaluation at each",
        ),
    ] = None,
    json_: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="write the result as JSON")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="write report and verdict table")
    ] = None,
    save_examples: Annotated[
        bool, typer.Option("--save-examples", help="keep the adversarial examples in --out")
    ] = False,
    explain: Annotated[
        Path | None,
        typer.Option("--explain", metavar="DIR", help="draw where passes went, classes, confusion, panels"),
    ] = None,
) -> int:
    """Robust accuracy of a model under attack, sample by sample."""
    from robust.behind import name_behind
    from robust.errors import InputError
    from robust.evaluation import Interrupted, evaluate
    from robust.threat import Threat

    if save_examples and out is None:
        raise InputError("--save-examples: needs --out, the folder to keep them in")
    attacks = _attacks(suite, attack_name or [], set_)
    parsed = Threat.parse(threat)
    radii = _radii(curve, parsed, attacks)
    _check_places(json_, out, explain)
    target = common.target(model, weights, normalize, device, transform=transform)
    chosen = common.samples(data, limit, target, groups)
    interrupted = False
    with common.bars() as bars:
        try:
            report = evaluate(
                target,
                chosen,
                threat=parsed,
                suite=attacks or suite or "standard",
                seed=seed,
                batch_size=cast("int | Literal['auto']", common.batch(batch_size)),
                precision=cast("Precision", precision),
                diagnose=cast("Diagnose", diagnose),
                eot=eot,
                vote=cast("Literal['expectation', 'majority']", vote),
                keep_examples=save_examples or explain is not None,
                minimize=bool(radii),
                model_spec=model if transform is None else name_behind(model, transform),
                progress=_shown_on(bars),
            )
        except Interrupted as stopped:
            report, interrupted = stopped.report, True
    unwritten = common.write_all(
        lambda: _show(report, json_, radii),
        lambda: _save(report, out, examples=save_examples),
        lambda: _save_json(report, json_, radii),
        lambda: _draw(report, explain, target, chosen),
    )
    if unwritten:
        common.fail(unwritten)
    if interrupted:
        common.fail("interrupted; samples that were not attacked to the end have no verdict", 130)
    return 3 if report.statuses["error"] else 0


def _attacks(suite: str | None, names: Sequence[str], set_: Sequence[str] | None) -> list[Attack]:
    """The attacks of --attack and --set; none where a suite is to be run."""
    from robust.errors import InputError
    from robust.suites.resolve import make_single

    if suite == "":
        raise InputError(
            "--suite: expected a suite's name, got an empty one; `robust list suites` shows them"
        )
    if suite and names:
        raise InputError("--suite, --attack: give one of them, not both")
    options = common.settings(set_)
    if options and len(names) != 1:
        raise InputError("--set: needs exactly one --attack whose options it sets")
    return [make_single(name, **options) for name in names]


def _check_places(json_: str | None, out: Path | None, explain: Path | None) -> None:
    """Refuse what could not be written in the end, before any passes are spent."""
    for option, folder in (("--out", out), ("--explain", explain)):
        if folder is not None:
            common.writable_folder(folder, option)
    if explain is not None:
        from robust.explain import check_drawable

        check_drawable()
    common.writable_file(json_, folders=(out, explain))


def _shown_on(bars: Bars) -> Callable[[Progress], None]:
    """What moves a bar for every stage."""
    tasks: dict[str, TaskID] = {}

    def show(step: Progress) -> None:
        if step.stage not in tasks:
            tasks[step.stage] = bars.add_task(step.stage, total=step.total)
        left = "" if step.stage == "clean" else f"  standing {step.surviving}/{step.n}"
        bars.update(tasks[step.stage], completed=step.done, description=step.stage + left)

    return show


def _radii(curve: str | None, threat: Threat, attacks: Sequence[Attack]) -> list[str]:
    """The radii asked for; what is none, or is not searched, is refused before anything is computed."""
    from robust.errors import InputError
    from robust.report import curve_radii

    if curve is None:
        return []
    radii = [eps.strip() for eps in curve.split(",")]
    # To a suite that has no minimum-norm attack `evaluate` adds one.
    unlimited = not attacks or any(attack.minimum_norm for attack in attacks)
    try:
        curve_radii(threat, radii, unlimited=unlimited)
    except InputError as error:
        raise InputError(f"--curve: {str(error).removeprefix('curve: ')}") from error
    return radii


def _show(report: Report, json_: str | None, radii: list[str]) -> None:
    """The report on standard output, before anything is written that could fail."""
    from tabulate import tabulate

    if json_ == "-":
        print(_as_json(report, radii))
        return
    print(summary(report))
    if not report.groups.empty:
        print(f"\n{_shares(report.groups)}")
    if radii:
        lines = [
            (eps, f"{point['robust_accuracy']:.2%}", f"[{point['low']:.1%}, {point['high']:.1%}]")
            for eps, point in zip(radii, report.curve(radii).to_dict("records"), strict=True)
        ]
        print()
        print(tabulate(lines, ("eps", "robust accuracy", "95 % interval"), disable_numparse=True))
    for failure in report.failures:
        print(f"robust: {failure.splitlines()[0]}", file=sys.stderr)


def _save(report: Report, out: Path | None, *, examples: bool) -> None:
    if out is not None:
        (report if examples else replace(report, examples=None)).save(out)


def _save_json(report: Report, json_: str | None, radii: list[str]) -> None:
    if json_ is not None and json_ != "-":
        common.write_json(json_, _as_json(report, radii))


def _as_json(report: Report, radii: list[str]) -> str:
    curve = {"curve": report.curve(radii).to_dict("records")} if radii else {}
    return json.dumps({**report.to_dict(), **curve}, indent=2, allow_nan=False)


def _draw(report: Report, explain: Path | None, target: Target, samples: Samples) -> None:
    for picture in report.plot(explain, target=target, samples=samples) if explain else []:
        print(picture, file=sys.stderr)


def _shares(table: DataFrame) -> str:
    """Accuracy per group, for a terminal of 80 columns."""
    from tabulate import tabulate

    rows = [
        (
            str(row["group"])[:28], row["n"], f"{row['clean_accuracy']:.1%}", f"{row['robust_accuracy']:.1%}",
            f"[{row['low']:.1%}, {row['high']:.1%}]",
        )
        for row in table.to_dict("records")
    ]  # fmt: skip
    heads = ("group", "samples", "clean", "robust", "95 % interval")
    return tabulate(rows, heads, disable_numparse=True, colalign=("left", *["right"] * 4))


def _chance(report: Report) -> str:
    from robust.examination import near_chance

    classes = 1 + int(report.verdicts[["label", "prediction"]].to_numpy().max())
    hint = "; near chance: `robust doctor` may tell why"
    return hint if classes > 1 and near_chance(report.clean_accuracy, classes) else ""


def _robust_line(report: Report) -> str:
    """The verdict; after an interruption what it may still be, for an interval of what was not attacked says nothing."""
    stand, open_ = report.statuses["survived"], report.statuses["error"]
    if open_ and any(finding["check"] == "interrupted" for finding in report.findings):
        most = (stand + open_) / report.n
        return f"robust accuracy  between {stand / report.n:.2%} and {most:.2%}: {open_} of {report.n} not attacked to the end"
    low, high = report.interval
    return f"robust accuracy  {report.robust_accuracy:7.2%}   {stand} of {report.n}, 95 % interval [{low:.1%}, {high:.1%}]"


def _names(attacks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Attack labels of a report's entries for a table: whole ones, unless some are long or the same; then what tells them apart."""
    from robust.attacks.labels import told_apart

    labels = [entry["label"] for entry in attacks]
    if max(map(len, labels), default=0) > _LONG or len({*labels}) < len(labels):
        parameters = [entry["parameters"] for entry in attacks]
        return [" ".join(lines) for lines in told_apart(labels, beside=_BESIDE, parameters=parameters)]
    return [_breakable(label) for label in labels]


def _breakable(label: str) -> str:
    """A label with spaces where a line of its column may end."""
    spaced = re.sub(r",\s*(?!\))", ", ", label)
    return spaced if len(spaced.split(" ")[0]) <= _COLUMN else spaced.replace("(", " (", 1)


def summary(report: Report) -> str:
    """The report for a terminal of 80 columns."""
    from textwrap import fill

    from tabulate import tabulate

    named = list(zip(_names(report.attacks), report.attacks, strict=True))
    some = [(name, e) for name, e in named if e["attacked"]] or named
    idle = [name for name, e in named if not e["attacked"] and len(some) < len(named)]
    rows = [
        (
            name,
            e["attacked"],
            e["broke"],
            e["survived"],
            e["forwards"],
            e["backwards"],
            f"{e['seconds']:.1f}",
        )
        for name, e in some
    ]
    heads = ("attack", "tried", "broke", "left", "forward", "backward", "s")
    widths = [_COLUMN, None, None, None, None, None, None]
    table = tabulate(rows, heads, tablefmt="simple", maxcolwidths=widths)
    dependent = sorted({e["source"] for e in report.attacks if e.get("batch_dependent")})
    lines = [
        table,
        *([fill(f"for none of the samples: {', '.join(idle)}", 80)] if idle else []),
        *(
            fill(f"{source}: its results may depend on the batch (--set group=1: each sample alone)", 80)
            for source in dependent
        ),
        "",
        f"clean accuracy   {report.clean_accuracy:7.2%}   {report.clean_correct} of {report.n}{_chance(report)}",
        _robust_line(report),
        fill(
            f"threat {report.threat}, suite {report.suite}, seed {report.seed}, {report.seconds:.1f} s on {report.device}",
            80,
        ),
        f"trust: {report.trust}",
        *(
            fill(f"{f['check']}: {f['message']}", 78, initial_indent="  ", subsequent_indent="    ")
            for f in report.findings
        ),
    ]
    return "\n".join(lines)
