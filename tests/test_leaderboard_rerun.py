"""Records against their models: those that draw at random, findings that were left out, runs again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome as Ended
from reports import DEFENSE, filed, lines, sealed
from torch import Tensor, nn

from robust import evaluate
from robust.attacks import make_attack
from robust.attacks.transfer import _load_once
from robust.diagnose import Finding, review, verdict
from robust.evaluation import Interrupted
from robust.gate.check import check
from robust.leaderboard import (
    Record,
    Store,
)
from robust.leaderboard.drawn import survived, weigh
from robust.leaderboard.outcome import Outcome
from robust.leaderboard.recount import check_review
from robust.report import Report
from robust.run import Progress
from robust.sources import load_data, save_weights


class Noisy(nn.Module):
    """Adds noise to its input, so that no answer need come again."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x + 0.4 * torch.randn_like(x))
        return out


def test_a_model_that_does_not_draw_excuses_nothing(net: nn.Module, tmp_path: Path) -> None:
    found = lines(filed(tmp_path, net, forge=True), net, rerun=40)
    assert found["rerun"].ok is False
    assert found["rerun"].message.endswith(
        "the record says that the model draws at random, and this model does not"
    )


def test_a_model_that_draws_excuses_rows_and_not_counts(net: nn.Module, tmp_path: Path) -> None:
    noisy = Noisy(net)
    torch.manual_seed(0)
    honest = lines(filed(tmp_path / "honest", noisy, examples=True), noisy, rerun=60)
    assert [outcome for outcome in honest.values() if outcome.ok is False] == []
    assert {honest[check].asked for check in ("clean", "fooled", "rerun")} == {True}
    assert "its draws explain this" in honest["rerun"].message
    forged = lines(filed(tmp_path / "forged", noisy, forge=True), noisy, rerun=60)
    assert forged["rerun"].ok is False
    assert "more than random draws explain" in forged["rerun"].message


def test_a_record_that_does_not_say_that_its_model_draws_is_held_to_its_rows(
    net: nn.Module, tmp_path: Path
) -> None:
    assert lines(filed(tmp_path, net), Noisy(net), rerun=60)["rerun"].ok is False


def test_findings_that_were_left_out_are_missed(net: nn.Module, tmp_path: Path) -> None:
    """Logits that are rounded have no gradient: the record of the forger says nothing of it."""

    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = net((x * 2).round() / 2)
            return out

    model = Rounded()
    store, name = Store.locate(filed(tmp_path / "honest", model))
    honest = store.read(name)
    assert honest.trust == "unreliable"
    forged = sealed(honest, findings=[], trust="trusted")
    Store(tmp_path / "forged").add(forged, store.verdicts_file(honest))
    found = lines(tmp_path / "forged" / "records" / f"{forged.id}.json", model)
    assert (found["trust"].ok, found["findings"].ok) == (True, False)
    assert "zero-gradient" in found["findings"].message
    assert lines(tmp_path / "honest" / "records" / name, model)["findings"].ok is True
    older = sealed(forged, environment={"robust": "0.0.1"})
    Store(tmp_path / "older").add(older, store.verdicts_file(honest))
    found = lines(tmp_path / "older" / "records" / f"{older.id}.json", model)
    assert (found["findings"].ok, found["findings"].asked) == (None, True)


class Rounded(nn.Module):
    """No gradient: random search sees more."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner((x * 4).round() / 4)
        return out


def reviewed(report: Report, **changes: Any) -> Outcome:
    record = Record.from_report(report, name="net", defense=DEFENSE)
    return check_review(sealed(record, **changes), report.verdicts)


DROPPED: dict[str, Any] = {"findings": [], "trust": "trusted"}


@pytest.mark.parametrize(
    ("suite", "options", "check"),
    [
        ("quick", {}, "short-search"),
        (["pgd", {"name": "square", "queries": 300}], {}, "black-box-wins"),
        ([{"name": "square", "queries": 100}], {}, "black-box-alone"),
        (["fgsm", "pgd"], {"cascade": False}, "single-step-wins"),
        (["pgd", {"name": "pgd", "loss": "margin"}], {"cascade": False}, "loss-gap"),
    ],
)
def test_findings_that_follow_from_the_record_are_missed(
    net: nn.Module, suite: Any, options: dict[str, Any], check: str
) -> None:
    samples = load_data("builtin:digits").limit(60)
    model = Rounded(net) if check == "black-box-wins" else net
    report = evaluate(model, samples, threat="linf:0.1", suite=suite, device="cpu", **options)
    if check in ("single-step-wins", "loss-gap"):  # as where gradients mislead
        weak = report.attacks[0 if check == "loss-gap" else 1]
        weak.update(broke=0, survived=weak["attacked"])
        report.findings += [
            vars(found) for found in review(report.attacks, report.clean_correct, cascade=False)
        ]
        report.trust = verdict([Finding(**found) for found in report.findings])
    assert check in {finding["check"] for finding in report.findings}
    assert reviewed(report).ok is True
    outcome = reviewed(report, **DROPPED)
    assert (outcome.ok, f"{check}: " in outcome.message) == (False, True)
    older = reviewed(report, environment={"robust": "0.0.1"}, **DROPPED)
    assert (older.ok, older.asked) == (None, True)
    one_left_out = [found for found in report.findings if found["check"] != check]
    trust = verdict([Finding(**found) for found in one_left_out])
    assert reviewed(report, findings=one_left_out, trust=trust).ok is False


def test_a_record_of_another_version_of_its_suite_is_not_held_to_todays_rules(net: nn.Module) -> None:
    samples = load_data("builtin:digits").limit(60)
    report = evaluate(net, samples, threat="linf:0.1", suite="quick", device="cpu")
    for version, said in ((1, "version 1"), (None, "no stated version")):
        report.suite_version = version
        outcome = reviewed(report, **DROPPED)
        assert (outcome.ok, outcome.asked) == (None, True)
        assert f"with {said} of its suite" in outcome.message


@pytest.mark.parametrize(
    ("suite", "threat", "options"),
    [
        ("quick", "linf:0.05", {"minimize": True}),
        ("standard", "linf:0.1", {"minimize": True}),
        ("standard", "l0:4", {}),
        ("standard", "spatial:10", {}),
        ("quick", "l2:0.5", {"cascade": False}),
        ("quick", "linf:0.05", {"eot": 2}),
        ([{"name": "square", "queries": 100}, "pgd"], "linf:0.05", {}),
        ([{"name": "square", "queries": 100}], "linf:0.05", {}),
    ],
)
def test_no_honest_record_lacks_a_finding(net: nn.Module, suite: Any, threat: str, options: Any) -> None:
    samples = load_data("builtin:digits").limit(24)
    for model in (net,) if "eot" in options else (net, Rounded(net), Overflowing(net, 0.32)):
        report = evaluate(model, samples, threat=threat, suite=suite, device="cpu", **options)
        outcome = reviewed(report)
        assert outcome.ok is True, outcome


def test_a_run_that_was_cut_short_lacks_no_finding(net: nn.Module) -> None:
    def stop(step: Progress) -> None:
        if step.stage == "fgsm":
            raise KeyboardInterrupt

    samples = load_data("builtin:digits").limit(40)
    with pytest.raises(Interrupted) as cut:
        evaluate(net, samples, threat="linf:0.05", suite="quick", device="cpu", progress=stop)
    outcome = reviewed(cut.value.report)
    assert outcome.ok is True, outcome


def test_a_whole_gate_lacks_no_finding(net: nn.Module) -> None:
    samples = load_data("builtin:digits").limit(60)
    result = check(
        net, (samples.x, samples.y), threat="linf:0.05", at_least=0.02, suite="quick", gate="fixed", device="cpu"
    )  # fmt: skip
    assert result.complete
    outcome = reviewed(result.report)
    assert outcome.ok is True, outcome


def test_fresh_runs_of_the_same_model_seldom_contradict_it() -> None:
    """Per sample another chance to stand, as of a noisy model: three runs are exchangeable."""
    rng, failed = np.random.default_rng(0), 0
    for _ in range(300):
        chance = rng.beta(0.4, 0.6, 40)
        runs = [np.where(rng.random(40) < chance, "survived", "broken") for _ in range(3)]
        failed += weigh("rerun", *runs, survived, "are robust").ok is False
    assert failed <= 3
    better = np.full(40, "survived")
    assert weigh("rerun", better, runs[1], runs[2], survived, "are robust").ok is False


def spec(folder: Path, model: nn.Module) -> tuple[str, ...]:
    """Options of the command line for a model."""
    save_weights(model, folder / "w.safetensors")
    (folder / "mine.py").write_text(
        "from conftest import _small_net as net\nfrom test_leaderboard_rerun import Noisy\n"
        "def noisy():\n    return Noisy(net())\n"
    )
    name = "noisy" if isinstance(model, Noisy) else "net"
    return "--model", f"{folder}/mine.py:{name}", "--weights", f"{folder}/w.safetensors", "--device", "cpu"


Cli = Callable[..., Ended]


def test_what_stays_unverified_is_status_3(net: nn.Module, tmp_path: Path, inside: Cli) -> None:
    torch.manual_seed(0)
    path = filed(tmp_path / "noisy", Noisy(net))
    command = ("leaderboard", "verify", str(path))
    done = inside(*command, *spec(tmp_path, Noisy(net)), "--rerun", "60", cwd=tmp_path)
    assert (done.returncode, "FAIL" in done.stdout) == (3, False), done.stdout
    assert "\n?     rerun         not verified: the model draws at random" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("nothing contradicts the record, but not all is verified")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert inside(*command, cwd=tmp_path).returncode == 0
    plain = filed(tmp_path / "plain", net)
    command = ("leaderboard", "verify", str(plain))
    assert inside(*command, *spec(tmp_path, net), cwd=tmp_path).returncode == 0
    done = inside(*command, *spec(tmp_path, net), "--data", "nowhere.npz", cwd=tmp_path)
    assert (done.returncode, "\n?     data " in done.stdout) == (3, True), done.stdout


class Overflowing(nn.Module):
    """Gives no numbers for bright inputs."""

    def __init__(self, inner: nn.Module, most: float) -> None:
        super().__init__()
        self.inner, self.most = inner, most

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out.masked_fill((x.flatten(1).mean(1) > self.most)[:, None], float("nan"))


def test_samples_without_numbers_are_no_mismatch(net: nn.Module, tmp_path: Path) -> None:
    model = Overflowing(net, 0.32)
    path = filed(tmp_path, model, examples=True)
    store, name = Store.locate(path)
    without = int((store.verdicts(store.read(name))["prediction"] == -1).sum())
    assert 0 < without < 60
    found = lines(path, model, rerun=20)
    assert [outcome for outcome in found.values() if outcome.ok is False] == []
    assert found["clean"].ok is True
    nowhere = lines(path, Overflowing(net, -1.0))
    assert (nowhere["clean"].ok, nowhere["fooled"].ok) == (False, False)
    assert "the model gives NaN or infinity for" in nowhere["fooled"].message


def test_a_rerun_loads_no_model_that_the_record_names(net: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'a').close()\nfrom conftest import _small_net as net\n"
    )

    def rerun(surrogate: str) -> Outcome:
        folder, attack = (
            tmp_path / "board" / surrogate[-3:],
            make_attack("transfer", surrogate=surrogate, steps=2),
        )
        report = evaluate(
            net, load_data("builtin:digits").limit(12), threat="linf:0.1", suite=attack, device="cpu"
        )
        record = Record.from_report(report, name="net", defense=DEFENSE)
        Store(folder).add(record, report.verdicts)
        _load_once.cache_clear()
        (tmp_path / "ran").unlink(missing_ok=True)
        return lines(folder / "records" / f"{record.id}.json", net, rerun=6)["rerun"]

    outcome = rerun(f"{tmp_path}/mine.py:net")
    assert (outcome.ok, outcome.asked, (tmp_path / "ran").exists()) == (None, True, False)
    assert "mine.py:net, and a model that a record names is not loaded" in outcome.message
    assert rerun("builtin:digits-mlp").ok is True
