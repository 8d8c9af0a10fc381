"""The history of a training as a picture, where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robust.defenses.options import EpochResult
from robust.errors import StoreError
from robust.files import why_unwritten


def plot_history(history: Sequence[EpochResult], path: Path) -> bool:
    """Draw loss and validation accuracies over the epochs; epochs that were undone are marked.

    Returns:
        Whether there is a picture: False without epochs, or without matplotlib (extra: plots).

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except Exception:  # whatever a broken installation raises
        return False
    if not history:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    accuracies, losses = figure.subplots(1, 2)
    epochs = [result.epoch for result in history]
    curves: dict[str, list[float | None]] = {
        "clean": [result.clean_accuracy for result in history],
        "FGSM": [result.fgsm_accuracy for result in history],
        "PGD": [result.robust_accuracy for result in history],
    }
    for name, values in curves.items():
        if None not in values:
            accuracies.plot(epochs, values, marker=".", label=name)
    for result in history:
        if result.rolled_back:
            accuracies.axvline(result.epoch, color="0.7", linestyle=":")
    accuracies.set(xlabel="epoch", ylabel="validation accuracy", ylim=(0, 1))
    accuracies.legend()
    losses.plot(epochs, [result.loss for result in history], marker=".", color="0.3")
    losses.set(xlabel="epoch", ylabel="training loss")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise StoreError(f"history: cannot write {path}: {why_unwritten(error)}") from error
    return True
