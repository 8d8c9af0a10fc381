"""Every number of a record that follows from its verdict table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from robust.leaderboard.artefacts import indices_sha256, verdicts_sha256
from robust.leaderboard.schema import Fairness, Group, Rate
from robust.report import STATUSES
from robust.stats import interval
from robust.threat import Threat


def derive(verdicts: pd.DataFrame, class_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Parts of a record by their place in it ("statuses", "data.n", ...), all counted from the table.

    Args:
        verdicts: see `robust.Report`; a text column "group" may say which group of the user's a sample
            belongs to.
        class_names: name of label 0, 1, ...; the numbers where None.
    """
    survived = verdicts["status"] == "survived"
    correct = verdicts["prediction"] == verdicts["label"]
    classes = by_class(verdicts, class_names)
    n = len(verdicts)
    return {
        "data.n": n,
        "data.indices_sha256": indices_sha256(verdicts),
        "artefacts.verdicts_sha256": verdicts_sha256(verdicts),
        "statuses": {status: int((verdicts["status"] == status).sum()) for status in STATUSES},
        "clean": Rate.of(int(correct.sum()), n),
        "robust": Rate.of(int(survived.sum()), n),
        "classes": classes,
        "groups": by_group(verdicts),
        "fairness": fairness(classes),
    }


def by_class(verdicts: pd.DataFrame, names: Sequence[str] | None = None) -> list[Group]:
    """Clean and robust accuracy per label that occurs, in order."""
    found, verdicts = [], verdicts[["label", "prediction", "status"]]
    for label in sorted(map(int, verdicts["label"].unique())):
        name = names[label] if names and 0 <= label < len(names) else str(label)
        found.append(_group(verdicts[verdicts["label"] == label], name=name, label=label))
    return found


def by_group(verdicts: pd.DataFrame) -> list[Group]:
    """Clean and robust accuracy per value of the column "group", in order; none without it."""
    if "group" not in verdicts:
        return []
    return [_group(rows, name=str(name)) for name, rows in verdicts.groupby("group", sort=True)]


def _group(rows: pd.DataFrame, *, name: str, label: int | None = None) -> Group:
    correct, survived = rows["prediction"] == rows["label"], rows["status"] == "survived"
    n = len(rows)
    return Group(
        name=name, label=label, clean=Rate.of(int(correct.sum()), n), robust=Rate.of(int(survived.sum()), n)
    )


def fairness(classes: Sequence[Group]) -> Fairness | None:
    """How unevenly robustness falls on the classes; None where there are fewer than two."""
    if len(classes) < 2:
        return None
    ordered = sorted(classes, key=lambda group: (group.robust.value, group.label or 0))
    worst, values = ordered[0], [group.robust.value for group in ordered]
    low, high = interval(worst.robust.k, worst.robust.n, confidence=1 - 0.05 / len(classes))
    tenth = values[: max(1, len(values) // 10)]
    return Fairness(
        worst=worst.label or 0,
        value=worst.robust.value,
        low=low,
        high=high,
        worst_tenth=sum(tenth) / len(tenth),
        spread=values[-1] - values[0],
    )


def curve(verdicts: pd.DataFrame, threat: Threat, steps: int = 10) -> list[tuple[float, Rate]]:
    """Robust accuracy at `steps` radii up to the threat's, from the nearest adversarial points (column nearest)."""
    intact = verdicts["status"].isin(["survived", "broken"]).to_numpy()
    found = []
    for step in range(1, steps + 1):
        at = threat.radius * step / steps
        reached = (verdicts["nearest"] <= threat.farthest(at)).to_numpy()
        found.append((at, Rate.of(int((intact & ~reached).sum()), len(verdicts))))
    return found


@dataclass(frozen=True)
class Confusion:
    """Pairs of a label and what its samples were taken for, P in order, with how many samples each has: (P,)."""

    label: npt.NDArray[np.int64]
    taken: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]

    @property
    def size(self) -> int:
        """Classes, as far as the highest that occurs tells."""
        return int(max(self.label.max(initial=0), self.taken.max(initial=0))) + 1


def confusion(verdicts: pd.DataFrame) -> Confusion:
    """Label against the prediction in the worst case found, errors left out.

    A broken sample counts under what its adversarial example was taken for, a misclassified one under
    its clean prediction, a survivor under its label.
    """
    status = verdicts["status"].to_numpy(dtype=object)  # text of pandas itself is slow to compare
    label, found = verdicts["label"].to_numpy(), verdicts["prediction"].to_numpy().copy()
    if "prediction_adv" in verdicts:
        broken = status == "broken"
        found[broken] = verdicts["prediction_adv"].to_numpy()[broken]
    judged = status != "error"
    pairs = np.stack([label[judged], found[judged]], axis=1).astype(np.int64)
    different, counts = np.unique(pairs, axis=0, return_counts=True)
    return Confusion(different[:, 0], different[:, 1], counts)
