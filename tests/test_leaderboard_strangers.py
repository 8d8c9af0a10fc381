"""Files of records from strangers: examples, tables and fields of another form."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Outcome as Ended
from pydantic import ValidationError
from reports import filed, lines, make_record, make_report
from torch import Tensor, nn

from robust.errors import InputError, StoreError
from robust.leaderboard import (
    Record,
    Store,
    examples_bytes,
    sha256,
    verify,
)
from robust.leaderboard.artefacts import COLUMNS, read_verdicts, verdicts_bytes
from robust.leaderboard.derive import confusion
from robust.leaderboard.rebuild import rebuild
from robust.leaderboard.schema import MOST_CLASSES, Group, Rate
from robust.leaderboard.site.charts import confusion_table


def refiled(filed: Path, folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """The record with other adversarial examples, sealed anew."""
    store, name = Store.locate(filed)
    honest = store.read(name)
    saved = store.examples(honest)
    assert saved is not None
    change(saved)
    tensors = examples_bytes(saved)
    content = honest.model_dump(mode="json")
    content["artefacts"]["examples_sha256"] = sha256(tensors)
    forged = Record.model_validate(content)
    Store(folder).add(forged, store.verdicts_file(honest), examples=tensors)
    return folder / "records" / f"{forged.id}.json"


@pytest.mark.parametrize(
    ("change", "check", "reason"),
    [
        (lambda s: s.update(sample_id=s["sample_id"][:, None]), "examples", "expected integers of shape (K,), got int64"),
        (lambda s: s.update(sample_id=s["sample_id"].double()), "examples", "got float64 of shape"),
        (lambda s: s.update(sample_id=s["sample_id"][:1, None]), "examples", "of shape (1, 1)"),
        (lambda s: s.update(x_adv=s["x_adv"].long()), "examples", "x_adv: expected floats of shape"),
        (lambda s: s.update(x_adv=s["x_adv"][0, 0, 0, 0]), "examples", "x_adv: expected floats"),
        (lambda s: s.update(x_adv=s["x_adv"][:-1]), "examples", "x_adv: expected floats"),
        (lambda s: s.update(x=s["x_adv"][:, :, :7]), "examples", "x: expected the shape of x_adv"),
        (lambda s: s.update(x_adv=s["x_adv"].flatten(1)[:, :7]), "ball", "examples of shape"),
        (lambda s: s.pop("sample_id"), "examples", "the file has no sample_id"),
    ],
)  # fmt: skip
def test_examples_of_another_form_fail(
    net: nn.Module, tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], check: str, reason: str
) -> None:
    path = refiled(filed(tmp_path / "a", net, examples=True), tmp_path / "b", change)
    found = lines(path, net)
    assert found[check].ok is False
    assert reason in found[check].message


def test_examples_that_the_model_cannot_take_fail(net: nn.Module, tmp_path: Path) -> None:
    path = refiled(
        filed(tmp_path / "a", net, examples=True),
        tmp_path / "b",
        lambda s: s.update(x_adv=s["x_adv"][..., :7, :2]),
    )
    found = lines(path, net, data="nowhere.npz")
    assert (found["ball"].ok, found["fooled"].ok) == (None, False)
    assert "the model cannot take examples of float32" in found["fooled"].message


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


TABLE = pa.Table.from_pandas(make_report().verdicts, preserve_index=False)


def _with(name: str, values: Any) -> pa.Table:
    return TABLE.set_column(TABLE.schema.get_field_index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (parquet(pa.concat_tables([TABLE] * 50)), "expected 100 rows, as many as the record has samples, got 5000"),
        (parquet(TABLE.slice(1)), "got 99"),
        (parquet(TABLE.drop_columns(["label"])), "columns missing: label"),
        (parquet(_with("status", range(100))), "column status: expected texts, got int64"),
        (parquet(_with("distance", ["far"] * 100)), "column distance: expected floats, got string"),
        (parquet(_with("sample_id", [[1]] * 100)), "column sample_id: expected integers, got list"),
        (parquet(_with("forwards", [None, *range(99)])), "column forwards: 1 values are missing"),
        (parquet(_with("label", [10**15] * 100)), "column label: expected classes in"),
        (parquet(_with("prediction", [-2] * 100)), "column prediction: expected classes in"),
        (parquet(_with("prediction_adv", [10**15] * 100)), "column prediction_adv: expected classes in"),
        (parquet(_with("status", [*TABLE["status"].to_pylist()[:-1], "robust"])),
         "column status: expected misclassified, broken, survived or error, got 'robust' for sample 99"),
        (parquet(_with("attack", ["a" * 10**8] + [""] * 99)), "expected at most 10000 bytes a row"),
        (parquet(_with("attack", ["a" * 10**6] * 100)), "expected at most 10000 bytes a row, got 100,0"),
        (parquet(TABLE.append_column("more", pa.array([[1] * 1000] * 100))), "column more: expected numbers or texts, got list"),
        (parquet(TABLE.append_column("margin", pa.array(["m"] * 100))), "column margin: expected floats"),
        (parquet(pa.table({**{n: TABLE[n] for n in TABLE.schema.names}, **{f"c{i}": TABLE["label"] for i in range(99)}})),
         "expected at most 100 columns"),
        (b"PAR1 or so", "no Parquet file that can be read"),
    ],
)  # fmt: skip
def test_tables_of_another_form_are_not_read(content: bytes, reason: str) -> None:
    with pytest.raises(StoreError) as caught:
        read_verdicts(content, 100)
    assert str(caught.value).startswith("verdicts: ")
    assert reason in str(caught.value)


def test_a_table_of_a_billion_rows_is_not_read() -> None:
    """Whatever its record says: so many rows of one value are a few bytes."""
    one = {
        name: pa.array([TABLE[name][0].as_py()] * 10**6, TABLE.schema.field(name).type) for name in COLUMNS
    }
    million = parquet(pa.table(one))
    assert len(million) < 50_000
    assert len(read_verdicts(million, 10**6)) == 10**6
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, pa.table(one).schema) as writer:
        for _ in range(10):
            writer.write_table(pa.table(one))
    with pytest.raises(
        StoreError, match=r"expected at most 50,000,000 values, got 10,000,000 rows of 8 columns"
    ):
        read_verdicts(sink.getvalue(), 10**7)


def test_a_class_of_a_high_number_costs_a_page_no_memory() -> None:
    verdicts = make_report().verdicts
    verdicts.loc[0, "prediction"] = MOST_CLASSES - 1
    found = confusion(verdicts)
    assert found.size == MOST_CLASSES
    assert int(found.count.sum()) == 100
    assert f"{MOST_CLASSES} classes" in confusion_table(found, [str(label) for label in range(MOST_CLASSES)])
    rate = Rate.of(1, 1)
    with pytest.raises(ValidationError, match="less than 100000"):
        Group(name="far", label=MOST_CLASSES, clean=rate, robust=rate)


def test_publish_names_the_sample_of_an_unknown_status(tmp_path: Path, inside: Callable[..., Ended]) -> None:
    report = make_report()
    report.verdicts.loc[report.verdicts["sample_id"] == 42, "status"] = "robust"
    content = make_record().model_dump(mode="json")
    file = parquet(pa.Table.from_pandas(report.verdicts, preserve_index=False))
    content["artefacts"] |= {"verdicts_file_sha256": sha256(file)}
    Store(tmp_path / "store").add(Record.model_validate(content), file)
    done = inside(
        "leaderboard", "publish", str(tmp_path / "store"), "--out", str(tmp_path / "site"), cwd=tmp_path
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "broken, survived or error, got 'robust' for sample 42" in done.stderr


def test_verify_says_what_is_wrong_with_a_table(net: nn.Module, tmp_path: Path) -> None:
    store, name = Store.locate(filed(tmp_path / "a", net))
    honest = store.read(name)
    many = verdicts_bytes(pd.concat([store.verdicts(honest)] * 20, ignore_index=True))
    content = honest.model_dump(mode="json")
    content["artefacts"] |= {"verdicts_file_sha256": sha256(many)}
    forged = Record.model_validate(content)
    Store(tmp_path / "b").add(forged, many)
    *_, last = verify(Store(tmp_path / "b"), f"{forged.id}.json")
    assert (last.check, last.ok) == ("verdicts", False)
    assert "expected 60 rows" in last.message


def test_a_record_with_odd_draws_is_refused_in_one_line() -> None:
    record = make_record(eot={"samples": 2})
    with pytest.raises(InputError, match=r"^record: eot: expected samples and vote"):
        rebuild(record, "builtin:digits-mlp", device="cpu")
