"""Paired comparisons, ranks made of them, and figures that others reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import ROWS, make_report

from robust.errors import InputError, StoreError
from robust.leaderboard import (
    Record,
    Reference,
    Store,
    choose,
    compare,
    comparison_text,
    leaderboard_frame,
    read_robustbench,
    render,
)
from robust.leaderboard.rank import ranks
from robust.stats import holm, mcnemar, paired_interval
from robust.threat import Threat

# -- statistics -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(b=st.integers(0, 60), c=st.integers(0, 60), rest=st.integers(0, 400))
def test_the_paired_interval_excludes_0_where_mcnemars_statistic_is_significant(
    b: int, c: int, rest: int
) -> None:
    n = b + c + rest
    low, high = paired_interval(b, c, n)
    if n == 0:
        assert (low, high) == (-1, 1)
        return
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert paired_interval(c, b, n) == pytest.approx((-high, -low), abs=1e-9)
    significant = b + c > 0 and (b - c) ** 2 / (b + c) > 1.959963984540054**2
    if abs(abs(b - c) - 1.96 * (b + c) ** 0.5) > 1e-2:
        assert (low > 1e-9 or high < -1e-9) == significant


def test_the_paired_interval_where_no_pair_differs_is_the_score_interval_of_none() -> None:
    z2 = 1.959963984540054**2
    low, high = paired_interval(0, 0, 100)
    assert (low, high) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)), abs=1e-6)
    assert paired_interval(5, 0, 5) == pytest.approx(((5 - z2) / (5 + z2), 1), abs=1e-6)


def test_the_paired_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    draws = rng.multinomial(80, [0.5, 0.2, 0.08, 0.22], size=1500)
    found = [paired_interval(int(b), int(c), 80) for _, b, c, _ in draws]
    assert 0.935 <= np.mean([low <= 0.12 <= high for low, high in found]) <= 0.975


@pytest.mark.parametrize("arguments", [(-1, 0, 5), (3, 3, 5), (1, 1, 2.0)])
def test_impossible_pairs_are_refused(arguments: Any) -> None:
    with pytest.raises(InputError):
        paired_interval(*arguments)
    with pytest.raises(InputError, match="confidence"):
        paired_interval(1, 1, 5, confidence=1)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


# -- comparing --------------------------------------------------------------------------------------


def record(*, robust: int = 40, shift: int = 0, name: str = "net", **changes: Any) -> tuple[Record, Any]:
    """A record and its table: samples in the order wrong, broken, survived, then rolled by `shift`."""
    report = make_report(robust=robust, alone={"pgd": robust}, **changes)
    verdicts = report.verdicts
    if shift:
        rolled = verdicts.drop(columns=["sample_id", "label"]).to_dict("list")
        for column, values in rolled.items():
            verdicts[column] = values[-shift:] + values[:-shift]
    verdicts["label"] = [index % 2 for index in range(len(verdicts))]
    wrong = verdicts["status"] == "misclassified"
    verdicts["prediction"] = (verdicts["label"] + wrong) % 2
    return Record.from_report(report, name=name, defense={"name": "none", "parameters": {}}), verdicts


def test_compare_counts_pairs_whole_and_per_class() -> None:
    (a, left), (b, right) = record(robust=60), record(robust=40, name="other")
    found = compare(a, b, left, right)
    whole = found.whole
    assert (whole.n, whole.both, whole.only_a, whole.only_b, whole.neither) == (100, 40, 20, 0, 40)
    assert (whole.difference, whole.p) == (0.2, mcnemar(20, 0))
    assert (whole.low, whole.high) == paired_interval(20, 0, 100)
    assert [(part.name, part.n, part.only_a, part.only_b) for part in found.classes] == [
        ("0", 50, 10, 0), ("1", 50, 10, 0),
    ]  # fmt: skip
    assert [part.p_holm for part in found.classes] == pytest.approx([2 * mcnemar(10, 0)] * 2)
    assert found.differs == []
    back = compare(b, a, right, left).whole
    assert (back.difference, back.low, back.high, back.p) == pytest.approx(
        (-0.2, -whole.high, -whole.low, whole.p)
    )


def test_what_differs_beside_the_model_is_said() -> None:
    (a, left), (b, right) = (
        record(trust="unreliable"),
        record(robust=38, seed=3, suite="quick", minimize=True),
    )
    found = compare(a, b, left, right)
    assert found.differs == ["suite (standard and quick)", "minimize (False and True)", "seed (0 and 3)"]
    text = comparison_text(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "not under the same conditions: suite (standard and quick)" in text
    assert "no difference shown" in text
    assert "A must not be trusted" in text.replace("\n", " ")
    json.dumps(found.to_dict(), allow_nan=False)


def test_two_trainings_of_one_name_are_told_apart() -> None:
    report = make_report()
    a, b = (
        Record.from_report(
            report, name="net", defense={"name": "pgd-at", "parameters": {"steps": steps, "warmup": 0.3}}
        )
        for steps in (3, 7)
    )
    table = report.verdicts
    first, second = comparison_text(compare(a, b, table, table)).splitlines()[:2]
    assert " + pgd-at (steps=3), " in first
    assert " + pgd-at (steps=7), " in second
    assert "(" not in comparison_text(compare(a, a, table, table)).splitlines()[0]


def test_across_conditions_nobody_is_called_more_robust() -> None:
    (a, left), (b, right) = record(robust=60), record(robust=20, threat=Threat("linf", "16/255"))
    text = comparison_text(compare(a, b, left, right)).replace("\n", " ")
    assert "A held on more samples, under other conditions (p = " in text
    assert "more robust" not in text


def test_other_samples_are_not_paired() -> None:
    (a, left), (b, right) = record(), record(data={"spec": "builtin:digits", "sha256": "ef" * 32})
    with pytest.raises(InputError, match="only the same samples"):
        compare(a, b, left, right)


# -- ranks ------------------------------------------------------------------------------------------


def _survived(pairs: list[tuple[Record, Any]]) -> dict[str, Any]:
    return {made.id: (table["status"] == "survived").to_numpy() for made, table in pairs}


def test_paired_tests_tell_apart_what_intervals_cannot() -> None:
    pairs = [record(n=1000, wrong=100, robust=robust) for robust in (500, 480, 476, 300)]
    group, survived = [made for made, _ in pairs], _survived(pairs)
    assert ranks(group) == ["1-3", "1-3", "1-3", "4"]
    assert ranks(group, survived) == ["1", "2-3", "2-3", "4"]  # 20 of 20 discordant pairs, and 4 of 4
    unreliable, table = record(n=1000, wrong=100, robust=900, trust="unreliable")
    mixed = _survived([(unreliable, table), *pairs])
    assert ranks([unreliable, *group], mixed) == ["-", "1", "2-3", "2-3", "4"]


def test_equal_counts_on_other_samples_stay_tied() -> None:
    pairs = [record(robust=40), record(robust=40, shift=30, name="other")]
    assert ranks([made for made, _ in pairs], _survived(pairs)) == ["1-2", "1-2"]
    assert ranks([pairs[0][0]], _survived(pairs[:1])) == ["1"]
    assert ranks([], {}) == []


def test_show_reads_the_tables(tmp_path: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    store = Store(tmp_path)
    for made, table in (record(n=1000, wrong=100, robust=robust, name=f"n{robust}") for robust in (500, 470)):
        store.add(made, table)
    assert [row["rank"] for row in json.loads(cli("show", tmp_path, "--format", "json")[1])] == ["1", "2"]
    code, out, _ = cli("show", tmp_path, "--format", "json", "--model", "N470")
    assert [(row["model"], row["rank"]) for row in json.loads(out)] == [("n470", "2")]
    ids = [made.id for made in store.records()]
    code, out, _ = cli("compare", tmp_path, ids[0][:10], ids[1][:10])
    assert (code, "more robust" in out) == (0, True)
    code, out, _ = cli("compare", tmp_path, ids[0][:10], ids[1][:10], "--json", tmp_path / "found.json")
    assert (code, "is more robust" in " ".join(out.split())) == (0, True)
    written = (tmp_path / "found.json").read_text()
    code, out, _ = cli("compare", tmp_path, ids[0][:10], ids[1][:10], "--json", "-")
    assert out == written
    assert abs(json.loads(out)["whole"]["difference"]) == 0.03
    (file, *_) = (tmp_path / "verdicts").iterdir()
    file.unlink()
    code, _, err = cli("show", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert file.name in err


def test_show_refuses_what_no_board_can_be_of(
    tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    made, table = record()
    Store(tmp_path).add(made, table)
    code, _, err = cli("show", tmp_path, "--threat", "l3")
    assert (code, err.count("\n")) == (2, 1)
    assert "--threat: expected one of linf, l2, l1, l0, spatial, corruptions, patch, got 'l3'" in err
    assert cli("show", tmp_path, "--threat", "linf:8/none")[0] == 2
    assert "no records" in cli("show", tmp_path, "--threat", "l2")[1]
    assert cli("show", tmp_path, "--threat", "Linf:8/255")[0] == 0
    code, _, err = cli("show", tmp_path, "--format", "html")
    assert (code, "Value error" in err) == (2, False)
    assert "'html' is not one of 'terminal'" in err


def test_choose_filters_and_sorts_within_boards() -> None:
    made = [
        record(robust=50, name="a", wrong=20)[0], record(robust=40, name="b", wrong=5)[0],
        record(robust=60, name="c", trust="unreliable")[0], record(robust=45, name="d", suite="quick")[0],
    ]  # fmt: skip
    frame = leaderboard_frame(made)
    assert list(choose(frame, suite="standard")["model"]) == ["a", "b", "c"]
    assert list(choose(frame, suite="standard", sort="clean")["model"]) == ["b", "a", "c"]
    assert list(choose(frame, threat="linf:8/255", limit=1)["rank"].sort_index()) == ["1", "1-2"]
    for nothing in ({"threat": "linf:8/25"}, {"threat": "l2"}, {"data": "nowhere"}, {"trust": "suspect"}):
        assert choose(frame, **nothing).empty  # type: ignore[arg-type]
    assert list(choose(frame, trust="unreliable")["model"]) == ["c"]
    nothing = render(made, chosen=lambda rows: choose(rows, model="zzz"), width=80)
    assert nothing.startswith("no records fit")
    models = next(line for line in nothing.splitlines() if "model: " in line)
    assert {"a", "b", "c", "d"} == set(models.replace("model:", "").replace(";", "").split())
    assert "linf:8/255" in nothing
    assert max(map(len, nothing.splitlines())) <= 80


# -- references -------------------------------------------------------------------------------------


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "entries.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    return path


def test_every_entry_comes_in_and_what_is_odd_is_said(lines: Path) -> None:
    found = read_robustbench(lines)
    assert [(ref.dataset, ref.norm, ref.name) for ref in found.references] == [
        (row["dataset_dir"], row["threat"].lower(), row["id"]) for row in ROWS
    ]
    assert [ref.raw for ref in found.references] == ROWS
    first, second, third, masked, fog, rain, bare = found.references
    assert (first.clean, first.robust, first.ranked_by) == (0.901, 0.613, "external")
    assert first.scores == {"external": 0.613, "autoattack": 0.702, "reported": 0.705}
    assert (first.eps, first.radius, first.notes) == ("8/255", 8 / 255, [])
    assert (second.clean, second.robust, second.ranked_by, second.url) == (0.88, 0.65, "autoattack", None)
    assert third.notes == ["ranked by the authors' own figure"]
    assert (masked.radius, masked.unreliable) == (0.031, True)
    assert (fog.robust, fog.ranked_by, fog.eps, len(fog.notes)) == (0.505, "corruptions", None, 2)
    assert (rain.clean, rain.robust, rain.ranked_by) == (None, None, None)
    assert (bare.eps, bare.notes) == (None, ["no eps"])
    assert found.oddities["reported is no percentage"] == 3


def test_references_are_ranked_by_score_within_norm_eps_and_data_set(lines: Path) -> None:
    frame = leaderboard_frame([record()[0]], references=read_robustbench(lines).references)
    assert frame["board"].nunique() == 1 + 4
    mine = frame[frame["board"].str.startswith("linf:8/255, cifar10")]
    assert list(zip(mine["model"], mine["rank"], mine["trust"], strict=True)) == [
        ("Second", "1-2", "unknown"), ("Third", "1-2", "unknown"), ("First", "3", "unknown"),
    ]  # fmt: skip
    assert list(frame[frame["model"] == "Masked"]["rank"]) == ["-"]
    assert list(frame[frame["model"] == "Rain"]["rank"]) == ["-"]
    text = render([record()[0]], references=read_robustbench(lines).references)
    assert max(map(len, text.splitlines())) <= 80
    assert "reported by RobustBench, not measured here" in text
    assert "nan" not in text
    assert "NaN" not in render([], "json", references=read_robustbench(lines).references)


def test_the_folder_layout_says_the_same(lines: Path, tmp_path: Path) -> None:
    for row in ROWS:
        folder = tmp_path / "clone" / "model_info" / row["dataset_dir"] / row["threat"]
        folder.mkdir(parents=True, exist_ok=True)
        bare = {key: value for key, value in row.items() if key not in ("dataset_dir", "threat", "id")}
        (folder / f"{row['id']}.json").write_text(json.dumps(bare))
    inside = read_robustbench(tmp_path / "clone").references
    assert {ref.id for ref in inside} == {ref.id for ref in read_robustbench(lines).references}


def test_lines_end_where_json_says_and_a_byte_order_mark_is_none_of_it(tmp_path: Path) -> None:
    entry = json.dumps({**ROWS[0], "name": "One\u2028title\x85"}, ensure_ascii=False)
    (tmp_path / "entries.jsonl").write_bytes(f"\ufeff{entry}\r\n".encode())
    (found,) = read_robustbench(tmp_path / "entries.jsonl").references
    assert found.title == "One\u2028title\x85"


def test_a_folder_of_other_files_is_no_model_info(
    lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., tuple[int, str, str]]
) -> None:
    board, place = tmp_path / "board", tmp_path / "cifar10" / "Linf"
    assert cli("import", "robustbench", lines, "--out", board)[0] == 0
    code, _, err = cli("import", "robustbench", board, "--out", tmp_path / "other")
    assert (code, err.count("\n")) == (2, 1)
    assert ".json: no entry of RobustBench, which has one of autoattack_acc, clean_acc" in err
    place.mkdir(parents=True)
    (place / "Net.json").write_text('{"clean_acc": "90", "eps": "8/255"}')
    monkeypatch.chdir(place)
    (found,) = read_robustbench(".").references
    assert (found.dataset, found.norm, found.name) == ("cifar10", "linf", "Net")


def test_what_is_noted_stays_in_its_line(tmp_path: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "odd.jsonl").write_text(json.dumps({**ROWS[0], "threat": "a\n\x1b[31mb"}))
    _, out, _ = cli("import", "robustbench", tmp_path / "odd.jsonl", "--out", tmp_path / "board")
    assert "1 with a note: eps means nothing under a [31mb" in " ".join(out.split())
    assert "\x1b" not in out


def test_import_twice_files_once_and_survives_the_store(
    lines: Path, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    board = tmp_path / "board"
    code, out, _ = cli("import", "robustbench", lines, "--out", board)
    assert (code, out.splitlines()[0]) == (0, f"7 entries filed in {board}")
    assert "1 with a note: filed under another data set" in out
    cli("import", "robustbench", lines, "--out", board)
    back = Store(board).references()
    assert {ref.id for ref in back} == {ref.id for ref in read_robustbench(lines).references}
    assert cli("show", board)[0] == 0
    path = board / "references" / f"{back[0].id}.json"
    path.write_text(path.read_text().replace(back[0].name, "Better"))
    with pytest.raises(StoreError, match="altered"):
        Store(board).references()
    path.write_text(back[0].dumps().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(StoreError, match="upgrade"):
        Store(board).references()


def test_an_amended_entry_takes_the_place_of_what_it_said_before(
    lines: Path, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    board = tmp_path / "board"
    cli("import", "robustbench", lines, "--out", board)
    amended = [{**ROWS[0], "external": "55.5"}, {**ROWS[0], "id": "Another"}]
    lines.write_text("\n".join(json.dumps(row) for row in amended))
    _, out, _ = cli("import", "robustbench", lines, "--out", board)
    assert out.splitlines()[:2] == [
        f"2 entries filed in {board}",
        "1 amended since: what they said before is gone",
    ]
    back = Store(board).references()
    assert len(back) == len(ROWS) + 1
    (first,) = [ref for ref in back if ref.key == ("RobustBench", "cifar10", "linf", ROWS[0]["id"])]
    assert first.robust == 0.555
    assert "amended since" not in cli("import", "robustbench", lines, "--out", board)[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no entries"), ("{}", "line 1: expected text under dataset_dir"), ("[1]", "expected an object"),
        ('{"dataset_dir": "a"', "not JSON"), (json.dumps({**ROWS[0], "id": 7}), "under id"),
        (json.dumps({**ROWS[0], "id": "x" * 10_000_000}), "line 1: name: String should have at most 300"),
        (f"{json.dumps(ROWS[0])}\n{json.dumps({**ROWS[0], 'clean_acc': '1'})}", "comes twice"),
        (json.dumps({**ROWS[0], "id": " "}), "under id"),
        (json.dumps({**ROWS[0], "clean_acc": float("nan")}), "line 1: not JSON: NaN is no number of JSON; leave the key"),
    ],
)  # fmt: skip
def test_bad_entries_are_refused_whole(
    text: str, message: str, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "bad.jsonl").write_text(text)
    code, _, err = cli("import", "robustbench", tmp_path / "bad.jsonl", "--out", tmp_path / "board")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert len(err) < 1000
    assert not (tmp_path / "board").exists()


def test_the_same_entry_twice_is_counted(tmp_path: Path) -> None:
    (tmp_path / "twice.jsonl").write_text(f"{json.dumps(ROWS[0])}\n" * 2)
    found = read_robustbench(tmp_path / "twice.jsonl")
    assert (len(found.references), found.repeated) == (1, 1)


def test_the_schema_describes_a_record(cli: Callable[..., tuple[int, str, str]]) -> None:
    schema = json.loads(cli("schema")[1])
    assert schema["properties"]["schema_version"]["const"] == 2
    content = record()[0].model_dump(mode="json")
    assert set(content) == set(schema["properties"])
    assert set(schema["required"]) <= set(content)
    assert Reference.model_json_schema()["properties"]["raw"]
