"""Records of the leaderboard: what they hold, what tells them apart, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from reports import PGD, as_schema_1, make_record, make_report

from robust.errors import InputError, StoreError
from robust.leaderboard import (
    Record,
    Store,
    verify,
)
from robust.leaderboard.artefacts import verdicts_sha256
from robust.leaderboard.record import _sealed, content_id
from robust.leaderboard.reference import Reference
from robust.threat import Threat


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
        alone={PGD: robust}, seconds=seconds, threat=Threat(norm, "10/7", (-1.0, 2.5)),
    )  # fmt: skip
    assert (record.statuses.broken, record.clean.k) == (broken, sum(counts) - wrong)
    text = record.dumps()
    again = Record.loads(text)
    assert again == record
    assert again.dumps() == text
    json.loads(text, parse_constant=pytest.fail)  # NaN and infinities are no JSON; the text "NaN" is
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
@pytest.mark.parametrize("kind", [Record, Reference])
def test_what_is_no_record_is_refused(text: str, kind: type[Record | Reference]) -> None:
    what = "not a .*; restore it, or move it out of the store$"
    with pytest.raises(StoreError, match=rf"^x\.json: ({what}|schema version)") as error:
        kind.loads(text.replace("record", kind.__name__.lower()), "x.json")
    assert "Error" not in str(error.value), "it speaks of the file, not of Python"


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
        ("schema_version", 3), ("unheard", 1), ("model.unheard", 1), ("classes", []),
        ("data.indices_sha256", None), ("artefacts.verdicts_sha256", None),
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
    unsaid = [attack.model_copy(update={"access": None, "selection": {}}) for attack in record.attacks]
    assert (back.robust, back.attacks, back.created) == (record.robust, unsaid, record.created)
    assert back.classes == []
    assert len(Store(tmp_path).verdicts(back)) == 100
    assert back.dumps() == text
    table = Store(tmp_path).verdicts_file(back)
    assert Store(tmp_path / "copy").add(back, table) == old
    assert [one.id for one in Store(tmp_path / "copy").records()] == [old]
    for at in range(0, len(text), 7):
        with pytest.raises(StoreError):
            Record.loads(f"{text[:at]}{'1' if text[at] != '1' else '2'}{text[at + 1 :]}")


@pytest.mark.parametrize(("forwards", "passes"), [(3000, None), (2999, False)])
def test_a_record_of_schema_1_may_leave_out_what_that_did_not_have(
    tmp_path: Path, forwards: int, passes: bool | None
) -> None:
    """Its checks may have cost anything, but its table's 100 samples took 30 passes forward each."""
    report = make_report(alone={PGD: 40})
    report.verdicts["distance"] *= 0.01  # within the ball
    record = Record.from_report(report, name="net", defense={"name": "none", "parameters": {}})
    Store(tmp_path).add(record, report.verdicts)
    cheap = record.model_copy(update={"cost": record.cost.model_copy(update={"forwards": forwards})})
    text = as_schema_1(cheap)
    name = f"{json.loads(text)['id']}.json"
    (tmp_path / "records" / name).write_text(text)
    found = {outcome.check: outcome.ok for outcome in verify(Store(tmp_path), name)}
    left_out = ("classes", "data.indices_sha256", "artefacts.verdicts_sha256")
    assert [found[check] for check in left_out] == [None] * 3
    assert (found["passes"], found["robust"]) == (passes, True)


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


def test_a_record_from_before_suites_had_versions_keeps_its_id() -> None:
    content = json.loads(make_record().dumps())["record"]
    del content["suite"]["version"]
    text = _sealed(content)
    record = Record.loads(text)
    assert record.suite.version is None
    assert (record.id, content_id(content)) == (json.loads(text)["id"],) * 2


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
