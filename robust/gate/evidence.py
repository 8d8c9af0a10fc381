"""What a failed test leaves behind: a message, the adversarial examples, and a picture of the worst."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from robust.errors import MissingDependencyError
from robust.explain import draw_panels
from robust.gate.check import GateResult
from robust.gate.summary import filled
from robust.report import Report
from robust.sources import Samples

_SHOWN: Final = 3  # samples in the message
_DRAWN: Final = 6  # rows of the picture
_KEPT: Final = 100  # adversarial examples on disk


def message(result: GateResult, *, replay: str, kept: Path | str | None = None) -> str:
    """Everything that a developer needs to believe the outcome, and to see it again.

    Args:
        result: of the gate.
        replay: the command or call that does the same again.
        kept: folder of the evidence, or why there is none.
    """
    report = result.report
    low, high = result.interval
    at_most = "" if result.complete else "at most "
    shares = f"{at_most}{report.robust_accuracy:.1%} [{low:.1%}, {high:.1%}]"
    said = [
        f"{result.outcome}: {result.reason}",
        f"robust accuracy {shares} under {report.threat}, clean {report.clean_accuracy:.1%}",
        f"gate: {result.gate} at {result.confidence:.1%} confidence; {report.n} of {result.population} samples used",
        f"samples: {counts(report)}",
        f"suite {report.suite}, seed {report.seed}",
        f"broke most: {broke_most(report)}",
        f"trust: {report.trust}",
        *(f"  {finding['check']}: {finding['message']}" for finding in report.findings),
        *_worst_lines(report),
    ]
    lines = [filled(line) for line in said]
    if kept is not None:
        lines.append(f"evidence: {kept}")
    lines.append(f"replay: {replay}")
    return "\n".join(lines)


def counts(report: Report) -> str:
    """Samples by what became of them: "3 misclassified, 40 broken, 21 survived"."""
    return ", ".join(f"{n} {status}" for status, n in report.statuses.items() if n or status != "error")


def broke_most(report: Report) -> str:
    """The attack that broke most samples, with how many of how many it saw."""
    best = max(report.attacks, key=lambda entry: int(entry["broke"]), default=None)
    if best is None or not best["broke"]:
        return "no attack broke a sample"
    return f"{best['label']} ({best['broke']} of {best['attacked']})"


def worst(report: Report, most: int = _SHOWN) -> list[dict[str, Any]]:
    """Rows of the broken samples that the model is most wrong about, by margin."""
    broken = report.verdicts[report.verdicts["status"] == "broken"]
    rows = broken.sort_values(["margin", "sample_id"], ascending=[False, True]).head(most)
    return [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]


def _worst_lines(report: Report) -> list[str]:
    rows = worst(report)
    if not rows:
        return []
    lines = [
        f"  sample {row['sample_id']}: label {report.class_name(row['label'])} taken for "
        f"{report.class_name(row['prediction_adv'])} by {row['margin']:.3g} "
        f"at {report.threat.norm} distance {row['distance']:.4g} ({row['attack']})"
        for row in rows
    ]
    return ["worst samples:", *lines]


def keep(report: Report, samples: Samples, folder: Path) -> Path:
    """Write report, verdicts and the worst adversarial examples, with a picture where matplotlib is there.

    examples.safetensors holds sample_id (n,), x_adv and x (n, ...), the worst first.

    Raises:
        StoreError: the folder cannot be written.
    """
    examples = _examples(report, samples)
    for stale in ("examples.safetensors", "panel.png"):
        (folder / stale).unlink(missing_ok=True)
    replace(report, examples=examples).save(folder)
    if examples is not None:
        _draw(report, examples, folder / "panel.png")
    return folder


def _examples(report: Report, samples: Samples) -> dict[str, Tensor] | None:
    ids = [int(row["sample_id"]) for row in worst(report, _KEPT)]
    if report.examples is None or not ids:
        return None
    where = {int(i): row for row, i in enumerate(report.examples["sample_id"].tolist())}
    clean = {int(i): row for row, i in enumerate(samples.ids.tolist())}
    return {
        "sample_id": torch.tensor(ids),
        "x_adv": report.examples["x_adv"][[where[i] for i in ids]].contiguous(),
        "x": samples.rows([clean[i] for i in ids]),
    }


def _draw(report: Report, examples: dict[str, Tensor], path: Path) -> None:
    """Clean, perturbation and adversarial image of the worst samples, with what the model sees in them."""
    x, x_adv = examples["x"], examples["x_adv"]
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        return
    shown = []
    for index, row in enumerate(worst(report, _DRAWN)):  # the examples are in this order
        widest = float((x_adv[index] - x[index]).abs().max())
        titles = (
            f"sample {row['sample_id']}: {report.class_name(row['prediction'])}",
            f"perturbation, within {widest:.3g}",
            f"taken for {report.class_name(row['prediction_adv'])}",
        )
        shown.append((x[index], x_adv[index], titles))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a font that is missing is no business of the test's
        with suppress(MissingDependencyError):  # the extra 'plots' is not installed: the tensors are there
            draw_panels(shown, report.threat.bounds).savefig(path, dpi=100)
