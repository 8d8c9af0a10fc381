"""Pictures of a report: where the passes went, which classes fell, what was seen (matplotlib, extra `[plots]`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from robust import diagnose
from robust.attacks import PGD
from robust.attacks.labels import told_apart
from robust.errors import InputError, MissingDependencyError, StoreError
from robust.files import why_unwritten
from robust.sources import as_samples
from robust.stats import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from robust.report import Report
    from robust.sources import Samples
    from robust.target import Target

FORMATS: Final = ("png", "svg")
_TRACE: Final = PGD(steps=40, loss="margin", schedule="cosine")
_TRACED: Final = 32  # samples whose margins are followed
_PANELS: Final = 6
_WIDEST, _NAMED = 40, 70  # inches of a picture; classes that are named in it
_COUNTED = 20  # classes up to which a confusion has its counts and all its names
# Okabe & Ito's palette, told apart by colour-blind readers too.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#999999"


def explain(
    report: Report,
    folder: str | Path,
    *,
    target: Target | None = None,
    samples: Any = None,
    formats: str | Iterable[str] = FORMATS,
) -> list[Path]:
    """Draw a report into a folder.

    passes: what each attack of the suite cost and broke. classes: clean and robust accuracy per class with
    95 % Wilson intervals. confusion: what the broken samples were taken for. With the samples and kept
    examples, panels: clean image, perturbation and adversarial image. With the target too,
    confidences in the panels, and where the threat is of a norm that PGD ascends in, losses: the highest margin against its
    steps.

    Args:
        report: of the evaluation, with `keep_examples` for the panels.
        target: the model as it was evaluated.
        samples: the data as it was evaluated, in any form that `evaluate` takes.
        formats: "png", "svg" or "pdf".

    Returns:
        The files, in the order above.

    Raises:
        MissingDependencyError: no matplotlib.
        InputError: unknown format, samples that are not the report's, or a target that is none.
        StoreError: the folder cannot be written.
    """
    formats = (formats,) if isinstance(formats, str) else tuple(formats)
    if unknown := [f for f in formats if f not in (*FORMATS, "pdf")]:
        raise InputError(f"formats: expected png, svg or pdf, got {unknown[0]!r}")
    _check_target(target)
    samples = None if samples is None else as_samples(samples, bounds=report.threat.bounds)
    if samples is not None and not _are_those_of(report, samples):
        raise InputError("samples: they are not those of the report: expected the data it was made from")
    pictures: dict[str, Callable[[], Figure]] = {
        "passes": lambda: passes(report),
        "classes": lambda: classes(report),
        "confusion": lambda: confusion(report),
    }
    if samples is not None and report.examples is not None and len(report.examples["sample_id"]):
        pictures["panels"] = lambda: panels(report, samples, target)
    if samples is not None and target is not None and report.threat.norm in _TRACE.norms:
        pictures["losses"] = lambda: losses(report, samples, target)
    title = f"{report.threat}, suite {report.suite}, n = {report.n}, seed {report.seed}"
    files = []
    for name, draw in pictures.items():
        figure = draw()
        figure.suptitle(title, fontsize="small")
        files += _write(figure, Path(folder), name, formats)
    return files


def check_drawable() -> None:
    """Say at once that nothing could be drawn, before any passes are spent.

    Raises:
        MissingDependencyError: no matplotlib.
    """
    _figure(1, 1)


def _check_target(target: Any) -> None:
    from robust.target import Target

    if target is not None and not isinstance(target, Target):
        raise InputError(
            f"target: expected a robust.Target, the model as it was evaluated, got {type(target).__name__}; "
            "robust.Target(model, normalize=...) makes one"
        )


def _are_those_of(report: Report, samples: Samples) -> bool:
    """Whether the samples have the ids, labels and, where the report holds their hash, the bytes that were evaluated."""
    table = report.verdicts
    return (
        samples.ids.tolist() == table.sample_id.tolist()
        and samples.y.tolist() == table.label.tolist()
        and report.data.get("sha256") in (None, samples.sha256)
    )


def passes(report: Report) -> Figure:
    """A bar per attack that had samples: its forward and backward passes, and how many of them it broke."""
    parameters = [entry["parameters"] for entry in report.attacks]
    apart = told_apart([entry["label"] for entry in report.attacks], beside=1, parameters=parameters)
    shown = [row for row, entry in enumerate(report.attacks) if entry["attacked"]]
    attacks = [report.attacks[row] for row in shown]
    figure, axes = _figure(7, 1.2 + 0.42 * (len(attacks) + 1))
    names = [_shorten(" ".join(apart[row])) for row in shown] + ["checks"]
    forwards = [entry["forwards"] for entry in attacks] + [report.checks["forwards"]]
    backwards = [entry["backwards"] for entry in attacks] + [report.checks["backwards"]]
    rows = np.arange(len(names))
    axes.barh(rows, forwards, color=_BLUE, label="forward")
    axes.barh(rows, backwards, left=forwards, color=_ORANGE, label="backward")
    for row, entry in enumerate(attacks):
        end = forwards[row] + backwards[row]
        axes.annotate(
            f"broke {entry['broke']} of {entry['attacked']}", (end, row), (4, 0), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
    axes.set(
        yticks=rows, yticklabels=names, ylim=(-0.6, len(names) - 0.4), xlabel="passes, each of one sample"
    )
    axes.set_xlim(right=1.4 * max(f + b for f, b in zip(forwards, backwards, strict=True)) or 1)
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return figure


def classes(report: Report) -> Figure:
    """Clean and robust accuracy of every class, with 95 % Wilson intervals."""
    groups = list(report.verdicts.groupby("label"))
    figure, axes = _figure(min(max(5, 0.55 * len(groups) + 2), _WIDEST), 3.6)
    for shift, color, name in ((-0.18, _GREY, "clean"), (0.18, _BLUE, "robust")):
        for column, (_, rows) in enumerate(groups):
            right = rows.prediction == rows.label if name == "clean" else rows.status == "survived"
            k, n = int(right.sum()), len(rows)
            low, high = interval(k, n)
            axes.bar(column + shift, k / n, 0.34, color=color, label=name if not column else None)
            axes.errorbar(
                column + shift, k / n, [[k / n - low], [high - k / n]], color="black", capsize=2, lw=1
            )
    axes.set(xlabel="class", ylabel="accuracy", ylim=(0, 1.05))
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    if len(groups) <= _NAMED:
        names = [_shorten(name, 12) for name in report.classes["name"]]
        axes.set_xticks(range(len(groups)), names, **_turned(names))
    axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def confusion(report: Report) -> Figure:
    """Labels against what the samples are taken for under attack; standing samples on the diagonal, errors left out."""
    from robust.leaderboard import derive

    found = derive.confusion(report.verdicts)
    # Of 1,000 classes only those that occur.
    seen = np.union1d(report.verdicts.label, found.taken).astype(np.int64)
    count = len(seen)
    matrix = np.zeros((count, count), dtype=np.int64)
    matrix[np.searchsorted(seen, found.label), np.searchsorted(seen, found.taken)] = found.count
    share = matrix / matrix.sum(1, keepdims=True).clip(min=1)
    side = max(4, 0.45 * min(count, _COUNTED) + 1.4)
    figure, axes = _figure(side, side - 0.4)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if count <= _COUNTED:
        for (row, column), value in np.ndenumerate(matrix):
            if value:
                color = "white" if share[row, column] > 0.6 else "black"
                axes.text(column, row, str(value), ha="center", va="center", fontsize=7, color=color)
    ticks = range(0, count, -(-count // _COUNTED))
    names = [_shorten(report.class_name(int(seen[place])), 12) for place in ticks]
    axes.set_xticks(ticks, names, **_turned(names))
    axes.set_yticks(ticks, names)
    axes.set(xlabel="taken for, under attack", ylabel="label")
    return figure


def panels(report: Report, samples: Samples, target: Target | None = None) -> Figure:
    """A row per broken sample, nearest first: clean, perturbation (stretched), adversarial."""
    assert report.examples is not None
    nearest = report.verdicts[report.verdicts.status == "broken"].sort_values("distance").head(_PANELS)
    where = {int(sample): row for row, sample in enumerate(report.examples["sample_id"].tolist())}
    shown = []
    for row, verdict in nearest.iterrows():
        x = samples.rows(torch.tensor([int(str(row))]))
        x_adv = report.examples["x_adv"][where[int(verdict.sample_id)]][None]
        titles = (
            _seen(report, target, x, int(verdict.label)),
            f"perturbation, {report.threat.norm} {verdict.distance:.3g}",
            _seen(report, target, x_adv, int(verdict.prediction_adv)),
        )
        shown.append((x[0], x_adv[0], titles))
    return draw_panels(shown, report.threat.bounds)


def draw_panels(
    shown: Sequence[tuple[torch.Tensor, torch.Tensor, tuple[str, str, str]]], bounds: tuple[float, float]
) -> Figure:
    """A row for each (x, x_adv, titles): clean, perturbation stretched to its largest value, adversarial.

    Raises:
        MissingDependencyError: matplotlib cannot be imported.
    """
    low, high = bounds
    figure, grid = _grid(len(shown), 3)
    for axes, (x, x_adv, titles) in zip(grid, shown, strict=True):
        delta = x_adv - x
        size = float(delta.abs().max()) or 1.0
        pictures = ((x - low) / (high - low), (delta / size + 1) / 2, (x_adv - low) / (high - low))
        for cell, image, title in zip(axes, pictures, titles, strict=True):
            cell.imshow(_picture(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            cell.set_title(_shorten(title, 36), fontsize=8)
            cell.axis("off")
    return figure


def losses(report: Report, samples: Samples, target: Target) -> Figure:
    """The highest margin so far against the steps of a PGD on the margin, run anew on a few samples."""
    figure, axes = _figure(6.4, 3.6)
    correct = np.flatnonzero((report.verdicts.prediction == report.verdicts.label).to_numpy())[:_TRACED]
    rows = torch.from_numpy(correct)
    with target.sparing_randomness(), target:
        x, y, ids = (t.to(target.device) for t in (samples.rows(rows), samples.y[rows], samples.ids[rows]))
        survived = torch.from_numpy((report.verdicts.status == "survived").to_numpy(copy=True))[rows]
        subject = diagnose.Subject(target, report.threat, x, y, ids, survived, [_TRACE], 64, report.seed)
        margins = subject.trace(_TRACE, torch.arange(len(rows))).cpu()
    for stands, color, name in ((False, _ORANGE, "broken"), (True, _GREEN, "standing")):
        lines = margins[:, survived == stands]
        axes.plot(lines.numpy(), color=color, lw=0.8, alpha=0.6)
        axes.plot([], [], color=color, label=f"{name} ({lines.shape[1]})")
    axes.axhline(0, color="black", lw=0.8, ls="--")
    axes.set(xlabel=f"steps of {_TRACE.label}", ylabel="highest margin so far")
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _seen(report: Report, target: Target | None, x: torch.Tensor, label: int) -> str:
    """The class, and with a target the probability that it gives it."""
    name = _shorten(report.class_name(label), 20)
    if target is None:
        return name
    with target.sparing_randomness(), target, torch.no_grad():
        return f"{name}, {float(target.logits(x.to(target.device)).softmax(1)[0, label]):.0%}"


def _picture(image: torch.Tensor) -> Any:
    """(C, H, W) as matplotlib wants it; anything else as one row of pixels."""
    image = image.clamp(0, 1)
    if image.dim() == 3:
        return image[0].numpy() if len(image) != 3 else image.permute(1, 2, 0).numpy()
    return image.flatten()[None].numpy()


def _turned(names: Sequence[str]) -> dict[str, Any]:
    """How names stand below an axis without overlapping."""
    return {"rotation": 45, "ha": "right"} if max(map(len, names)) > 3 else {}


def _shorten(label: str, length: int = 44) -> str:
    return label if len(label) <= length else f"{label[: length - 1]}…"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure, grid = _grid(1, 1, (width, height))
    return figure, grid[0][0]


def _grid(rows: int, columns: int, size: tuple[float, float] | None = None) -> tuple[Figure, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Blank
    except Exception as error:
        raise MissingDependencyError(
            f'pictures need matplotlib, which does not import ({error}): pip install "robust-harness[plots]"'
        ) from error
    figure = Blank(figsize=size or (2.1 * columns, 2.1 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _write(figure: Figure, folder: Path, name: str, formats: tuple[str, ...]) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{name}.{kind}" for kind in formats]
        for file in files:
            figure.savefig(file, dpi=150)
    except OSError as error:
        raise StoreError(
            f"pictures: cannot write {error.filename or folder}: {why_unwritten(error)}"
        ) from error
    return files
