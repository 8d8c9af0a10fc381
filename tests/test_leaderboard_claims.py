"""What records say of themselves is not believed: trust, suite, randomness, and the form of their files."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Outcome as Ended
from pydantic import ValidationError
from reports import make_record, make_report
from torch import Tensor, nn

from robust import evaluate
from robust.attacks import make_attack
from robust.attacks.transfer import _load_once
from robust.diagnose import Finding, review, verdict
from robust.errors import InputError, StoreError, UnsupportedError
from robust.evaluation import Interrupted
from robust.gate.check import check
from robust.leaderboard import (
    Record,
    Store,
    comparison_text,
    examples_bytes,
    leaderboard_frame,
    sha256,
    verify,
)
from robust.leaderboard import compare as compare_records
from robust.leaderboard.artefacts import COLUMNS, read_verdicts, verdicts_bytes
from robust.leaderboard.claims import check_suite, check_trust
from robust.leaderboard.compare import Paired
from robust.leaderboard.derive import confusion, derive
from robust.leaderboard.drawn import survived, weigh
from robust.leaderboard.outcome import Outcome
from robust.leaderboard.rebuild import rebuild
from robust.leaderboard.recount import check_review
from robust.leaderboard.schema import MOST_CLASSES, AttackInfo, Group, Rate
from robust.leaderboard.site.charts import confusion_table
from robust.leaderboard.site.exports import badge
from robust.leaderboard.suite_history import HISTORY, fingerprint
from robust.report import Report
from robust.run import Progress
from robust.sources import load_data, save_weights
from robust.suites import SUITES, VERSIONS, Stage, resolve
from robust.target import Target
from robust.threat import NORMS, Threat

DEFENSE: dict[str, Any] = {"name": "none", "parameters": {}}
UNRELIABLE = {"check": "randomized", "severity": "unreliable", "message": "m"}
SOFTENED = {"check": "randomized", "severity": "suspect", "message": "m"}
UNKNOWN = {"check": "not-yet-invented", "severity": "suspect", "message": "m"}


def sealed(record: Record, **changes: Any) -> Record:
    """The record of a forger, who changes what it says and seals it anew."""
    forged = Record.model_validate({**record.model_dump(mode="json"), **changes})
    assert Record.loads(forged.dumps()) == forged, "a record that claims too much is still read"
    return forged


# -- trust ------------------------------------------------------------------------------------------

CLAIMS: list[tuple[dict[str, Any], str]] = [
    ({"findings": [UNRELIABLE]}, "the findings give unreliable, the record says trusted"),
    ({"findings": [SOFTENED]}, "randomized makes a verdict unreliable, the record says suspect"),
    ({"findings": [SOFTENED], "trust": "suspect"}, "randomized makes a verdict unreliable"),
    ({"findings": [UNKNOWN]}, "the findings give suspect, the record says trusted"),
    ({"trust": "suspect"}, "the findings give trusted, the record says suspect"),
    ({"trust": "unknown"}, "the findings give trusted, the record says unknown"),
]


@pytest.mark.parametrize(("changes", "reason"), CLAIMS)
def test_a_trust_that_does_not_follow_fails_and_is_not_ranked(changes: dict[str, Any], reason: str) -> None:
    forged = sealed(make_record(robust=80, name="forged"), **changes)
    outcome = check_trust(forged)
    assert outcome.ok is False
    assert reason in outcome.message
    frame = leaderboard_frame([forged, make_record()])
    assert list(zip(frame["model"], frame["rank"], frame["trust"], strict=True)) == [
        ("net", "1", "trusted"), ("forged", "-", "unreliable"),
    ]  # fmt: skip
    assert "trust-as-stated" in frame["checks"].iloc[1]
    assert '"message": "unreliable"' in badge(forged)


def test_a_record_with_errors_is_not_ranked_as_trusted() -> None:
    """As of a run that was interrupted, which earlier versions filed without a finding."""
    cut_short = make_record(robust=50, error=30, name="cut short", alone={})
    outcome = check_trust(cut_short)
    assert (outcome.ok, "30 of 100 samples ended in an error" in outcome.message) == (False, True)
    frame = leaderboard_frame([cut_short, make_record()])
    assert list(frame["rank"]) == ["1", "-"]
    assert list(frame["checks"]) == ["", "samples-in-error"]
    told = make_record(robust=50, error=30, trust="unreliable")
    assert check_trust(told).ok is True


def test_a_trust_that_follows_stands_and_unknown_checks_are_said() -> None:
    for trust in ("trusted", "suspect", "unreliable"):
        assert check_trust(make_record(trust=trust)) == Outcome(
            "trust", True, f"{trust}, as the findings give it"
        )
    newer = check_trust(make_record(trust="suspect", findings=[UNKNOWN]))
    assert (newer.ok, newer.asked) == (None, True)
    assert "knows no check not-yet-invented" in newer.message


def test_a_report_whose_trust_was_edited_makes_no_record() -> None:
    with pytest.raises(InputError, match=r"^report: trust: expected 'unreliable', which its findings give"):
        make_record(findings=[UNRELIABLE], trust="trusted")


def test_a_comparison_says_who_must_not_be_trusted() -> None:
    honest, table = make_record(), make_report().verdicts
    forged = sealed(make_record(robust=80), findings=[UNRELIABLE])
    text = comparison_text(compare_records(honest, forged, table, make_report(robust=80).verdicts))
    assert "B is more robust" in text
    assert "but B must not be trusted" in text.replace("\n", " ")


# -- suites -----------------------------------------------------------------------------------------


@pytest.fixture
def few(net: nn.Module, digits: tuple[Tensor, Tensor]) -> Callable[[Any], Report]:
    def attacked(suite: Any) -> Report:
        return evaluate(net, (digits[0][:8], digits[1][:8]), threat="linf:0.05", suite=suite, device="cpu")

    return attacked


def suite_of(report: Report, **changes: Any) -> Outcome:
    return check_suite(sealed(Record.from_report(report, name="net", defense=DEFENSE), **changes))


@pytest.mark.parametrize(
    "suite",
    [
        "quick",
        "standard",
        "fgsm",
        ["fgsm", {"name": "basin-hopping", "radii": (2, 1), "steps": 4, "hops": 1}],
    ],
)
def test_suites_by_their_names_stand(few: Callable[[Any], Report], suite: Any) -> None:
    outcome = suite_of(few(suite))
    assert outcome.ok is True, outcome


def test_one_step_is_not_the_suite_standard(few: Callable[[Any], Report]) -> None:
    report = few("fgsm")
    report.suite = "standard"
    assert suite_of(report).ok is False
    report.attacks[0]["label"] = "standard"
    report.verdicts["attack"] = report.verdicts["attack"].replace("fgsm", "standard")
    assert suite_of(report).ok is False
    report.suite_version = None
    older = suite_of(report, environment={"robust": "0.0.1"})
    assert (older.ok, older.asked) == (None, True)
    assert "the record, of robust 0.0.1, does not say which version of standard it is of" in older.message


NOW = VERSIONS["standard"]
FIRST = min(version for name, version in HISTORY if name == "standard")


@pytest.mark.parametrize(
    ("version", "ok", "reason"),
    [
        (NOW, False, f"not those that standard version {NOW} stands for"),
        (NOW + 1, None, f"the record is of standard version {NOW + 1}, and version {NOW} is installed; upgrade"),
        (1, False, f"of standard version 1, yet versions are stated from {FIRST} on; version {NOW} is installed"),
    ],
)  # fmt: skip
def test_an_older_program_excuses_no_record_that_states_its_suites_version(
    few: Callable[[Any], Report], version: int, ok: bool | None, reason: str
) -> None:
    report = few("fgsm")
    report.suite, report.suite_version = "standard", version
    outcome = suite_of(report, environment={"robust": "0.0.1"})
    assert (outcome.ok, outcome.asked) == (ok, ok is None)
    assert reason in outcome.message


def test_a_record_of_an_older_version_is_held_to_what_that_was(
    few: Callable[[Any], Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = few("quick")
    then = VERSIONS["quick"]
    monkeypatch.setitem(VERSIONS, "quick", then + 1)
    outcome = suite_of(report)
    assert outcome.ok is True
    said = f"the attacks are those that quick version {then} stood for; version {then + 1} is installed"
    assert outcome.message == said
    report.attacks[1]["selection"]["near"] = 1e-9
    assert suite_of(report).ok is False


def test_a_record_without_a_version_stands_where_its_attacks_do(few: Callable[[Any], Report]) -> None:
    report = few("quick")
    report.suite_version = None
    assert suite_of(report).ok is True


def test_a_suite_that_changes_has_a_version_of_its_own() -> None:
    """Where this fails: raise the suite's number in VERSIONS, and add to HISTORY what is printed."""
    now: dict[tuple[str, int], dict[str, str]] = {}
    for name, version in VERSIONS.items():
        for norm, eps in {
            **dict.fromkeys(NORMS, "1"),
            "spatial": "30,0.1",
            "corruptions": "1-5",
            "patch": "5x5",
        }.items():
            with suppress(UnsupportedError):
                _, stages = resolve(name, Threat(norm, eps))
                now.setdefault((name, version), {})[norm] = fingerprint([_listed(stage) for stage in stages])
    print("HISTORY =", now)
    assert {key: HISTORY.get(key) for key in now} == now
    assert set(VERSIONS) <= set(SUITES)


def _listed(stage: Stage) -> AttackInfo:
    attack = stage.attack
    counts = dict.fromkeys(("attacked", "broke", "survived", "forwards", "backwards"), 0)
    return AttackInfo(
        name=attack.name,
        label=attack.label,
        parameters=attack.parameters,
        selection=stage.selection,
        seconds=0,
        **counts,
    )


def test_attacks_shown_other_samples_than_the_suite_says_are_another_suite(
    few: Callable[[Any], Report],
) -> None:
    report = few("quick")
    report.attacks[1]["selection"]["near"] = 1e-9
    assert suite_of(report).ok is False


@pytest.mark.parametrize("name", ["mine", "Standard", "pgd"])
def test_an_unknown_suite_is_not_verified(few: Callable[[Any], Report], name: str) -> None:
    report = few("fgsm")
    report.suite = name
    outcome = suite_of(report)
    assert (outcome.ok, outcome.asked) == (None, True)
    assert f"knows no suite {name}" in outcome.message


def test_a_suite_that_was_cut_short_is_not_verified(few: Callable[[Any], Report]) -> None:
    report = few("quick")
    del report.attacks[1:]
    report.verdicts.loc[report.verdicts["status"] == "survived", "status"] = "error"
    assert suite_of(report).ok is None


# -- models that draw at random ---------------------------------------------------------------------


class Noisy(nn.Module):
    """Adds noise to its input, so that no answer need come again."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x + 0.4 * torch.randn_like(x))
        return out


def filed(folder: Path, model: nn.Module, *, forge: bool = False, examples: bool = False) -> Path:
    """The file of a record of 60 digits; forged, what was broken survived, and the model is said to draw."""
    report = evaluate(
        model, load_data("builtin:digits").limit(60), threat="linf:0.16", suite="quick",
        keep_examples=examples, device="cpu",
    )  # fmt: skip
    if forge:
        table = report.verdicts
        broken = table["status"] == "broken"
        table.loc[broken, ["status", "attack", "distance"]] = ["survived", "", float("nan")]
        for entry in report.attacks:
            entry.update(broke=0, attacked=report.clean_correct, survived=report.clean_correct, errors=0)
        report.findings, report.trust = [UNRELIABLE], "unreliable"
    kept = None if report.examples is None else examples_bytes(report.examples)
    record = Record.from_report(report, name="net", defense=DEFENSE, examples=kept)
    Store(folder).add(record, report.verdicts, examples=kept)
    return folder / "records" / f"{record.id}.json"


def lines(path: Path, model: nn.Module, **options: Any) -> dict[str, Outcome]:
    return {o.check: o for o in verify(*Store.locate(path), target=Target(model, device="cpu"), **options)}


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


def test_an_attack_is_what_it_may_see(few: Callable[[Any], Report]) -> None:
    """Who calls square a gradient attack hides that it won without gradients."""
    report = few(["pgd", {"name": "square", "queries": 20}])
    assert suite_of(report).ok is True
    report.attacks[1]["access"] = "gradient"
    assert suite_of(report).ok is not True


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
        "from conftest import _small_net as net\nfrom test_leaderboard_claims import Noisy\n"
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


# -- files from strangers ---------------------------------------------------------------------------


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
        (parquet(TABLE.append_column("prediction_adv", pa.array([10**15] * 100))), "column prediction_adv: expected classes in"),
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


def test_publish_names_the_sample_of_an_unknown_status(tmp_path: Path, inside: Cli) -> None:
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


# -- eighty columns ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ok", [True, False, None])
def test_a_line_fits_eighty_columns(ok: bool | None) -> None:
    text = str(Outcome("artefacts.verdicts_sha256", ok, f"{'word ' * 40}{'x' * 200}"))
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith({True: "ok    ", False: "FAIL  ", None: "-     "}[ok])


def test_a_comparison_fits_eighty_columns() -> None:
    table = make_report(n=60_000, wrong=2_000, robust=30_000).verdicts
    record = make_record(n=60_000, wrong=2_000, robust=30_000)
    found = compare_records(record, record, table, table)
    long = Paired("c" * 300, 60_000, 0, 30_000, 30_000, 0, -1.0, -1.0, 1.0, 1.2e-300, 1.2e-299)
    object.__setattr__(found, "classes", [long])
    assert max(map(len, comparison_text(found).splitlines())) <= 80


def test_messages_begin_in_one_column_whatever_the_checks_are_called() -> None:
    table = make_report(robust=80).verdicts
    names = ["record", "fairness", *derive(table)]
    assert max(map(len, names)) > 12
    for name in names:
        lines = str(Outcome(name, True, "0123456789abcdef... " * 9)).splitlines()
        assert max(map(len, lines)) <= 80
        assert lines[0].split()[:2] == ["ok", name]
        messages = [line for line in lines if "0123" in line]
        assert {line.index("0123") for line in messages} == {20}
