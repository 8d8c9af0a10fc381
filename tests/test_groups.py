"""Groups and class names: from the data, or from the caller, to report, record, command line and site."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import robust
from robust.cli import main
from robust.errors import DataError, InputError
from robust.leaderboard import Record, Store, verify
from robust.leaderboard.outcome import Outcome
from robust.leaderboard.site import publish
from robust.report import Report
from robust.sources import load_data, save_weights
from robust.stats import interval

NAMES = [f"digit {label}" for label in range(10)]
GROUPS = ["left" if i % 3 else "right" for i in range(64)]


def attack(net: nn.Module, data: Any, **options: Any) -> Report:
    return robust.evaluate(net, data, threat="linf:0.1", suite=["fgsm"], device="cpu", **options)


@pytest.mark.parametrize(
    "given",
    [
        GROUPS, tuple(GROUPS), np.array(GROUPS), pd.Series(GROUPS), list(np.array(GROUPS)),
        np.array([group == "right" for group in GROUPS], np.uint8), torch.tensor([g == "right" for g in GROUPS]).long(),
    ],
)  # fmt: skip
def test_each_group_has_its_accuracy(net: nn.Module, digits: tuple[Tensor, Tensor], given: Any) -> None:
    report = attack(net, digits, groups=given)
    table, found = report.verdicts, report.groups
    assert found["n"].tolist() == [42, 22]
    for place, name in enumerate(sorted(set(GROUPS))):
        rows = table[[group == name for group in GROUPS]]
        k = int((rows["status"] == "survived").sum())
        assert found["robust_accuracy"][place] == k / len(rows)
        assert (found["low"][place], found["high"][place]) == interval(k, len(rows))
        assert found["clean_accuracy"][place] == (rows["prediction"] == rows["label"]).mean()
    assert report.to_dict()["groups"] == found.to_dict("records")


def test_no_groups_no_table(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    report = attack(net, digits)
    assert "group" not in report.verdicts
    assert report.groups.empty
    assert report.to_dict()["groups"] == []
    assert report.classes["name"].tolist() == [str(label) for label in report.classes["label"]]


@pytest.mark.parametrize(
    "given", [GROUPS[:-1], "left", 3, [1.5] * 64, [None] * 64, ["a"] * 63 + [1], [True] * 64, [2**70] * 64]
)
def test_groups_that_are_none_are_refused(
    net: nn.Module, digits: tuple[Tensor, Tensor], given: object
) -> None:
    with pytest.raises(DataError, match="groups: expected"):
        attack(net, digits, groups=given)


def test_groups_stay_with_their_samples_through_limit_and_save(net: nn.Module, tmp_path: Path) -> None:
    samples = load_data("builtin:digits").grouped([f"id {i % 4}" for i in range(359)])
    report = attack(net, samples.limit(50))
    at = {int(id_): f"id {place % 4}" for place, id_ in enumerate(samples.ids)}
    assert report.verdicts["group"].tolist() == [at[int(i)] for i in report.verdicts["sample_id"]]
    report.save(tmp_path)
    loaded = Report.load(tmp_path)
    assert loaded.groups.equals(report.groups)
    assert loaded.data["class_names"] == [str(label) for label in range(10)]


def encoded(digits: tuple[Tensor, Tensor]) -> list[bytes]:
    found = []
    for image in (digits[0] * 255).round().byte():
        buffer = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


@pytest.fixture
def parquet(digits: tuple[Tensor, Tensor], tmp_path: Path) -> Path:
    table = pa.table({"image": encoded(digits), "label": digits[1].tolist(), "camera": GROUPS})
    features = {"info": {"features": {"label": {"names": NAMES}}}}
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "set.parquet"
    )
    return tmp_path / "set.parquet"


def test_groups_by_the_name_of_a_column(parquet: Path, digits: tuple[Tensor, Tensor]) -> None:
    assert load_data(str(parquet)).groups is None
    assert load_data(str(parquet), groups="camera").group_labels == GROUPS
    npz = parquet.with_suffix(".npz")
    np.savez(npz, x=digits[0].numpy(), y=digits[1].numpy(), camera=np.array(GROUPS), groups=np.arange(64))
    assert load_data(str(npz), groups="camera").group_labels == GROUPS
    assert load_data(str(npz)).group_labels == [str(i) for i in range(64)]
    for spec, column in ((parquet, "lens"), (parquet, "image"), (npz, "lens")):
        with pytest.raises(DataError, match=column):
            load_data(str(spec), groups=column)
    with pytest.raises(InputError, match="have no column 'camera'"):
        load_data("builtin:digits", groups="camera")


def test_from_the_data_to_the_site(
    net: nn.Module,
    parquet: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_weights(net, tmp_path / "w.safetensors")
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(\n"
        "        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),\n"
        "        nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10),\n    )\n"
    )  # fmt: skip

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["robust", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert not stop.value.code, err
        return out

    monkeypatch.chdir(tmp_path)
    said = run(
        "attack", "--model", "net.py:make", "--weights", "w.safetensors", "--data", "set.parquet", "--groups", "camera",
        "--threat", "linf:0.1", "--attack", "fgsm", "--out", "run", "--device", "cpu",
    )  # fmt: skip
    assert [line.split()[:2] for line in said.splitlines()[-2:]] == [["left", "42"], ["right", "22"]]
    path = run("leaderboard", "add", "run", "--store", "board", "--name", "net").strip()
    record = Store("board").records()[0]
    assert [(group.name, group.robust.n) for group in record.groups] == [("left", 42), ("right", 22)]
    assert [group.name for group in record.classes] == NAMES
    assert [found for found in verify(*Store.locate(path)) if found.ok is False] == []
    publish(Store("board"), tmp_path / "site")
    page = (tmp_path / "site" / "entries" / f"{record.short_id}.html").read_text(encoding="utf-8")
    for wanted in ("<h2>Groups</h2>", ">left</text>", ">right</text>", ">digit 7</text>", ">digit 7</th>"):
        assert wanted in page


def test_a_record_names_classes_as_the_report_does(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    report = attack(net, digits)
    report.data["class_names"] = NAMES
    record = Record.from_report(report, name="net", defense={"name": "none", "parameters": {}})
    assert [group.name for group in record.classes] == NAMES
    assert report.classes["name"].tolist() == NAMES


@pytest.mark.parametrize(
    ("groups", "ok", "mark", "said"),
    [
        (GROUPS, True, "ok", "2 groups"),
        (sorted(GROUPS), None, "?", "samples are in others; were others given"),
        (None, None, "?", "the table has none; were others given"),
    ],
)
def test_groups_of_a_record_are_held_against_those_of_its_data(
    net: nn.Module, digits: tuple[Tensor, Tensor], tmp_path: Path,
    groups: list[str] | None, ok: bool | None, mark: str, said: str,
) -> None:  # fmt: skip
    np.savez(tmp_path / "set.npz", x=digits[0].numpy(), y=digits[1].numpy(), groups=np.array(GROUPS))
    found = line_of_groups(net, str(tmp_path / "set.npz"), tmp_path, groups)
    assert found is not None
    assert (found.ok, str(found).split()[0]) == (ok, mark)
    assert said in found.message


def test_groups_that_the_data_has_not_are_beyond_verification(net: nn.Module, tmp_path: Path) -> None:
    found = line_of_groups(net, "builtin:digits", tmp_path, ["a"] * 359)
    assert found is not None
    assert (found.ok, found.asked) == (None, False)
    assert line_of_groups(net, "builtin:digits", tmp_path, None) is None


def line_of_groups(net: nn.Module, spec: str, folder: Path, groups: list[str] | None) -> Outcome | None:
    """What `verify` says of the groups of a record whose table has these."""
    report = attack(net, load_data(spec))
    table = report.verdicts = report.verdicts.drop(columns="group", errors="ignore")
    if groups is not None:
        table["group"] = groups
    record = Record.from_report(report, name="net", defense={"name": "none", "parameters": {}})
    Store(folder / "board").add(record, table)
    target = robust.Target(net, device="cpu")
    path = folder / "board" / "records" / f"{record.id}.json"
    lines = list(verify(*Store.locate(path), target=target, rerun=8))
    assert [line for line in lines if line.ok is False] == []
    return next((line for line in lines if line.check == "data.groups"), None)
