"""Records, stores and tables of the leaderboard."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import textwrap
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from robust.errors import InputError, StoreError, UnknownNameError
from robust.leaderboard import (
    Record,
    Store,
    examples_bytes,
    leaderboard_frame,
    render,
    sha256,
    verdicts_bytes,
)
from robust.leaderboard.artefacts import verdicts_sha256
from robust.report import Report
from robust.threat import Threat

FGSM, PGD, MARGIN, CW = "fgsm", "pgd", "pgd(loss=margin)", "cw(steps=60,binary_search_steps=4)"
Alone = dict[str, int | None]  # attack label -> robust count under it, None: not run


def make_report(
    *,
    n: int = 100,
    wrong: int = 10,
    robust: int = 40,
    error: int = 0,
    alone: Alone | None = None,
    **changes: Any,
) -> Report:
    """A report whose counts are given; everything else is plain."""
    clean = n - wrong
    statuses = (
        ["misclassified"] * wrong
        + ["broken"] * (clean - robust - error)
        + ["survived"] * robust
        + ["error"] * error
    )
    verdicts = pd.DataFrame(
        {
            "sample_id": range(n),
            "label": [1] * n,
            "prediction": [0] * wrong + [1] * clean,
            "status": statuses,
            "attack": ["pgd" if status == "broken" else "" for status in statuses],
            "distance": [0.5 if status == "broken" else float("nan") for status in statuses],
            "forwards": [30] * n,
            "backwards": [12] * n,
        }
    )
    attacks = [
        {
            "name": label.partition("(")[0], "label": label, "parameters": {"label": label, "sizes": (1, 2)},
            "attacked": 0 if left is None else clean, "broke": 0 if left is None else clean - left,
            "survived": left or 0, "rejected": 0, "errors": 0, "forwards": 9, "backwards": 8, "seconds": 0.25,
        }
        for label, left in (alone or {FGSM: min(robust + 20, clean), PGD: robust}).items()
    ]  # fmt: skip
    fields: dict[str, Any] = {
        "threat": Threat("linf", "8/255"), "suite": "standard", "seed": 0, "verdicts": verdicts,
        "attacks": attacks, "trust": "trusted", "findings": [],
        "checks": {"forwards": 0, "backwards": 0, "seconds": 0.0},
        "model": {"spec": "builtin:net", "sha256": "ab" * 32, "architecture": "Net", "parameters": 1234},
        "data": {"spec": "builtin:digits", "sha256": "cd" * 32}, "device": "cpu",
        "versions": {"torch": "2.5"}, "seconds": 1.5, "cascade": False,
    }  # fmt: skip
    return Report(**{**fields, **changes})


def make_record(
    *, name: str = "net", defense: str = "none", options: dict[str, Any] | None = None, **changes: Any
) -> Record:
    return Record.from_report(
        make_report(**changes),
        name=name,
        defense={"name": defense, "parameters": options or {}, "trained_threat": None},
    )


# -- record -----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    name=st.text(max_size=40),
    counts=st.tuples(*[st.integers(0, 60)] * 4).filter(lambda counts: sum(counts) > 0),
    seconds=st.floats(0, 1e9),
    options=st.dictionaries(
        st.text(max_size=8), st.none() | st.booleans() | st.floats(-1e9, 1e9) | st.text(max_size=8)
    ),
    norm=st.sampled_from(["linf", "l2", "l1", "l0"]),
)
def test_round_trip(
    name: str, counts: tuple[int, int, int, int], seconds: float, options: dict[str, Any], norm: str
) -> None:
    wrong, broken, robust, error = counts
    record = make_record(
        name=name, options=options, n=sum(counts), wrong=wrong, robust=robust, error=error,
        alone={PGD: robust}, seconds=seconds, threat=Threat(norm, "3/7", (-1.0, 2.5)),
    )  # fmt: skip
    assert (record.statuses.broken, record.clean.k) == (broken, sum(counts) - wrong)
    text = record.dumps()
    again = Record.loads(text)
    assert again == record
    assert again.dumps() == text
    assert "NaN" not in text.replace(json.dumps(name), "")
    assert Record.loads(text.replace("\n", "\r\n")) == record


def test_id_is_of_the_outcome_alone() -> None:
    one = make_record()
    slower = make_report(seconds=99.0, device="cuda", versions={"torch": "3"})
    slower.attacks[0]["seconds"] = 7.0
    other = Record.from_report(
        slower,
        name="net",
        defense={"name": "none", "parameters": {}, "trained_threat": None},
        command="robust",
    ).model_copy(update={"created": "2001-01-01T00:00:00+00:00"})
    assert other.id == one.id
    assert other.dumps() != one.dumps()
    assert one.short_id == one.id[:16]


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"robust": 39}, {"threat": Threat("linf", "0.03")}, {"cascade": True}, {"name": "mine"},
     {"options": {"seconds": 3}}],
)  # fmt: skip
def test_id_tells_outcomes_apart(change: dict[str, Any]) -> None:
    assert make_record(**change).id != make_record().id


def test_id_keeps_parameters_that_are_named_like_times() -> None:
    assert make_record(options={"seconds": 3}).id != make_record(options={"seconds": 4}).id


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in _leaves(item, (*path, key))]
    if isinstance(value, list):
        return [leaf for key, item in enumerate(value) for leaf in _leaves(item, (*path, key))]
    return [path]


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else f"{value}0"


def test_every_forged_field_is_refused() -> None:
    text = make_record(
        findings=[{"check": "c", "severity": "suspect", "message": "m"}], trust="suspect"
    ).dumps()
    leaves = _leaves(json.loads(text))
    assert len(leaves) > 50
    for path in leaves:
        raw = json.loads(text)
        holder = raw
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = _other(holder[path[-1]])
        with pytest.raises(StoreError, match=r"^there\.json: "):
            Record.loads(json.dumps(raw, indent=1) + "\n", "there.json")


def test_every_changed_character_is_refused() -> None:
    text = make_record().dumps()
    for at, was in enumerate(text):
        with pytest.raises(StoreError):
            Record.loads(f"{text[:at]}{'1' if was != '1' else '2'}{text[at + 1 :]}")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"record": 3}', '{"record": {"schema_version": NaN}}', "[" * 9999]
)
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(StoreError, match=r"^x\.json: "):
        Record.loads(text, "x.json")


def test_a_newer_schema_says_upgrade() -> None:
    text = make_record().dumps().replace('"schema_version": 2', '"schema_version": 3')
    with pytest.raises(StoreError, match="upgrade"):
        Record.loads(text)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("statuses.survived", 41), ("statuses.error", 1), ("robust.k", 41), ("robust.value", 0.41),
        ("robust.value", float("nan")), ("robust.low", 0.0), ("clean.high", 1.0), ("clean.k", 39),
        ("data.n", 101), ("data.n", 0), ("threat.radius", 0.03), ("threat.eps", "7/255"), ("threat.eps", "0"),
        ("threat.norm", "l3"), ("threat.bounds", [1.0, 0.0]), ("cost.seconds", float("inf")), ("cost.forwards", -1),
        ("trust", "fine"), ("attacks.0.survived", 39), ("attacks.0.broke", 91), ("attacks.0.attacked", 91),
        ("attacks.0.parameters", {"a": float("nan")}), ("attacks.0.parameters", {"a": {1, 2}}),
        ("model.parameters", -1), ("model.name", "x" * 301), ("model.weights_sha256", "../../etc"),
        ("artefacts.verdicts_sha256", "0" * 63 + "\n"), ("created", "yesterday"), ("created", "2026-01-01T00:00:00"),
        ("schema_version", 3), ("unheard", 1), ("model.unheard", 1),
    ],
)  # fmt: skip
def test_a_record_cannot_contradict_itself(path: str, value: Any) -> None:
    content = make_record().model_dump(mode="json")
    assert Record.model_validate(content) == make_record().model_copy(update={"created": content["created"]})
    *parents, last = path.split(".")
    holder: Any = content
    for key in parents:
        holder = holder[int(key) if key.isdigit() else key]
    holder[last] = value
    with pytest.raises(ValidationError):
        Record.model_validate(content)


def as_schema_1(record: Record) -> str:
    """The text of the file that a record without classes had before schema 2."""
    content = record.model_dump(mode="json")
    content["schema_version"] = 1
    for key in ("classes", "groups", "fairness", "paper"):
        del content[key]
    kept = {
        "model": "name spec architecture parameters weights_sha256",
        "defense": "name parameters trained_threat",
        "data": "spec sha256 n",
        "threat": "norm eps radius bounds",
        "cost": "forwards backwards seconds device",
    }
    for part, names in kept.items():
        content[part] = {name: content[part][name] for name in names.split()}
    old = ["name", "label", "parameters", "attacked", "broke", "survived", "forwards", "backwards", "seconds"]
    content["attacks"] = [{name: attack[name] for name in old} for attack in content["attacks"]]
    file = content["artefacts"]["verdicts_file_sha256"]
    content["artefacts"] = {"verdicts_sha256": file, "examples_sha256": None}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    outcome = json.loads(canonical)
    for key in ("created", "command", "environment"):
        del outcome[key]
    for key in ("seconds", "device"):
        del outcome["cost"][key]
    for attack in outcome["attacks"]:
        del attack["seconds"]
    id_ = sha256(json.dumps(outcome, sort_keys=True, separators=(",", ":")).encode())
    whole = {"id": id_, "checksum": sha256(canonical), "record": json.loads(canonical)}
    return json.dumps(whole, indent=1) + "\n"


def test_a_record_of_schema_1_is_read_and_keeps_its_id(tmp_path: Path) -> None:
    record, report = make_record(), make_report()
    text = as_schema_1(record)
    old = json.loads(text)["id"]
    Store(tmp_path).add(record, report.verdicts)
    (new,) = (tmp_path / "records").iterdir()
    new.unlink()
    (tmp_path / "records" / f"{old}.json").write_text(text)
    (back,) = Store(tmp_path).records()
    assert (back.id, Store(tmp_path).get(old[:8]).id) == (old, old)
    assert back.schema_version == 2
    assert (back.robust, back.attacks, back.created) == (record.robust, record.attacks, record.created)
    assert back.classes == []
    assert len(Store(tmp_path).verdicts(back)) == 100
    assert Record.loads(back.dumps()).robust == record.robust
    for at in range(0, len(text), 7):
        with pytest.raises(StoreError):
            Record.loads(f"{text[:at]}{'1' if text[at] != '1' else '2'}{text[at + 1 :]}")


def test_classes_groups_and_the_worst_of_them() -> None:
    report = make_report()
    report.verdicts["label"] = [label for label in range(4) for _ in range(25)]
    report.verdicts["prediction"] = report.verdicts["label"] + (report.verdicts["status"] == "misclassified")
    report.verdicts["group"] = ["north", "south"] * 50
    record = Record.from_report(
        report, name="net", defense={"name": "none", "parameters": {}}, class_names=["a", "b", "c"]
    )
    assert [(g.name, g.label, g.clean.k, g.robust.k) for g in record.classes] == [
        ("a", 0, 15, 0), ("b", 1, 25, 0), ("c", 2, 25, 15), ("3", 3, 25, 25),
    ]  # fmt: skip
    assert [(g.name, g.label, g.clean.n, g.robust.k) for g in record.groups] == [
        ("north", None, 50, 20), ("south", None, 50, 20),
    ]  # fmt: skip
    fairness = record.fairness
    assert fairness is not None
    assert (fairness.worst, fairness.value, fairness.worst_tenth, fairness.spread) == (0, 0.0, 0.0, 1.0)
    assert fairness.high > record.classes[0].robust.high  # four classes were looked at
    assert Record.loads(record.dumps()) == record
    content = record.model_dump(mode="json")
    content["classes"] = content["classes"][:3]
    with pytest.raises(ValidationError, match="do not add up"):
        Record.model_validate(content)


def test_what_is_said_of_the_model_is_checked() -> None:
    def made(**model: Any) -> Record:
        return Record.from_report(
            make_report(), name="n", defense={"name": "none", "parameters": {}}, model=model
        )

    assert made(source="https://host.example/w", licence="MIT", extra_data=True).model.licence == "MIT"
    for wrong in ({"source": "javascript:alert(1)"}, {"licence": "x" * 10_000_000}, {"unheard": 1}):
        with pytest.raises(InputError) as caught:
            made(**wrong)
        assert len(str(caught.value)) < 300


def test_the_hash_of_a_table_is_of_its_content_whoever_wrote_it() -> None:
    verdicts = make_report().verdicts
    digest = verdicts_sha256(verdicts)
    narrow = verdicts.astype({"label": "int32", "forwards": "int16", "status": object})
    assert verdicts_sha256(narrow[sorted(narrow.columns)].set_axis(range(5, 105))) == digest
    for column, value in (("label", 2), ("status", "x"), ("distance", 0.25)):
        changed = verdicts.copy()
        changed.loc[50, column] = value
        assert verdicts_sha256(changed) != digest
    assert verdicts_sha256(verdicts.iloc[::-1]) != digest
    moved = verdicts.rename(columns={"forwards": "backwards", "backwards": "forwards"})
    assert verdicts_sha256(moved) != digest


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_record().seed = 3


def test_a_changed_copy_has_an_id_of_its_own() -> None:
    record = make_record()
    first = record.id
    assert record.model_copy().id == first
    other = record.model_copy(update={"seed": 7})
    assert (other.id, record.id) == (make_record(seed=7).id, first)
    old = Record.loads(as_schema_1(record))
    assert old.model_copy().id == old.id
    assert (
        old.model_copy(update={"seed": 7}).id
        == other.model_copy(
            update={key: getattr(old, key) for key in Record.model_fields if key != "seed"}
        ).id
    )


@pytest.mark.parametrize(("near", "broke", "fits"), [(0.1, 10, True), (0.1, 11, False), (None, 10, False)])
def test_an_attack_that_saw_few_says_nothing_of_the_others(
    near: float | None, broke: int, fits: bool
) -> None:
    """90 are right, 75 survive: of the 20 that were seen, 5 must have."""
    report = make_report(robust=75)
    entry = {
        **report.attacks[0],
        "selection": {"near": near},
        "attacked": 20,
        "broke": broke,
        "survived": 20 - broke,
    }
    entry["survived"] = 15 - broke  # five ended in an error there
    report.attacks = [entry]
    if fits:
        assert Record.from_report(report, name="net", defense={"name": "none", "parameters": {}}).attacks
        return
    with pytest.raises(InputError, match="contradict the accuracies"):
        Record.from_report(report, name="net", defense={"name": "none", "parameters": {}})


def test_figures_with_exponents_are_read_as_they_are_written() -> None:
    record = make_record(seconds=1e-7, options={"rate": 1e-05, "big": 1e22})
    assert "e-05" in record.dumps()
    assert Record.loads(record.dumps()) == record


def test_errors_that_were_right_on_clean_data_count_as_clean() -> None:
    record = make_record(error=5)
    assert (record.clean.k, record.statuses.error, record.robust.k) == (90, 5, 40)


def test_from_report_refuses_what_a_record_cannot_hold() -> None:
    with pytest.raises(InputError, match=r"defense\.parameters"):
        make_record(options={"beta": float("inf")})
    with pytest.raises(InputError, match=r"model\.name: String should have at most 300") as refused:
        make_record(name="x" * 10_000_000)
    assert len(str(refused.value)) < 1000


# -- store ------------------------------------------------------------------------------------------


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
    with pytest.raises(StoreError, match=f"{path.name}.*altered"):
        store.verdicts(record)
    path.unlink()
    with pytest.raises(StoreError, match=path.name):
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


# -- table ------------------------------------------------------------------------------------------


def _frame(*records: Record) -> pd.DataFrame:
    return leaderboard_frame(records)


@pytest.mark.parametrize(
    "change",
    [
        {"threat": Threat("l2", "8/255")}, {"threat": Threat("linf", "16/510")},
        {"threat": Threat("linf", "8/255", (-1.0, 1.0))}, {"data": {"spec": "builtin:digits", "sha256": "ce" * 32}},
        {"data": {"spec": "builtin:digits", "sha256": "cd" * 31 + "ce"}},
        {"suite": "quick"}, {"cascade": True}, {"alone": {PGD: 40}},
    ],
)  # fmt: skip
def test_different_conditions_are_never_ranked_together(change: dict[str, Any]) -> None:
    frame = _frame(make_record(), make_record(**change))
    assert frame["board"].nunique() == 2
    assert list(frame["rank"]) == ["1", "1"]


def test_attacks_that_only_differ_in_unseen_parameters_part_boards() -> None:
    changed = make_report()
    changed.attacks[0]["parameters"] = {"label": FGSM, "sizes": (1, 3)}
    other = Record.from_report(changed, name="net", defense={"name": "none", "parameters": {}})
    assert _frame(make_record(), other)["board"].nunique() == 2


def test_ranks_are_ranges_where_intervals_overlap() -> None:
    shown = [make_record(n=1000, wrong=100, robust=robust) for robust in (200, 800, 510, 500, 100)]
    frame = _frame(*shown)
    assert list(frame["robust"]) == [0.8, 0.51, 0.5, 0.2, 0.1]
    assert list(frame["rank"]) == ["1", "2-3", "2-3", "4", "5"]


def test_unreliable_records_are_below_and_unranked() -> None:
    frame = _frame(
        make_record(robust=90, trust="unreliable"),
        make_record(robust=10),
        make_record(robust=60, trust="suspect"),
    )
    assert list(frame["trust"]) == ["suspect", "trusted", "unreliable"]
    assert list(frame["rank"]) == ["1", "2", "-"]


def test_columns_of_the_frame() -> None:
    frame = _frame(make_record(alone={FGSM: None, PGD: 50, "id": 60}), make_record(alone={CW: 45}))
    row = frame[frame["pgd"].notna()].iloc[0]
    assert (row["clean"], row["robust"], row["passes"], row["n"]) == (0.9, 0.4, 42.0, 100)
    assert (row["pgd"], row["attack id"]) == (0.5, 0.6)
    assert FGSM not in frame.columns  # nothing ran it
    assert pd.isna(row[CW])


def test_rows_of_one_name_are_told_apart() -> None:
    records = [
        make_record(defense="trades", options={"beta": b, "steps": 7}, robust=r)
        for b, r in ((1, 30), (6, 50))
    ]
    frame = _frame(*records, make_record(defense="none", robust=20), make_record(defense="mart", seed=3))
    assert list(frame["variant"]) == ["beta=6", "", "beta=1", ""]
    twins = _frame(make_record(robust=40), make_record(robust=40, alone={FGSM: 61, PGD: 40}))
    assert twins["variant"].nunique() == 2


DEMO = [
    make_record(n=1000, wrong=50, defense="pgd-at", robust=452, alone={FGSM: 700, PGD: 460, MARGIN: 452, CW: 480}),
    make_record(n=1000, wrong=36, robust=92, alone={FGSM: 322, PGD: 94, MARGIN: 106, CW: 179}),
    make_record(
        n=1000, wrong=40, robust=12, alone={FGSM: 700, PGD: 600, MARGIN: 12, CW: 15}, defense="distillation",
        trust="suspect", findings=[{"check": "logit-scale", "severity": "suspect", "message": "m"}],
    ),
    make_record(n=1000, wrong=40, robust=800, alone={FGSM: None, PGD: 900, MARGIN: None, CW: 800}, trust="unreliable"),
]  # fmt: skip


def test_terminal_table() -> None:
    text = render(DEMO)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "linf:8/255" in lines[0]
    assert "n = 1000" in lines[0]
    row = next(line for line in lines if "pgd-at" in line)
    assert row.split() == [
        "1",
        "net",
        "pgd-at",
        "95.0",
        "45.2",
        "[42.1,",
        "48.3]",
        "70.0",
        "46.0",
        "45.2",
        "48.0",
        "42",
    ]
    masked = next(line for line in lines if "800" not in line and "80.0 [" in line)
    assert masked.split()[0] == "-"
    assert masked.split()[-6:] == ["-", "90.0", "-", "80.0", "42", "!"]
    assert next(line for line in lines if line.split()[2:3] == ["distillation"]).endswith("?")
    notes = text.rpartition("\n\n")[2]
    assert "? suspect" in notes
    assert "net + distillation (logit-scale)" in notes.replace("\n", " ")
    assert "! unreliable" in notes


LABELS = st.sampled_from(
    [
        FGSM,
        PGD,
        MARGIN,
        "cw",
        CW,
        "pgd(steps=40)",
        "pgd(steps=400,loss=margin)",
        "square(queries=5000)",
        "apgd-t",
        "fab",
    ]
)


@settings(max_examples=25, deadline=None)
@given(
    labels=st.lists(LABELS, min_size=1, max_size=10, unique=True),
    names=st.lists(st.text("abc-_ |", min_size=1, max_size=300), min_size=1, max_size=3),
    trust=st.sampled_from(["trusted", "suspect", "unreliable"]),
    width=st.sampled_from([60, 80, 120]),
)
def test_terminal_never_wider_than_asked(labels: list[str], names: list[str], trust: Any, width: int) -> None:
    records = [
        make_record(
            name=name, defense=names[0], robust=40, alone=dict.fromkeys(labels, 50), trust=trust, seed=seed
        )
        for seed, name in enumerate(names)
    ]
    text = render(records, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("50.0") >= len(labels) * len(names)


@pytest.mark.parametrize("labels", [[FGSM, PGD, MARGIN, "cw"], [FGSM, PGD, MARGIN, "cw", "square"]])
def test_five_attacks_stay_in_one_table(labels: list[str]) -> None:
    text = render([make_record(name="mnist-cnn", defense="distillation", alone=dict.fromkeys(labels, 50))])
    assert text.count("fwd+") == 1
    assert "distillation" in text
    assert "mnist-cnn" in text


NASTY = "a|b`c\x1b[31m\n\u202e<script>_{$%&\\[x](y)"


def test_names_are_escaped_per_format() -> None:
    record = make_record(name=NASTY, defense="=1+1")
    for fmt in ("terminal", "markdown", "csv", "latex"):
        text = render([record], fmt)
        assert not any(character in text for character in "\x1b\u202e"), fmt
    assert json.loads(render([record], "json"))[0]["model"] == NASTY
    markdown = next(line for line in render([record], "markdown").splitlines() if "script" in line)
    assert r"a\|b\`c" in markdown
    assert r"&lt;script>" in markdown
    assert r"\[x\](y)" in markdown
    latex = next(line for line in render([record], "latex").splitlines() if "script" in line)
    assert r"\_\{\$\%\&\textbackslash{}" in latex
    (row,) = csv.DictReader(io.StringIO(render([record], "csv")))
    assert row["defense"] == "'=1+1"
    assert row["model"].startswith("a|b`c")


def test_markdown_rows_have_the_columns_of_their_head() -> None:
    rows = [line for line in render(DEMO, "markdown").splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(DEMO)
    assert {row.count("|") for row in rows} == {12}
    assert "45.2 [42.1, 48.3]" in rows[2]
    assert "unreliable !" in rows[-1]


def test_csv_and_json_hold_full_numbers() -> None:
    rows = list(csv.DictReader(io.StringIO(render(DEMO, "csv"))))
    objects = json.loads(render(DEMO, "json"))
    for row, item, record in zip(rows, objects, [DEMO[0], DEMO[1], DEMO[2], DEMO[3]], strict=True):
        assert float(row["low"]) == pytest.approx(record.robust.low, abs=1e-14)
        assert item["low"] == pytest.approx(record.robust.low, abs=1e-14)
        assert row["id"] == item["id"] == record.short_id
    assert rows[3][FGSM] == ""
    assert objects[3][FGSM] is None


def test_latex_is_one_table_per_board() -> None:
    text = render([*DEMO, make_record()], "latex")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2


def test_nothing_to_show() -> None:
    assert render([]) == "no records"
    assert json.loads(render([], "json")) == []
    assert render([], "csv").startswith("board,rank,model")


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(InputError, match=r"^format: expected one of terminal"):
        render(DEMO, "html")


def test_a_terminal_too_narrow_gets_the_narrowest_table() -> None:
    assert render(DEMO, width=20) == render(DEMO, width=60)
