"""Boards: who is ranked with whom, and how they are shown."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import CW, FGSM, MARGIN, PGD, make_record, make_report
from torch import Tensor, nn

from robust import evaluate
from robust.errors import InputError
from robust.leaderboard import (
    Record,
    compare,
    leaderboard_frame,
    render,
)
from robust.leaderboard.layout import short_heads
from robust.leaderboard.site.charts import attack_bars
from robust.leaderboard.site.pages import siblings
from robust.leaderboard.table import _in_order, choose
from robust.threat import Threat


def _frame(*records: Record) -> pd.DataFrame:
    return leaderboard_frame(records)


@pytest.mark.parametrize(
    "change",
    [
        {"threat": Threat("l2", "8/255")}, {"threat": Threat("linf", "16/510")},
        {"threat": Threat("linf", "8/255", (-1.0, 1.0))}, {"data": {"spec": "builtin:digits", "sha256": "ce" * 32}},
        {"data": {"spec": "builtin:digits", "sha256": "cd" * 31 + "ce"}},
        {"suite": "quick"}, {"cascade": True}, {"alone": {PGD: 40}}, {"minimize": True},
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


@pytest.mark.parametrize(
    ("selection", "boards"),
    [({"near": 1e-9}, 2), ({"near": 0.0}, 2), ({"near": None, "follows": False, "share": 0.0}, 1)],
)
def test_attacks_that_were_shown_others_part_boards(selection: dict[str, Any], boards: int) -> None:
    """Conditions that are not set choose nobody, and older records do not list them."""
    changed = make_report()
    for entry in changed.attacks:
        entry["selection"] = selection
    other = Record.from_report(changed, name="net", defense={"name": "none", "parameters": {}})
    assert _frame(make_record(), other)["board"].nunique() == boards
    assert len(siblings([make_record(), other])) == boards
    differs = compare(make_record(), other, changed.verdicts, changed.verdicts).differs
    assert differs == ["attacks"] * (boards - 1)


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


def test_rows_that_were_trained_otherwise_are_told_apart_by_the_options_of_the_training() -> None:
    records = [
        make_record(defense="none", options={"training options": {"epochs": epochs, "seed": 5}}, robust=r)
        for epochs, r in ((1, 30), (20, 50))
    ]
    frame = _frame(*records, make_record(defense="none", robust=20))
    assert list(frame["variant"]) == ["epochs=20", "epochs=1", ""]


def test_a_versioned_suite_of_many_words_is_named_by_its_version() -> None:
    many = {f"pgd(steps=20,loss=margin,restarts={k})": 40 for k in range(6)}
    record = make_record(suite="standard", suite_version=14, cascade=True, alone=many)
    frame = _frame(record, make_record(suite="standard++", alone=many))
    assert frame["board"][0].endswith("suite standard version 14, in turn")
    assert list(choose(frame, suite="standard")["board"]) == [frame["board"][0]]
    assert "restarts=5" in _frame(make_record(suite="ours", alone=many))["board"][0]


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
    finding = {"check": "=2+2", "severity": "suspect", "message": "m"}
    (row,) = csv.DictReader(io.StringIO(render([make_record(trust="suspect", findings=[finding])], "csv")))
    assert row["checks"] == "'=2+2"


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


def test_heads_tell_attacks_apart_by_short_lines() -> None:
    labels = [
        "pgd",
        "pgd(loss=margin)",
        "hop(steps=9,radii=(12, 8, 5.5, 1))",
        "hop(steps=9,radii=(2, 1),near=0.2)",
    ]
    assert short_heads(labels) == [
        "pgd",
        "pgd\nloss=\nmargin",
        "hop\nradii=\n(12..1)",
        "hop\nradii=\n(2..1)\nnear=\n0.2",
    ]
    assert short_heads(["cw(steps=9)", "fgsm"]) == ["cw", "fgsm"]
    assert short_heads(["hop(radii=(1,))", "hop(hops=2)"]) == ["hop\nradii=\n(1,)", "hop\nhops=\n2"]
    many = ["hop(a=1,b=2,c=3,d=4)", "fgsm", "hop(a=5,b=6,c=7,d=8)"]
    assert short_heads(many) == ["hop\n#1", "fgsm", "hop\n#2"]


def test_attacks_stand_in_the_order_of_every_board() -> None:
    merged = _in_order([["m7", "fab", "mifpe"], ["m10", "mifpe", "squares"], []])
    assert [name for name in merged if name in ("m7", "fab", "mifpe")] == ["m7", "fab", "mifpe"]
    assert [name for name in merged if name in ("m10", "mifpe", "squares")] == ["m10", "mifpe", "squares"]
    assert _in_order([["a", "b"], ["b", "a"]]) == ["a", "b"]


def test_heads_break_where_words_end_and_else_lose_the_end() -> None:
    labels = [
        "multitargeted",
        "basin-hopping(steps=14)",
        "lib:AutoGradient(loss=probability,eps=0.123456789)",
    ]
    assert short_heads(labels) == ["multita.", "basin-\nhopping", "lib:Auto\nGradient"]
    assert short_heads(labels, 14)[0] == "multitargeted"
    assert (
        short_heads(["a", "a(loss=probability,at=0.123456789)"])[1]
        == "a\nloss=\nprobabi.\nat=\n0.123456\n789"
    )


def test_a_terminal_too_narrow_gets_the_narrowest_table() -> None:
    assert render(DEMO, width=20) == render(DEMO, width=60)


def test_attacks_in_turn_that_saw_few_are_credited_with_all_that_stand(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    report = evaluate(net, digits, threat="linf:0.08", suite="standard", device="cpu")
    record = Record.from_report(report, name="net", defense={"name": "none", "parameters": {}})
    few = [attack for attack in record.attacks if 0 < attack.attacked < record.robust.k]
    assert few, "no stage chose its samples"
    assert record.standing == sorted(record.standing, reverse=True)
    assert record.standing[0] == record.attacks[0].survived
    assert record.standing[-1] == record.robust.k
    row = _frame(record).iloc[0]
    assert all(row[attack.label] >= record.robust.value for attack in few)
    assert f"broke {few[0].broke}" in attack_bars(record)
