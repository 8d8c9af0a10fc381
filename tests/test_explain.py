"""Pictures: drawn from a real evaluation, deterministic in what they show, clear where they cannot be."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import robust
from robust.errors import InputError, MissingDependencyError
from robust.report import Report
from robust.sources import Samples, as_samples
from robust.target import Target

pytest.importorskip("matplotlib")


@pytest.fixture
def evaluated(net: nn.Module, digits: tuple[Tensor, Tensor]) -> tuple[Report, Target, Samples]:
    samples = as_samples(digits, bounds=(0.0, 1.0))
    target = Target(net, device="cpu")
    return (
        robust.evaluate(target, samples, threat="linf:0.15", suite="quick", keep_examples=True),
        target,
        samples,
    )


def test_a_report_draws_all_its_pictures(evaluated: tuple[Report, Target, Samples], tmp_path: Path) -> None:
    report, target, samples = evaluated
    files = report.plot(tmp_path, target=target, samples=samples)
    names = ["passes", "classes", "confusion", "panels", "losses"]
    assert [file.name for file in files] == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    assert all(file.stat().st_size > 1000 for file in files)
    assert (tmp_path / "passes.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "losses.svg").read_text()


def test_no_steps_are_drawn_where_there_is_no_ascent(
    net: nn.Module, digits: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    target = Target(net, device="cpu")
    report = robust.evaluate(target, digits, threat="spatial:10", keep_examples=True)
    files = report.plot(tmp_path, target=target, samples=digits)
    assert "losses.png" not in {file.name for file in files}


def test_without_data_what_can_be_drawn_is_drawn(
    evaluated: tuple[Report, Target, Samples], tmp_path: Path
) -> None:
    report, _, _ = evaluated
    report.save(tmp_path / "report")
    files = Report.load(tmp_path / "report").plot(tmp_path / "pictures")
    assert {file.stem for file in files} == {"passes", "classes", "confusion"}


def test_the_numbers_in_the_pictures_are_the_reports(evaluated: tuple[Report, Target, Samples]) -> None:
    from robust import explain

    report, _, _ = evaluated
    shown = [text.get_text() for text in explain.passes(report).axes[0].texts]
    attacks = [entry for entry in report.attacks if entry["attacked"]]
    assert shown == [f"broke {entry['broke']} of {entry['attacked']}" for entry in attacks]
    cells = [int(text.get_text()) for text in explain.confusion(report).axes[0].texts]
    assert sum(cells) == report.n  # none ended in an error
    bars = [patch.get_height() for patch in explain.classes(report).axes[0].patches]  # type: ignore[attr-defined]
    table = report.verdicts.groupby("label")
    assert bars[len(table) :] == pytest.approx(
        (table.status.apply(lambda s: (s == "survived").mean())).tolist()
    )


def test_samples_in_error_stand_in_no_cell(evaluated: tuple[Report, Target, Samples]) -> None:
    from robust import explain

    report, _, _ = evaluated
    table = report.verdicts.copy()
    standing = table.index[table.status == "survived"][:2]
    table.loc[standing, "status"] = "error"
    cells = explain.confusion(replace(report, verdicts=table)).axes[0].texts
    assert sum(int(text.get_text()) for text in cells) == report.n - len(standing) < report.n


def test_classes_go_by_their_names_in_every_picture(
    evaluated: tuple[Report, Target, Samples],
) -> None:
    from robust import explain

    _, target, samples = evaluated
    names = tuple(f"digit {label}" for label in range(10))
    named = replace(samples, class_names=names)
    report = robust.evaluate(target, named, threat="linf:0.15", suite="quick", keep_examples=True)
    first = report.verdicts[report.verdicts.status == "broken"].sort_values("distance").iloc[0]
    titles = [axes.get_title() for axes in explain.panels(report, named, target).axes[:3]]
    assert titles[0].startswith(f"{names[first.label]}, ")
    assert titles[2].startswith(f"{names[first.prediction_adv]}, ")
    axes = explain.confusion(report).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == list(names)
    assert [text.get_text() for text in axes.get_yticklabels()] == list(names)


def test_confusion_shows_the_classes_that_occur(evaluated: tuple[Report, Target, Samples]) -> None:
    from robust import explain

    report, _, _ = evaluated
    table = report.verdicts.copy()
    for column in ("label", "prediction", "prediction_adv"):
        table[column] = table[column].where(table[column] < 0, table[column] * 100)  # a few of 1,000 classes
    axes = explain.confusion(replace(report, verdicts=table)).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [str(100 * label) for label in range(10)]
    assert sum(int(text.get_text()) for text in axes.texts) == report.n


def test_a_confusion_of_many_classes_is_no_poster(evaluated: tuple[Report, Target, Samples]) -> None:
    from robust import explain

    report, _, _ = evaluated
    table = report.verdicts.copy()
    table["label"] = range(len(table))
    figure = explain.confusion(replace(report, verdicts=table))
    assert figure.get_figwidth() < 11
    assert not figure.axes[0].texts


def test_steps_are_whole_numbers(evaluated: tuple[Report, Target, Samples]) -> None:
    from robust import explain

    report, target, samples = evaluated
    wide = robust.evaluate(target, samples, threat="linf:1", suite="quick")  # all broken at the first step
    ticks = explain.losses(replace(report, threat=wide.threat), samples, target).axes[0].get_xticks()
    assert all(tick == int(tick) for tick in ticks)


@pytest.mark.parametrize("changed", ["y", "x"])
def test_other_data_under_the_same_ids_are_refused(
    evaluated: tuple[Report, Target, Samples], digits: tuple[Tensor, Tensor], changed: str, tmp_path: Path
) -> None:
    report, _, _ = evaluated
    x, y = digits
    other: Any = (x, y.roll(1)) if changed == "y" else (1 - x, y)
    with pytest.raises(InputError, match="samples: they are not those of the report"):
        report.plot(tmp_path, samples=other)


def test_a_model_that_is_no_target_is_refused(
    evaluated: tuple[Report, Target, Samples], net: nn.Module, tmp_path: Path
) -> None:
    report, _, samples = evaluated
    with pytest.raises(InputError, match=r"target: expected a robust\.Target.*got .*Target\(model"):
        report.plot(tmp_path, target=net, samples=samples)  # type: ignore[arg-type]


def test_what_cannot_be_drawn_is_said(
    evaluated: tuple[Report, Target, Samples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robust.explain import explain

    report, target, samples = evaluated
    with pytest.raises(InputError, match="formats: expected png, svg or pdf, got 'gif'"):
        explain(report, tmp_path, formats=["gif"])
    assert {file.suffix for file in explain(report, tmp_path, formats="png")} == {".png"}
    with pytest.raises(InputError, match="not those of the report"):
        explain(report, tmp_path, target=target, samples=samples.limit(5))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"robust-harness\[plots\]"):
        explain(report, tmp_path)
