"""The checks of a record that need its data, its saved examples or its model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from robust.errors import RobustError, StoreError
from robust.leaderboard.artefacts import form, read_examples
from robust.leaderboard.claims import threat_of
from robust.leaderboard.drawn import Draws, weigh
from robust.leaderboard.layout import plain
from robust.leaderboard.outcome import Outcome
from robust.leaderboard.record import Record
from robust.leaderboard.schema import ModelInfo
from robust.leaderboard.store import Store
from robust.sources import Preprocessing, Samples, load_data, model_sha256
from robust.target import Target, in_parts

Predictions = npt.NDArray[np.int64]
Statuses = npt.NDArray[np.object_]
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
    record: Record, verdicts: pd.DataFrame, samples: Samples | None, reason: str, *, asked: bool
) -> Outcome:
    """Whether these are the samples, by hash, and their labels the table's."""
    if samples is None:
        return Outcome("data", None, f"needs the samples: {reason}", asked=asked)
    if samples.sha256 != record.data.sha256:
        digests = f"sha256 {samples.sha256[:16]}, not {record.data.sha256[:16]}"
        return Outcome("data", False, f"{samples.spec}: {digests}")
    same = np.array_equal(samples.ids.numpy(), verdicts["sample_id"].to_numpy())
    if not (same and np.array_equal(samples.y.numpy(), verdicts["label"].to_numpy())):
        return Outcome("data", False, f"{samples.spec}: ids or labels are not those of the verdict table")
    return Outcome(
        "data", True, f"{samples.spec}: {len(samples)} samples with the hash and labels of the record"
    )


def check_groups(verdicts: pd.DataFrame, samples: Samples) -> Iterator[Outcome]:
    """Whether the table's groups are those of the samples, which may also have been given apart; none where neither has any."""
    own, said = samples.group_labels, verdicts["group"].tolist() if "group" in verdicts else None
    if own == said:
        if own is not None:
            yield Outcome("data.groups", True, f"{len(set(own))} groups, each sample in that of the data")
    elif own is None:
        yield Outcome(
            "data.groups", None, f"{samples.spec} has no groups of its own to hold the table's against"
        )
    else:
        off = sum(a != b for a, b in zip(own, said or own, strict=True))
        problem = f"{off} of {len(own)} samples are in others" if said else "the table has none"
        yield Outcome.unverified(
            "data.groups",
            f"{samples.spec} has groups of its own, and {problem}; were others given with evaluate(groups=...) or "
            "--groups, ask for them",
        )


def check_examples(
    store: Store,
    record: Record,
    verdicts: pd.DataFrame,
    samples: Samples | None,
    target: Target | None,
) -> Iterator[Outcome]:
    """Audits every saved adversarial example: its sample, box, ball and distance, and what the model says."""
    if record.artefacts.examples_sha256 is None:
        yield Outcome("examples", None, "none were saved with this record")
        return
    try:
        saved = read_examples(store.examples_file(record) or b"")
    except StoreError as error:
        yield Outcome("examples", False, str(error))
        return
    table = verdicts.set_index("sample_id")
    if problem := _strangers(saved["sample_id"], table["status"]):
        yield Outcome("examples", False, problem)
        return
    ids, x_adv = saved["sample_id"], saved["x_adv"].float()
    broken = int((table["status"] == "broken").sum())
    yield Outcome("examples", True, f"as hashed; of {len(ids)} of the {broken} broken samples")
    if not len(ids):
        return
    rows = table.loc[ids.tolist()]
    x, problem = _clean_points(saved, samples, ids)
    if x is None:
        yield Outcome("ball", None if problem.startswith("needs") else False, problem)
    else:
        yield _inside(record, rows, x_adv, x)
    if target is not None and (x is None or x.shape == x_adv.shape):
        yield _misclassified(record, rows, x_adv, target)


def _strangers(ids: Tensor, status: pd.Series) -> str:
    """What is wrong with the samples that examples are of."""
    listed = ids.tolist()
    known = all(id_ in status.index and status[id_] == "broken" for id_ in listed)
    if known and len(set(listed)) == len(listed):
        return ""
    return "of samples that the verdict table does not call broken, or one twice"


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


def _inside(record: Record, rows: pd.DataFrame, x_adv: Tensor, x: Tensor) -> Outcome:
    threat = threat_of(record)
    if x.shape != x_adv.shape:
        shapes = f"examples of shape {tuple(x_adv.shape)}, clean points {tuple(x.shape)}"
        return Outcome("ball", False, shapes)
    x = x.clamp(*threat.bounds)
    outside = ~threat.contains(x_adv.double(), x.double())
    if bool(outside.any()):
        return Outcome(
            "ball", False, f"{int(outside.sum())} examples outside the box or the ball of {threat}"
        )
    distance = threat.distance(x_adv.double(), x.double()).numpy()
    off = ~np.isclose(distance, rows["distance"].to_numpy(), rtol=1e-5, atol=1e-6)
    if off.any():
        return Outcome(
            "ball", False, f"{int(off.sum())} examples at another distance than the verdict table says"
        )
    return Outcome("ball", True, f"{len(x)} examples finite, in {list(threat.bounds)} and within {threat}")


def _misclassified(record: Record, rows: pd.DataFrame, x_adv: Tensor, target: Target) -> Outcome:
    label = rows["label"].to_numpy()
    try:
        found = _predictions(target, x_adv)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        return Outcome("fooled", False, f"the model cannot take examples of {form(x_adv)}: {reason}")
    if standing := int((found == label).sum()):
        problem = f"{standing} of {len(label)} examples are classified correctly"
    elif unclear := int((found < 0).sum()):
        problem = f"the model gives NaN or infinity for {unclear} of {len(label)} examples"
    elif "prediction_adv" in rows and not np.array_equal(found, rows["prediction_adv"].to_numpy()):
        problem = "the examples are taken for other classes than the verdict table says"
    else:
        return Outcome("fooled", True, f"all {len(label)} examples are misclassified in float32")
    # Examples were chosen for a draw that they fooled: how many fool the next one bounds nothing.
    unsure = Outcome.unverified("fooled", f"the model draws at random, and in this draw {problem}")
    draws = Draws(record, target, x_adv, torch.from_numpy(label.astype(np.int64)))
    return draws.excuse("fooled", problem, lambda: unsure)


def check_model(
    record: Record, verdicts: pd.DataFrame, samples: Samples | None, target: Target | None
) -> Iterator[Outcome]:
    """Whether this is the model, by the hash of its weights, and predicts on clean samples what the table says."""
    if target is None:
        needs = "not given; --model SPEC [--weights FILE] forwards what was saved through it"
        yield Outcome("model", None, needs)
        return
    if (digest := model_sha256(target.model)) != record.model.weights_sha256:
        said = record.model.weights_sha256[:16]
        yield Outcome("model", False, f"weights have sha256 {digest[:16]}, not {said}")
    elif problem := _misdescribed(record.model, target.model):
        yield Outcome("model", False, problem)
    else:
        yield Outcome("model", True, f"weights have the sha256 {digest[:16]} of the record")
    if samples is None or len(samples) != len(verdicts):
        yield Outcome.unverified("clean", "needs the samples")
        return
    yield _clean(record, verdicts["prediction"].to_numpy(), samples, target)


def _misdescribed(said: ModelInfo, model: nn.Module) -> str:
    """What a record says of a model with the right weights that is not so."""
    if (count := sum(each.numel() for each in model.parameters())) != said.parameters:
        return f"the model has {count} parameters, the record says {said.parameters}"
    if (name := type(model).__name__) != said.architecture:
        return f"the model is a {plain(name)}, the record says {plain(said.architecture)}"
    return ""


def _clean(record: Record, said: Predictions, samples: Samples, target: Target) -> Outcome:
    def ask() -> Predictions:
        parts = torch.arange(len(samples)).split(_ROWS)
        return np.concatenate(
            [_predictions(target, samples.rows(rows).clamp(*record.threat.bounds)) for rows in parts]
        )

    found, y = ask(), samples.y.numpy()
    off = int((found != said).sum())
    if not off:
        return Outcome("clean", True, f"all {len(samples)} clean predictions are the verdict table's")
    return Draws.of(record, samples, target).excuse(
        "clean",
        f"{off} of {len(samples)} clean predictions are not the verdict table's",
        lambda: weigh("clean", said, found, ask(), lambda answers: answers == y, "are classified correctly"),
    )


def _predictions(target: Target, x: Tensor) -> Predictions:
    """Classes as a verdict table has them: -1 where logits are no numbers."""
    with target, torch.no_grad():
        found = [_classes(target.logits(part.to(target.device))) for part in in_parts(x, _ROWS)]
    return np.concatenate([np.empty(0, np.int64), *found])


def _classes(logits: Tensor) -> Predictions:
    found: Predictions = logits.argmax(1).masked_fill(~logits.isfinite().all(1), -1).cpu().numpy()
    return found
