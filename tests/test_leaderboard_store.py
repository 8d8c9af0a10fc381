"""Stores of records: nothing is lost, half written, or believed unchecked."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import textwrap
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pandas as pd
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from reports import make_record, make_report

from robust.errors import StoreError, UnknownNameError
from robust.files import why, why_unwritten
from robust.leaderboard import (
    Record,
    Store,
    examples_bytes,
    sha256,
    verdicts_bytes,
)


def test_verdict_bytes_are_of_the_content_alone() -> None:
    verdicts = make_report().verdicts
    table = verdicts_bytes(verdicts)
    assert verdicts_bytes(verdicts.set_axis(range(7, 107))) == table
    assert verdicts_bytes(pd.read_parquet(io.BytesIO(table))) == table
    assert verdicts_bytes(verdicts.assign(status=verdicts["status"].astype(object))) == table
    assert verdicts_bytes(verdicts.assign(label=2)) != table


@pytest.fixture(params=["folder", "file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folder = tmp_path / "a [b] store"
    return {"folder": str(folder), "file": f"file://{folder}", "memory": f"memory://{uuid.uuid4()}/s"}[
        request.param
    ]


def test_store_gives_back_what_was_added(url: str) -> None:
    store, reports = Store(url), [make_report(robust=robust) for robust in (20, 30, 40)]
    records = [Record.from_report(r, name="net", defense={"name": "none", "parameters": {}}) for r in reports]
    ids = [store.add(record, report.verdicts) for record, report in zip(records, reports, strict=True)]
    again = Store(url)
    assert [record.id for record in again.records()] == sorted(ids)
    for record, report in zip(records, reports, strict=True):
        assert again.get(record.id) == again.get(record.short_id) == record
        pd.testing.assert_frame_equal(again.verdicts(record), report.verdicts, check_dtype=False)
    fs, root = fsspec.core.url_to_fs(url)
    assert not [path for path in fs.find(root) if path.endswith(".partial")]


def test_examples_are_kept_by_their_hash(url: str) -> None:
    report, store = make_report(), Store(url)
    examples = examples_bytes({"sample_id": torch.arange(3), "x_adv": torch.rand(3, 1, 2, 2)})
    defense = {"name": "none", "parameters": {}}
    record = Record.from_report(report, name="net", defense=defense, examples=examples)
    with pytest.raises(StoreError, match="examples"):
        store.add(record, report.verdicts)
    store.add(record, report.verdicts, examples=examples)
    back = store.examples(record)
    assert back is not None
    assert examples_bytes(back) == examples
    assert record.artefacts.examples_sha256 == sha256(examples)
    plain = make_record()
    assert store.examples(plain) is None
    with pytest.raises(StoreError, match="examples"):
        store.add(plain, report.verdicts, examples=examples)


def test_adding_again_changes_nothing(tmp_path: Path) -> None:
    store, record, verdicts = Store(tmp_path), make_record(), make_report().verdicts
    store.add(record, verdicts)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*.*")}
    later = record.model_copy(update={"created": "2030-01-01T00:00:00+00:00"})
    assert store.add(later, verdicts) == record.id
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*.*")} == before


def test_adding_again_mends_what_was_damaged(tmp_path: Path) -> None:
    store, record, verdicts = Store(tmp_path), make_record(), make_report().verdicts
    store.add(record, verdicts)
    for path in tmp_path.rglob("*.*"):
        path.write_bytes(path.read_bytes()[:100])
    store.add(record, verdicts)
    assert store.records() == [record]
    assert len(store.verdicts(record)) == 100


def test_a_foreign_verdict_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="verdicts"):
        Store(tmp_path).add(make_record(), make_report(robust=41).verdicts)
    assert not list(tmp_path.iterdir())


def test_half_written_files_are_no_records(tmp_path: Path) -> None:
    store, record = Store(tmp_path), make_record()
    store.add(record, make_report().verdicts)
    (tmp_path / "records" / f"{'0' * 64}.json.{uuid.uuid4().hex}.partial").write_text('{"id"')
    assert store.records() == [record]


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    store, record = Store(tmp_path), make_record()
    store.add(record, make_report().verdicts)
    path = tmp_path / "records" / f"{record.id}.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(StoreError, match=record.id):
        store.records()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match=record.id):
        store.records()


def test_a_renamed_record_is_refused(tmp_path: Path) -> None:
    store, record = Store(tmp_path), make_record()
    store.add(record, make_report().verdicts)
    path = tmp_path / "records" / f"{record.id}.json"
    path.rename(path.with_name(f"{'0' * 64}.json"))
    with pytest.raises(StoreError, match="renamed"):
        store.records()


def test_a_missing_or_altered_verdict_table_is_named(tmp_path: Path) -> None:
    store, record = Store(tmp_path), make_record()
    store.add(record, make_report().verdicts)
    (path,) = (tmp_path / "verdicts").iterdir()
    path.write_bytes(path.read_bytes() + b" ")
    what_to_do = f"restore it, or move the record that names it, {record.short_id}, out of the store"
    with pytest.raises(StoreError, match=f"{path.name}.*altered.*{what_to_do}"):
        store.verdicts(record)
    path.unlink()
    with pytest.raises(StoreError, match=f"{path.name}.*cannot be read.*{what_to_do}"):
        store.verdicts(record)


def test_unknown_and_ambiguous_ids(tmp_path: Path) -> None:
    store = Store(tmp_path)
    records = [make_record(robust=robust) for robust in range(10, 30)]
    for record, robust in zip(records, range(10, 30), strict=True):
        store.add(record, make_report(robust=robust).verdicts)
    firsts = [record.id[0] for record in records]
    shared = next(first for first in firsts if firsts.count(first) > 1)  # 20 ids, 16 digits
    with pytest.raises(UnknownNameError, match="more digits"):
        store.get(shared)
    for wrong in ("zzz", ""):
        with pytest.raises(UnknownNameError, match="unknown record"):
            store.get(wrong)
    known = records[0].id
    typo = known[:11] + ("0" if known[11] != "0" else "1")
    with pytest.raises(UnknownNameError, match=f"did you mean '{known[:12]}'"):
        store.get(typo)


def test_a_record_is_got_by_its_id_without_a_list_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, record = Store(tmp_path), make_record()
    store.add(record, make_report().verdicts)

    def refuse(*_: object) -> list[str]:
        raise AssertionError("listed")

    monkeypatch.setattr(Store, "_names", refuse)
    assert store.get(record.id) == record
    assert Store.locate(tmp_path / "records" / f"{record.id}.json")[1] == f"{record.id}.json"
    with pytest.raises(AssertionError, match="listed"):
        store.get(record.short_id)


def test_an_empty_store_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "empty" / "records").mkdir(parents=True)
    for where in ("missing", "empty"):
        with pytest.raises(StoreError, match="robust sweep"):
            Store(tmp_path / where).records()


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write") as caught:
        Store(tmp_path / "file" / "store").add(make_record(), make_report().verdicts)
    assert "\n" not in str(caught.value)
    record = make_record()
    in_the_way = tmp_path / "store" / "records" / f"{record.id}.json"
    in_the_way.mkdir(parents=True)
    with pytest.raises(StoreError, match=f"cannot write {in_the_way}: [^;]*; move away what is in the way$"):
        Store(tmp_path / "store").add(record, make_report().verdicts)


def test_a_full_disk_has_nothing_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LocalFileSystem, "pipe_file", full)
    with pytest.raises(
        StoreError, match=r"No space left on device; give a folder or URL that can be written$"
    ):
        Store(tmp_path).add(make_record(), make_report().verdicts)


def test_an_unknown_kind_of_url_is_refused() -> None:
    with pytest.raises(StoreError, match="cannot open"):
        Store("carrier-pigeon://coop")


WRITERS = """
    import os, sys
    from pathlib import Path
    from robust.leaderboard import Record, Store
    folder = Path(sys.argv[1])
    verdicts = (folder / "verdicts.parquet").read_bytes()
    record = Record.loads((folder / "record.json").read_text())
    for writer in range(4):
        if os.fork() == 0:  # spares the other three the imports
            for seed in range(50 * writer, 50 * writer + 55):
                Store(folder / "store").add(record.model_copy(update={"seed": seed}), verdicts)
            os._exit(0)
    sys.exit(any(os.wait()[1] for _ in range(4)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its writers")
def test_four_processes_lose_nothing(tmp_path: Path) -> None:
    """Two hundred and more; seeds overlap by 5 from process to process, so that some records have two writers."""
    (tmp_path / "verdicts.parquet").write_bytes(verdicts_bytes(make_report().verdicts))
    (tmp_path / "record.json").write_text(make_record().dumps())
    subprocess.run([sys.executable, "-c", textwrap.dedent(WRITERS), str(tmp_path)], check=True, timeout=120)
    assert sorted(record.seed for record in Store(tmp_path / "store").records()) == list(range(205))
    assert not list((tmp_path / "store").rglob("*.partial"))


def test_readers_never_see_half_a_record(tmp_path: Path) -> None:
    store, record, verdicts = Store(tmp_path), make_record(), make_report().verdicts
    store.add(record, verdicts)
    with ThreadPoolExecutor(4) as pool:
        writes = [
            pool.submit(Store(tmp_path).add, record.model_copy(update={"seed": seed}), verdicts)
            for seed in range(30)
        ]
        seen = [len(store.records()) for _ in range(5)]
        for write in writes:
            write.result()
    assert seen == sorted(seen)
    assert len(store.records()) == 30


def test_why_a_file_cannot_be_had_is_never_left_empty() -> None:
    assert why(FileNotFoundError(2, "No such file")) == why_unwritten(FileNotFoundError(2, "No such file"))
    assert why(NotImplementedError("read only")) == "read only"
    assert (why(NotImplementedError()), why_unwritten(OSError())) == ("NotImplementedError", "OSError")
    taken = IsADirectoryError(21, "Is a directory")
    assert why_unwritten(taken, "give another") == "Is a directory; move away what is in the way"
    assert why_unwritten(OSError("full"), "give another") == "full; give another"
