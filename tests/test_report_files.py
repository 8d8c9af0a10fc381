"""Reports on disk: saved whole or not at all, read only if they are of one run."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import evaluate
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from robust.errors import InputError, StoreError
from robust.report import Report

Digits = tuple[Tensor, Tensor]


def test_examples_that_cannot_be_written_are_an_error_of_the_report(
    net: nn.Module, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: No space left on device")

    report = evaluate(net, digits, suite="quick", keep_examples=True)
    evaluate(net, (digits[0][:5], digits[1][:5]), suite="fgsm").save(tmp_path / "out")
    monkeypatch.setattr("robust.report.save_file", full)
    with pytest.raises(StoreError, match="No space left"):
        report.save(tmp_path / "out")
    assert Report.load(tmp_path / "out").n == 5  # the one that was there
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_report_saved_over_another_leaves_no_examples_of_it(
    tmp_path: Path, net: nn.Module, digits: Digits
) -> None:
    evaluate(net, digits, suite="fgsm", keep_examples=True).save(tmp_path)
    assert Report.load(tmp_path).examples is not None
    few = evaluate(net, (digits[0][:5], digits[1][:5]), suite="fgsm")
    few.save(tmp_path)
    assert Report.load(tmp_path).examples is None


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_report_cut_off_over_another_is_no_mixture_of_the_two(
    after: int, tmp_path: Path, net: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(net, digits, suite="fgsm", keep_examples=True).save(tmp_path)
    other = evaluate(net, digits, suite="quick", keep_examples=True)
    whole, calls = Path.replace, []

    def cut(self: Path, target: Path) -> Path:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(target)
        return whole(self, target)

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        other.save(tmp_path)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="cannot read"):
        Report.load(tmp_path)
    assert not list(tmp_path.glob(".*"))
    assert Report.load(other.save(tmp_path)).suite == "quick"


def test_others_may_read_a_report_as_the_umask_says(tmp_path: Path, net: nn.Module, digits: Digits) -> None:
    evaluate(net, digits, suite="fgsm", keep_examples=True).save(tmp_path / "out")
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in [tmp_path / "plain", *(tmp_path / "out").iterdir()]}
    assert len(modes) == 1
    assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("report.json", "[]", "list"),
        ("report.json", "null", "NoneType"),
        ("examples.safetensors", "x" * 20, "cannot read"),
    ],
)
def test_a_damaged_report_is_told_in_one_line(
    file: str, text: str, said: str, tmp_path: Path, net: nn.Module, digits: Digits
) -> None:
    evaluate(net, digits, suite="fgsm", keep_examples=True).save(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(StoreError, match=said):
        Report.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("threat", None, "report.json: threat: is missing"),
        ("attacks", None, "report.json: attacks: is missing"),
        (
            "threat",
            {"norm": "linf", "eps": "0.1", "bounds": [0]},
            r"threat.bounds: expected two numbers, got \[0\]",
        ),
        ("threat", {"norm": "l7", "eps": "0.1", "bounds": [0, 1]}, "threat norm"),
        ("threat", 3, "threat: expected an object, got 3"),
    ],
)
def test_a_report_that_lacks_something_is_told_in_one_line(
    key: str, value: object, said: str, tmp_path: Path, net: nn.Module, digits: Digits
) -> None:
    evaluate(net, digits, suite="fgsm").save(tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    content.pop(key)
    content |= {} if value is None else {key: value}
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match=f"cannot read .*{said}.*; expected a folder"):
        Report.load(tmp_path)


@pytest.mark.parametrize("file", ["verdicts.parquet", "examples.safetensors"])
def test_files_of_a_report_without_sample_ids_are_told_in_one_line(
    file: str, tmp_path: Path, net: nn.Module, digits: Digits
) -> None:
    evaluate(net, digits, suite="fgsm", keep_examples=True).save(tmp_path)
    if file == "verdicts.parquet":
        pd.DataFrame({"label": [1]}).to_parquet(tmp_path / file)
    else:
        save_file({"x_adv": torch.zeros(1)}, tmp_path / file)
    with pytest.raises(StoreError, match=r"cannot read .*KeyError: 'sample_id'"):
        Report.load(tmp_path)


def test_a_folder_may_be_named_by_a_threat(
    net: nn.Module, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = evaluate(net, digits, suite="quick")
    monkeypatch.chdir(tmp_path)
    assert Report.load(report.save("run-linf:0.1")).statuses == report.statuses


def test_examples_of_another_run_are_refused(tmp_path: Path, net: nn.Module, digits: Digits) -> None:
    evaluate(net, digits, suite="fgsm", keep_examples=True).save(tmp_path)
    kept = (tmp_path / "examples.safetensors").read_bytes()
    evaluate(net, (digits[0][:2], digits[1][:2]), suite="fgsm").save(tmp_path)
    (tmp_path / "examples.safetensors").write_bytes(kept)
    with pytest.raises(StoreError, match="another run"):
        Report.load(tmp_path)


def test_a_report_is_read_from_a_path() -> None:
    with pytest.raises(InputError, match="report: expected the path of a folder, got 3"):
        Report.load(3)  # type: ignore[arg-type]
