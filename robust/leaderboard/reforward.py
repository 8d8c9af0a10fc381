"""The checks of a record that need its data, its saved examples or its model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from robust.errors import RobustError, StoreError
from robust.leaderboard.record import Record
from robust.leaderboard.schema import as_json
from robust.leaderboard.store import Store
from robust.sources import Preprocessing, Samples, load_data, model_sha256
from robust.suites import resolve
from robust.target import Target, in_parts
from robust.threat import Threat

Found = tuple[str, bool | None, str]  # check, outcome (None: could not be made), message
_ROWS = 256  # a pass


def preprocessing_of(record: Record) -> Preprocessing | None:
    """What was done to images first, but for the normalisation; None where nothing was."""
    said = record.model.preprocess
    return None if said is None else Preprocessing("the record", **said.model_dump())


def find_data(record: Record, spec: str | None = None) -> tuple[Samples | None, str]:
    """The samples in `spec`, by default those that the record names, where they can be had, else why not."""
    try:
        samples = load_data(
            spec or record.data.spec, bounds=record.threat.bounds, fit=preprocessing_of(record)
        )
    except RobustError as error:
        return None, str(error)
    if samples.sha256 != record.data.sha256 and len(samples) > record.data.n:
        samples = samples.limit(record.data.n)  # what --limit chooses
    return samples, ""


def check_data(
    record: Record, verdicts: pd.DataFrame, samples: Samples | None, reason: str
) -> Iterator[Found]:
    """Whether these are the samples, by hash, and their labels the table's."""
    if samples is None:
        yield "data", None, f"needs the samples: {reason}"
        return
    if samples.sha256 != record.data.sha256:
        yield "data", False, f"{samples.spec}: sha256 {samples.sha256[:16]}, not {record.data.sha256[:16]}"
        return
    same = np.array_equal(samples.ids.numpy(), verdicts["sample_id"].to_numpy())
    if not (same and np.array_equal(samples.y.numpy(), verdicts["label"].to_numpy())):
        yield "data", False, f"{samples.spec}: ids or labels are not those of the verdict table"
        return
    yield "data", True, f"{samples.spec}: {len(samples)} samples with the hash and labels of the record"


def check_examples(
    store: Store,
    record: Record,
    verdicts: pd.DataFrame,
    samples: Samples | None,
    target: Target | None,
) -> Iterator[Found]:
    """Audits every saved adversarial example: its sample, box, ball and distance, and what the model says."""
    if record.artefacts.examples_sha256 is None:
        yield "examples", None, "none were saved with this record"
        return
    try:
        saved = load(store.examples_file(record) or b"")
        ids, x_adv = saved["sample_id"], saved["x_adv"].float()
    except (StoreError, SafetensorError, KeyError) as error:
        yield "examples", False, str(error)
        return
    table = verdicts.set_index("sample_id")
    broken = int((table["status"] == "broken").sum())
    known = [int(id_) in table.index and table["status"][int(id_)] == "broken" for id_ in ids]
    if not all(known) or len(set(ids.tolist())) != len(ids) or len(x_adv) != len(ids):
        yield "examples", False, "of samples that the verdict table does not call broken, or one twice"
        return
    yield "examples", True, f"as hashed; of {len(ids)} of the {broken} broken samples"
    if not len(ids):
        return
    rows = table.loc[ids.tolist()]
    x, problem = _clean_points(saved, samples, ids)
    if x is None:
        yield "ball", None if problem.startswith("needs") else False, problem
    else:
        yield _inside(record, rows, x_adv, x)
    if target is not None:
        yield _misclassified(rows, x_adv, target)


def _clean_points(
    saved: dict[str, Tensor], samples: Samples | None, ids: Tensor
) -> tuple[Tensor | None, str]:
    """The points that the examples were made from: the data's, which those saved beside them must equal."""
    if samples is None:
        return (saved["x"].float(), "") if "x" in saved else (None, "needs the samples")
    places = {int(id_): place for place, id_ in enumerate(samples.ids.tolist())}
    if any(int(id_) not in places for id_ in ids):
        return None, "examples of samples that are not in the data"
    x = samples.rows(torch.tensor([places[int(id_)] for id_ in ids]))
    if "x" in saved and not torch.equal(saved["x"].float(), x):
        return None, "the clean points saved beside the examples are not the data's"
    return x, ""


def _inside(record: Record, rows: pd.DataFrame, x_adv: Tensor, x: Tensor) -> Found:
    threat = Threat(record.threat.norm, record.threat.eps, record.threat.bounds)
    if x.shape != x_adv.shape:
        return "ball", False, f"examples of shape {tuple(x_adv.shape)}, clean points {tuple(x.shape)}"
    x = x.clamp(*threat.bounds)
    outside = ~threat.contains(x_adv.double(), x.double())
    if bool(outside.any()):
        return "ball", False, f"{int(outside.sum())} examples outside the box or the ball of {threat}"
    distance = threat.distance(x_adv.double(), x.double()).numpy()
    off = ~np.isclose(distance, rows["distance"].to_numpy(), rtol=1e-5, atol=1e-6)
    if off.any():
        return "ball", False, f"{int(off.sum())} examples at another distance than the verdict table says"
    return "ball", True, f"{len(x)} examples finite, in {list(threat.bounds)} and within {threat}"


@torch.no_grad()
def _misclassified(rows: pd.DataFrame, x_adv: Tensor, target: Target) -> Found:
    with target:
        found = _predictions(target, x_adv)
    label = rows["label"].to_numpy()
    fooled = found != label
    if not fooled.all():
        return "fooled", False, f"{int((~fooled).sum())} of {len(label)} examples are classified correctly"
    if "prediction_adv" in rows and not np.array_equal(found, rows["prediction_adv"].to_numpy()):
        return "fooled", False, "the examples are taken for other classes than the verdict table says"
    return "fooled", True, f"all {len(label)} examples are misclassified in float32"


@torch.no_grad()
def check_model(
    record: Record, verdicts: pd.DataFrame, samples: Samples | None, target: Target | None
) -> Iterator[Found]:
    """Whether this is the model, by the hash of its weights, and predicts on clean samples what the table says."""
    if target is None:
        yield "model", None, "not given; --model SPEC [--weights FILE] forwards what was saved through it"
        return
    if (digest := model_sha256(target.model)) != record.model.weights_sha256:
        yield "model", False, f"weights have sha256 {digest[:16]}, not {record.model.weights_sha256[:16]}"
    else:
        yield "model", True, f"weights have the sha256 {digest[:16]} of the record"
    if samples is None or len(samples) != len(verdicts):
        yield "clean", None, "needs the samples"
        return
    with target:
        found = np.concatenate(
            [
                _predictions(target, samples.rows(rows).clamp(*record.threat.bounds))
                for rows in torch.arange(len(samples)).split(_ROWS)
            ]
        )
    off = int((found != verdicts["prediction"].to_numpy()).sum())
    if off:
        yield "clean", False, f"{off} of {len(samples)} clean predictions are not the verdict table's"
    else:
        yield "clean", True, f"all {len(samples)} clean predictions are the verdict table's"


def _predictions(target: Target, x: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    found = [target.logits(part.to(target.device)).argmax(1).cpu() for part in in_parts(x, _ROWS)]
    return np.concatenate([np.empty(0, np.int64), *found])


def check_rerun(
    record: Record,
    verdicts: pd.DataFrame,
    samples: Samples | None,
    target: Target | None,
    count: int,
    draw: int,
) -> Iterator[Found]:
    """Attacks some samples again, drawn with the seed `draw`; each must meet the same end."""
    from robust.evaluation import evaluate

    if target is None or samples is None or samples.sha256 != record.data.sha256:
        yield "rerun", None, "needs the model and the samples"
        return
    threat = Threat(record.threat.norm, record.threat.eps, record.threat.bounds)
    stages = _suite(record, threat)
    if stages is None:
        yield "rerun", None, f"this version's suite {record.suite.name!r} is not the record's"
        return
    rows = np.sort(np.random.default_rng(draw).permutation(len(samples))[:count])
    report = evaluate(
        target,
        samples.take(torch.from_numpy(rows)),
        threat=threat,
        suite=stages,
        seed=record.seed,
        cascade=record.suite.cascade,
    )
    then, now = verdicts["status"].to_numpy()[rows], report.verdicts["status"].to_numpy()
    off = np.flatnonzero(then != now)
    if len(off):
        id_ = verdicts["sample_id"].to_numpy()[rows[off[0]]]
        yield (
            "rerun",
            False,
            f"{len(off)} of {len(rows)} samples end otherwise (draw {draw}), first sample {id_}: "
            f"{then[off[0]]} in the record, {now[off[0]]} now",
        )
    else:
        yield "rerun", True, f"{len(rows)} samples (draw {draw}) attacked again, each with the same end"


def _suite(record: Record, threat: Threat) -> Any:
    """What to hand to `evaluate`: the suite by its name if it is still the same, else its attacks; or None."""
    recorded = [[entry.name, entry.parameters] for entry in record.attacks]
    choices: list[Any] = [record.suite.name]
    if not any(_selective(entry.selection) for entry in record.attacks):
        choices.append([{"name": entry.name, **entry.parameters} for entry in record.attacks])
    for choice in choices:
        with suppress(RobustError):
            _, stages = resolve(choice, threat)
            if as_json([[stage.attack.name, stage.attack.parameters] for stage in stages]) == recorded:
                return choice
    return None


def _selective(selection: dict[str, Any]) -> bool:
    """Whether a stage was shown only some samples."""
    return any(value not in (None, False) for key, value in selection.items() if key != "share")
