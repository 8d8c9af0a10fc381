"""A store with one honest record, the same forged and sealed anew, and what verification says of either."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from reports import DEFENSE
from torch import nn

from robust import evaluate
from robust.leaderboard import Record, Store, examples_bytes, sha256, verify, with_clean
from robust.leaderboard.artefacts import verdicts_bytes, verdicts_sha256
from robust.leaderboard.record import _sealed, content_id
from robust.leaderboard.verify import Outcome
from robust.report import Report
from robust.sources import load_data
from robust.target import Target


def nearest_mean() -> nn.Module:
    train = load_data("builtin:digits:train")
    x = train.rows(slice(None)).flatten(1)
    means = torch.stack([x[train.y == label].mean(0) for label in range(10)])
    layer = nn.Linear(64, 10)
    layer.weight.data, layer.bias.data = 20 * means, -10 * means.square().sum(1)
    return nn.Sequential(nn.Flatten(), layer)


def attacked(model: nn.Module) -> Report:
    samples = load_data("builtin:digits").limit(60)
    return evaluate(
        model,
        samples,
        threat="linf:0.08",
        suite="quick",
        keep_examples=True,
        model_spec="memory",
        device="cpu",
    )


def file_alone(report: Report, folder: Path) -> Path:
    assert report.examples is not None
    examples = examples_bytes(with_clean(report.examples, load_data("builtin:digits")))
    record = Record.from_report(report, name="means", defense=DEFENSE, examples=examples)
    Store(folder).add(record, report.verdicts, examples=examples)
    return folder


def outcomes(store: Path, model: nn.Module | None = None, **options: Any) -> list[Outcome]:
    (path,) = (store / "records").glob("*.json")
    target = None if model is None else Target(model, device="cpu")
    return list(verify(*Store.locate(path), target=target, **options))


def failed(found: list[Outcome]) -> set[str]:
    return {outcome.check for outcome in found if outcome.ok is False}


def forge(
    filed: Path,
    folder: Path,
    *,
    record: Callable[[dict[str, Any]], None] | None = None,
    table: Callable[[pd.DataFrame], None] | None = None,
    examples: Callable[[dict[str, torch.Tensor]], None] | None = None,
) -> Path:
    """A store whose record was changed and given fresh hashes, checksum and id throughout."""
    store = Store(filed)
    (honest,) = store.records()
    content, verdicts, saved = honest.model_dump(mode="json"), store.verdicts(honest), store.examples(honest)
    assert saved is not None
    if table:
        table(verdicts)
    if examples:
        examples(saved)
    parquet, tensors = verdicts_bytes(verdicts), examples_bytes(saved)
    content["artefacts"] = {
        "verdicts_sha256": verdicts_sha256(verdicts),
        "verdicts_file_sha256": sha256(parquet),
        "examples_sha256": sha256(tensors),
    }
    if record:
        record(content)
    for name, written in {
        f"records/{content_id(content)}.json": _sealed(content).encode(),
        f"verdicts/{sha256(parquet)}.parquet": parquet,
        f"examples/{sha256(tensors)}.safetensors": tensors,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(written)
    return folder
