"""The gate on models whose robust accuracy is known; its evidence; comparison with baselines."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from toy import EPS, Threshold, samples

import robust
from robust.attacks import Attack
from robust.errors import DataError, InputError, ModelError, StoreError
from robust.gate.baseline import Baseline, compare
from robust.gate.check import GateResult, check, evaluate_some
from robust.gate.evidence import keep, message, worst
from robust.gate.portions import shuffled
from robust.leaderboard.record import Record
from robust.oracle import Oracle
from robust.report import Report
from robust.sources import as_samples


def gate(model: object, data: object, **options: Any) -> GateResult:
    options = {"threat": EPS, "at_least": 0.45, "device": "cpu", **options}
    return check(model, data, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("accuracy", "outcome", "most"), [(0.0, "fail", 20), (0.2, "fail", 100), (0.8, "pass", 100)]
)
def test_clear_cases_are_decided_with_few_samples(accuracy: float, outcome: str, most: int) -> None:
    result = gate(Threshold(), samples(1000, accuracy))
    assert result.outcome == outcome
    assert result.report.n <= most
    assert result.report.trust == "trusted", result.report.findings
    low, high = result.interval
    assert low <= accuracy <= high
    if outcome == "fail":
        assert not result.complete or not result.report.statuses["survived"]
    else:
        assert result.complete
        assert low >= 0.45


def test_a_bad_model_fails_before_the_costly_attacks() -> None:
    result = gate(Threshold(), samples(1000, 0.2), at_least=0.6)
    assert result.outcome == "fail"
    assert not result.complete
    last = gate(Threshold(), samples(1000, 0.7), at_least=0.6, gate="fixed", max_samples=100)
    assert 0 < len(result.report.attacks) < len(last.report.attacks)
    assert result.report.suite == "standard (stopped)"
    assert result.report.stopped
    with pytest.raises(InputError, match="stopped this suite early"):
        Baseline.of(result.report)
    with pytest.raises(InputError, match="which a gate stopped early"):
        Record.from_report(result.report, name="x", defense={"name": "none", "parameters": {}})


def test_a_whole_gate_tells_a_short_search() -> None:
    result = gate(Threshold(), samples(100, 0.9), at_least=0.5, suite="fgsm", gate="fixed")
    assert result.complete
    assert "short-search" in {finding["check"] for finding in result.report.findings}


def test_portions_find_what_one_run_finds(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """Many looks, then the verdicts of one evaluation of the same samples."""
    # Of one size for all: sums of other batches are rounded otherwise, and a break may come a step sooner.
    options: dict[str, Any] = {"threat": "linf:0.06", "device": "cpu", "batch_size": 16}
    accuracy = robust.evaluate(net, digits, **options).robust_accuracy
    assert 0.1 < accuracy < 0.9
    result = gate(net, digits, at_least=accuracy, confidence=0.9999, **options)
    assert result.outcome == "pass"
    assert result.report.n > 40  # several looks
    plain = robust.evaluate(net, result.samples.take(result.samples.ids.argsort()), **options)
    table, expected = result.report.verdicts, plain.verdicts
    assert table["sample_id"].tolist() == expected["sample_id"].tolist()
    assert table["status"].tolist() == expected["status"].tolist()
    assert table["attack"].tolist() == expected["attack"].tolist()
    assert [e["broke"] for e in result.report.attacks] == [e["broke"] for e in plain.attacks]
    assert int(table["forwards"].sum()) == int(expected["forwards"].sum())


def test_the_order_depends_on_seed_and_ids_alone() -> None:
    data = as_samples(samples(50, 0.5))
    order = shuffled(data, 3).ids.tolist()
    assert order == shuffled(data.take(torch.arange(50).flip(0)), 3).ids.tolist()
    assert order != shuffled(data, 4).ids.tolist()
    assert sorted(order) == list(range(50))


def test_all_samples_seen_decide_the_narrowest_case() -> None:
    data = samples(40, 0.5)
    assert gate(Threshold(), data, at_least=0.5).outcome == "pass"
    assert gate(Threshold(), data, at_least=0.51).outcome == "fail"
    undecided = gate(Threshold(), data, at_least=0.5, max_samples=25)
    assert undecided.outcome == "undecided"
    assert undecided.report.n == 25


def test_fixed_and_interval_gates() -> None:
    data = samples(200, 0.5)
    options = {"suite": "quick", "max_samples": 200}
    assert gate(Threshold(), data, gate="fixed", at_least=0.5, **options).outcome == "pass"
    assert gate(Threshold(), data, gate="fixed", at_least=0.505, **options).outcome == "fail"
    outcomes = {
        theta: gate(Threshold(), data, gate="interval", at_least=theta, **options).outcome
        for theta in (0.42, 0.45, 0.55, 0.58)
    }
    assert outcomes == {0.42: "pass", 0.45: "undecided", 0.55: "undecided", 0.58: "fail"}


def test_wrong_labels_count_against_the_model() -> None:
    result = gate(Threshold(), samples(100, 1.0, wrong=0.6), suite="quick")
    assert result.outcome == "fail"
    assert result.report.statuses["misclassified"] > 0
    assert "no attack broke a sample" in message(result, replay="x")


class Rounding(Threshold):
    """Hides its gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * 8).round() / 8)


def test_a_pass_that_is_not_to_be_trusted_is_undecided() -> None:
    result = gate(Rounding(), samples(200, 1.0), suite="quick")
    assert result.outcome == "undecided"
    assert result.report.trust == "unreliable"
    assert "unreliable (zero-gradient" in result.reason
    assert gate(Rounding(), samples(200, 1.0), suite="quick", require_trust=False).outcome == "pass"


class Drifting(Threshold):
    """Moves its boundary a little every sixty times that it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        return super().forward(x - 0.05 * (self.asked // 60))


def test_a_model_that_changes_while_it_is_attacked_passes_no_gate() -> None:
    result = gate(Drifting(), samples(200, 1.0))
    assert [finding["check"] for finding in result.report.findings] == ["stateful"]
    assert result.outcome == "undecided"


class Poisoned(Threshold):
    """NaN for some samples."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.flatten(1)[:, :1] > 0.7, torch.nan, super().forward(x))


def test_errors_never_pass_but_may_fail() -> None:
    result = gate(Poisoned(), samples(100, 1.0))
    assert result.outcome == "error"
    assert result.errors > 0
    assert "ended in an error" in result.reason
    assert gate(Poisoned(), samples(100, 0.1)).outcome == "fail"


def test_assert_robust_raises_the_evidence() -> None:
    data = samples(300, 0.2)
    report = robust.assert_robust(Threshold(), data, threat="linf:0.01", at_least=0.9, device="cpu")
    assert report.trust == "trusted"
    with pytest.raises(
        AssertionError, match=r"robust\.assert_robust\(model, data, threat='linf:0.1'"
    ) as raised:
        robust.assert_robust(Threshold(), data, threat=EPS, at_least=0.9, device="cpu")
    assert raised.traceback[-1].ishidden(None)  # pytest shows the caller's line and the evidence alone
    with pytest.raises(AssertionError, match=r"^undecided"):
        robust.assert_robust(Threshold(), data, threat=EPS, at_least=0.2, max_samples=20, device="cpu")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"at_least": 0}, InputError, "at_least: expected a fraction"),
        ({"at_least": 45}, InputError, "at_least: expected a fraction"),
        ({"at_least": True}, InputError, "at_least: expected a fraction"),
        ({"confidence": 95}, InputError, "confidence: expected a fraction"),
        ({"max_samples": 0}, InputError, "max_samples: expected a positive"),
        ({"max_samples": 101}, DataError, "101 asked for, but the data has 100"),
        ({"gate": "bayes"}, InputError, "gate: expected one of sequential, fixed, interval"),
        ({"precision": "int4"}, InputError, "precision"),
        ({"batch_size": 0}, InputError, "batch_size"),
        ({"model": Threshold().to("meta")}, ModelError, "meta device"),
        ({"model": "resnet"}, ModelError, "torch.nn.Module"),
        ({"suite": "standrad"}, InputError, "did you mean 'standard'"),
    ],
    ids=str,
)
def test_bad_input_is_named(options: dict[str, Any], error: type[Exception], text: str) -> None:
    model = options.pop("model", Threshold())
    with pytest.raises(error, match=text):
        gate(model, samples(100, 0.5), **options)


# -- evidence -----------------------------------------------------------------------------------------


def test_the_message_has_everything() -> None:
    result = gate(Threshold(), samples(500, 0.25))
    text = message(result, replay="pytest here", kept="/some/where")
    report = result.report
    for part in (
        "fail: robust accuracy is below 45.0%",
        f"at most {report.robust_accuracy:.1%} [0.0%, {result.interval[1]:.1%}] under linf:0.1",
        f"{report.n} of 500 samples used",
        f"broke most: {report.attacks[0]['label']} ({report.attacks[0]['broke']} of",
        "trust: trusted",
        "seed 0",
        "evidence: /some/where",
        "replay: pytest here",
    ):
        assert part in text
    assert text.count("\n  sample ") == 3
    assert max(map(len, text.splitlines())) <= 80
    rows = worst(report, 100)
    assert [row["margin"] for row in rows] == sorted((row["margin"] for row in rows), reverse=True)


def test_the_worst_samples_go_by_the_names_of_their_classes() -> None:
    named = replace(as_samples(samples(500, 0.25)), class_names=("low", "high"))
    text = message(gate(Threshold(), named), replay="pytest here")
    assert len(re.findall(r"label (low taken for high|high taken for low) by", text)) == 3


def test_evidence_on_disk(tmp_path: Path) -> None:
    result = gate(Threshold(), samples(500, 0.25))
    keep(result.report, result.samples, tmp_path / "e")
    tensors = load_file(tmp_path / "e" / "examples.safetensors")
    assert len(tensors["x"]) == len(tensors["x_adv"]) == result.report.statuses["broken"]
    moved = (tensors["x_adv"] - tensors["x"]).flatten(1).abs().amax(1)
    assert (moved <= 0.1 + 1e-6).all()
    clean, fooled = Threshold()(tensors["x"]).argmax(1), Threshold()(tensors["x_adv"]).argmax(1)
    assert (clean != fooled).all()
    assert tensors["sample_id"][:3].tolist() == [row["sample_id"] for row in worst(result.report)]
    assert Report.load(tmp_path / "e").robust_accuracy == result.report.robust_accuracy


def test_the_picture_shows_three_columns(tmp_path: Path) -> None:
    from PIL import Image

    pytest.importorskip("matplotlib")
    result = gate(Threshold(), samples(500, 0.25))
    with Image.open(keep(result.report, result.samples, tmp_path) / "panel.png") as image:
        assert image.width == 630
        assert image.height > image.width


def test_without_matplotlib_the_tensors_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = gate(Threshold(), samples(500, 0.25))
    keep(result.report, result.samples, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"report.json", "verdicts.parquet", "examples.safetensors"}


# -- baselines ----------------------------------------------------------------------------------------


def measure(model: nn.Module, data: object, **options: Any) -> Report:
    return evaluate_some(model, data, **{"threat": EPS, "suite": "quick", "device": "cpu", **options})


def test_a_baseline_survives_the_disk(tmp_path: Path) -> None:
    report = measure(Threshold(), samples(60, 0.5), max_samples=40)
    baseline = Baseline.of(report)
    baseline.save(tmp_path / "b" / "x.json")
    assert Baseline.load(tmp_path / "b" / "x.json") == baseline
    assert baseline.n == 40 == sum(map(len, baseline.verdicts.values()))
    assert baseline.model["sha256"] == report.model["sha256"]
    found = compare(report, baseline)
    assert (found.outcome, found.n, found.p, found.same_model) == ("pass", 40, 1.0, True)


def test_lost_and_won_samples_are_told() -> None:
    """At .72 the upper class, .8 or .55, is near or wrong; the lower one, .2 or .45, is far."""
    data = samples(100, 0.5)
    before, after = measure(Threshold(0.5), data), measure(Threshold(0.72), data)
    found = compare(after, Baseline.of(before))
    then = before.verdicts["status"] == "survived"
    now = after.verdicts["status"] == "survived"
    assert found.lost == after.verdicts["sample_id"][then & ~now].tolist() != []
    assert found.won == after.verdicts["sample_id"][~then & now].tolist() != []
    assert found.before - found.after == pytest.approx(found.drop)
    assert not found.same_model


def shifted(report: Report, lost: int, won: int = 0) -> Report:
    """The report with other verdicts for the first survivors and the first broken."""
    table = report.verdicts.copy()
    for status, other, count in (("survived", "broken", lost), ("broken", "survived", won)):
        rows = report.verdicts.index[report.verdicts["status"] == status][:count]
        table.loc[rows, "status"] = other
    return Report(**{**vars(report), "verdicts": table})


@pytest.mark.parametrize(
    ("lost", "won", "max_drop", "outcome"),
    [
        (0, 0, 0.0, "pass"),
        (3, 3, 0.0, "pass"),
        (0, 9, 0.0, "pass"),
        (5, 0, 0.0, "undecided"),  # p = 2/32
        (6, 0, 0.0, "fail"),  # p = 2/64
        (6, 0, 0.06, "pass"),
        (6, 0, 0.05, "fail"),
        (10, 2, 0.0, "fail"),  # p = 158/4096
        (9, 3, 0.0, "undecided"),
    ],
)
def test_regressions_are_paired(lost: int, won: int, max_drop: float, outcome: str) -> None:
    report = measure(Threshold(), samples(100, 0.5))
    found = compare(shifted(report, lost, won), Baseline.of(report), max_drop=max_drop)
    assert found.outcome == outcome
    assert (len(found.lost), len(found.won)) == (lost, won)
    assert any("same model" in line or "weights are those" in line for line in found.lines()) == (
        lost > 0 or won > 0
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"threat": "linf:0.2"}, r"other threat \(linf:0.1 .* linf:0.2"),
        ({"suite": "standard"}, r"other suite \(quick there, standard here"),
        ({"seed": 1}, r"other seed \(0 there, 1 here"),
        ({"data": samples(100, 0.6)}, r"other data \(sha256 \w{12} there, sha256 \w{12} here"),
    ],
)
def test_unlike_baselines_are_refused(change: dict[str, Any], text: str) -> None:
    options = {"data": samples(100, 0.5), **change}
    other = measure(Threshold(), options.pop("data"), **options)
    baseline = Baseline.of(measure(Threshold(), samples(100, 0.5)))
    with pytest.raises(InputError, match=text):
        compare(other, baseline, name="b.json")


def test_a_changed_suite_is_refused() -> None:
    report = measure(Threshold(), samples(100, 0.5))
    baseline = Baseline.of(report)
    baseline.attacks[0]["parameters"] = {"steps": 1}
    with pytest.raises(InputError, match="other attacks of the suite"):
        compare(report, baseline)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file; write it with --robust-update-baseline"),
        ("{", "cannot be read"),
        ("[]", "damaged at the file"),
        ('{"schema_version": 1}', "damaged at robust_accuracy"),
        ('{"schema_version": 99}', "schema version 99"),
    ],
)
def test_bad_baseline_files_are_named(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "b.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StoreError, match=said):
        Baseline.load(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw["verdicts"]["survived"].pop(), "99 samples in 99 places, expected 100"),
        (lambda raw: raw["verdicts"]["broken"].append(raw["verdicts"]["survived"][0]), "100 samples in 101"),
        (lambda raw: raw["verdicts"].update(lost=[]), "got 'lost'"),
        (lambda raw: raw.update(robust_accuracy=0.1), "50 of 100 survived, got 0.1"),
        (lambda raw: raw.update(robust_accuracy=float("nan")), "50 of 100 survived, got nan"),
    ],
)
def test_a_baseline_that_lacks_samples_is_damaged(tmp_path: Path, change: Any, said: str) -> None:
    """Survivors that are not in the list cannot be lost: less of a baseline would let more pass."""
    Baseline.of(measure(Threshold(), samples(100, 0.5))).save(tmp_path / "b.json")
    raw = json.loads((tmp_path / "b.json").read_text())
    change(raw)
    (tmp_path / "b.json").write_text(json.dumps(raw))
    with pytest.raises(StoreError, match=said):
        Baseline.load(tmp_path / "b.json")


def test_other_draws_are_not_like_with_like() -> None:
    model, data = Threshold(), samples(100, 0.5)
    baseline = Baseline.of(measure(model, data))
    with pytest.raises(InputError, match="other draws \\(one each there, 2 each by expectation here\\)"):
        compare(measure(model, data, eot=2), baseline)


def test_a_baseline_needs_clean_verdicts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ended in an error"):
        Baseline.of(measure(Poisoned(), samples(100, 1.0)))
    good = measure(Threshold(), samples(100, 0.5))
    assert compare(measure(Poisoned(), samples(100, 0.5)), Baseline.of(good)).outcome == "error"
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Baseline.of(good).save(tmp_path / "file" / "b.json")
    with pytest.raises(InputError, match="max_drop"):
        compare(good, Baseline.of(good), max_drop=2)
    with pytest.raises(InputError, match="confidence"):
        compare(good, Baseline.of(good), confidence=2)


def test_what_is_not_to_be_trusted_neither_holds_nor_is_held_against(tmp_path: Path) -> None:
    masked = measure(Rounding(), samples(100, 1.0))
    assert masked.trust == "unreliable"
    found = compare(masked, Baseline.of(measure(Threshold(), samples(100, 1.0))))
    assert found.outcome == "undecided"
    assert "unreliable (zero-gradient" in found.reason
    with pytest.raises(InputError, match="unreliable"):
        Baseline.of(masked)


def test_baseline_files_read_well(tmp_path: Path) -> None:
    Baseline.of(measure(Threshold(), samples(100, 0.5))).save(tmp_path / "b.json")
    text = (tmp_path / "b.json").read_text()
    assert list(json.loads(text)["verdicts"]) == ["misclassified", "broken", "survived"]
    assert len(text.splitlines()) < 25


def test_ctrl_c_in_an_attack_ends_the_gate() -> None:
    class Impatient(Attack):
        name, norms, access, paper = "impatient", ("linf",), "score", ""

        def run(self, oracle: Oracle) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(Threshold(), samples(50, 1.0), threat=EPS, suite=Impatient(), at_least=0.5)
