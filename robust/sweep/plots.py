"""Curves as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robust.errors import MissingDependencyError, StoreError
from robust.files import why_unwritten
from robust.leaderboard.layout import plain


def plot_curves(curves: Sequence[Mapping[str, Any]], path: Path) -> list[Path]:
    """Robust accuracy against eps with 95 % bands, a line per model and defense; as PNG and as SVG.

    Args:
        curves: as a sweep keeps them, of one norm.
        path: of the pictures, without a suffix.

    Returns:
        The files.

    Raises:
        MissingDependencyError: matplotlib cannot be imported.
        StoreError: the files cannot be written.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except Exception as error:
        raise MissingDependencyError(
            f"plots: matplotlib cannot be imported ({error}); pip install 'robust-harness[plots]'"
        ) from error
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for curve in curves:
        points = curve["points"]
        eps = [0.0, *(point["radius"] for point in points)]
        middle = [curve["clean"], *(point["value"] for point in points)]
        (line,) = axes.plot(eps, [100 * v for v in middle], marker="o", markersize=3, label=_label(curve))
        axes.fill_between(
            eps[1:],
            [100 * point["low"] for point in points],
            [100 * point["high"] for point in points],
            color=line.get_color(),
            alpha=0.2,
            linewidth=0,
        )
    axes.set_xlabel(f"eps ({curves[0]['norm']})")
    axes.set_ylabel("accuracy, % (band: 95 % interval)")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 100)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    files = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context({"svg.hashsalt": "robust", "svg.fonttype": "none"}):  # equal curves, equal files
            figure.savefig(files[0], dpi=150, metadata={"Software": None})
            figure.savefig(files[1], metadata={"Date": None})
    except OSError as error:
        raise StoreError(f"plots: cannot write {error.filename or path}: {why_unwritten(error)}") from error
    return files


def _label(curve: Mapping[str, Any]) -> str:
    said = {finding["severity"] for finding in curve["findings"]}
    worst = "unreliable" if "unreliable" in said else "suspect"
    return plain(f"{curve['model']} + {curve['defense']}") + (f" ({worst})" if said else "")
