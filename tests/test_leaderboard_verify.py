"""Verification: an honest record stands, and nothing in a forged one goes unnoticed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import Outcome as Ended
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load
from torch import nn

from robust import evaluate
from robust.behind import name_behind, transform_of
from robust.cli import main
from robust.leaderboard import Record, Store, examples_bytes, sha256, verify, with_clean
from robust.leaderboard.artefacts import verdicts_bytes, verdicts_sha256
from robust.leaderboard.claims import check_suite
from robust.leaderboard.derive import derive
from robust.leaderboard.record import _place, _sealed, content_id
from robust.leaderboard.verify import Outcome
from robust.report import Report
from robust.sources import load_data, save_weights
from robust.suites import VERSIONS
from robust.target import Target

DEFENSE = {"name": "none", "parameters": {}}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A linear classifier of digits: the nearest class mean."""
    train = load_data("builtin:digits:train")
    x = train.rows(slice(None)).flatten(1)
    means = torch.stack([x[train.y == label].mean(0) for label in range(10)])
    layer = nn.Linear(64, 10)
    layer.weight.data, layer.bias.data = 20 * means, -10 * means.square().sum(1)
    return nn.Sequential(nn.Flatten(), layer)


@pytest.fixture(scope="module")
def report(model: nn.Module) -> Report:
    samples = load_data("builtin:digits").limit(60)
    return evaluate(
        model,
        samples,
        threat="linf:0.08",
        suite="quick",
        keep_examples=True,
        model_spec="memory",
        device="cpu",
    )


@pytest.fixture(scope="module")
def filed(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one record, its examples beside it."""
    assert report.examples is not None
    examples = examples_bytes(with_clean(report.examples, load_data("builtin:digits")))
    folder = tmp_path_factory.mktemp("filed")
    record = Record.from_report(report, name="means", defense=DEFENSE, examples=examples)
    Store(folder).add(record, report.verdicts, examples=examples)
    return folder


def outcomes(store: Path, model: nn.Module | None = None, **options: Any) -> list[Outcome]:
    (path,) = (store / "records").glob("*.json")
    target = None if model is None else Target(model, device="cpu")
    return list(verify(*Store.locate(path), target=target, **options))


def failed(found: list[Outcome]) -> set[str]:
    return {outcome.check for outcome in found if outcome.ok is False}


def test_an_honest_record_stands(filed: Path, model: nn.Module) -> None:
    found = outcomes(filed, model, rerun=10)
    assert [outcome.check for outcome in found if not outcome.ok] == []
    assert {"record", "verdicts", "rows", "clean", "robust", "statuses", "classes", "fairness", "attacks",
            "passes", "data", "examples", "ball", "fooled", "model", "rerun"} <= {o.check for o in found}  # fmt: skip


def test_without_the_model_it_says_what_was_not_checked(filed: Path) -> None:
    found = outcomes(filed)
    assert not failed(found)
    assert [outcome.check for outcome in found if outcome.ok is None] == ["model"]
    assert outcomes(filed, data="nowhere.npz")[-3].check == "examples"


def test_another_model_is_caught(filed: Path, model: nn.Module) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert {"model", "clean", "fooled", "rerun"} <= failed(outcomes(filed, other, rerun=20))


def test_other_data_is_caught(filed: Path) -> None:
    assert "data" in failed(outcomes(filed, data="builtin:digits:train"))


@pytest.mark.parametrize(
    ("suite", "threat", "named"),
    [
        ("standard", "linf:0.1", "standard+fmn"),
        ("quick", "linf:0.1", "quick+fmn"),
        ("quick", "l2:0.5", "quick+fmn"),
        ("standard", "l2:0.5", "standard"),
        (["fgsm", "fmn"], "linf:0.1", "fgsm+fmn"),
    ],
)
def test_a_record_of_a_whole_curve_stands(
    model: nn.Module, tmp_path: Path, suite: Any, threat: str, named: str
) -> None:
    """The nearest points that were found are its examples, one a sample, and a search added for the curve is known."""
    found = outcomes(minimized(model, tmp_path, suite, threat), model, rerun=5)
    assert [outcome for outcome in found if not outcome.ok] == []
    (record,) = Store(tmp_path).records()
    assert (record.suite.name, record.suite.version) == (named, VERSIONS.get(str(suite)))
    (path,) = (tmp_path / "examples").iterdir()
    assert len(load(path.read_bytes())["sample_id"]) == record.statuses.broken > 0


def minimized(model: nn.Module, folder: Path, suite: Any, threat: str, **options: Any) -> Path:
    samples = load_data("builtin:digits").limit(40)
    report = evaluate(
        model, samples, threat=threat, suite=suite, minimize=True, keep_examples=True, device="cpu", **options
    )
    assert report.examples is not None
    examples = examples_bytes(with_clean(report.examples, samples))
    record = Record.from_report(report, name="means", defense=DEFENSE, examples=examples)
    Store(folder).add(record, report.verdicts, examples=examples)
    return folder


def test_of_a_curve_too_the_attacks_side_by_side_stand(model: nn.Module, tmp_path: Path) -> None:
    found = outcomes(minimized(model, tmp_path, "standard", "linf:0.1", cascade=False), model, rerun=5)
    assert [outcome for outcome in found if not outcome.ok] == []


def test_a_curve_of_points_that_a_fresh_search_finds_nearer_is_caught(
    model: nn.Module, tmp_path: Path
) -> None:
    def farther(verdicts: pd.DataFrame) -> None:
        broken = verdicts["status"] == "broken"
        verdicts.loc[broken, ["distance", "nearest"]] = 0.0999

    def forget(saved: dict[str, torch.Tensor]) -> None:
        saved |= {name: rows[:0] for name, rows in saved.items()}

    honest = minimized(model, tmp_path / "honest", "quick", "linf:0.1")
    forged = forge(honest, tmp_path / "forged", table=farther, examples=forget)
    assert not failed(outcomes(forged, model))
    found = {outcome.check: outcome for outcome in outcomes(forged, model, rerun=20)}
    assert found["rerun"].ok is False
    assert "have nearer adversarial points than the record says" in found["rerun"].message


@pytest.mark.parametrize(("key", "value"), [("parameters", 1), ("architecture", "ResNet152")])
def test_a_record_that_says_another_thing_of_the_model_is_caught(
    filed: Path, tmp_path: Path, model: nn.Module, key: str, value: Any
) -> None:
    def change(content: dict[str, Any]) -> None:
        content["model"][key] = value

    assert failed(outcomes(forge(filed, tmp_path, record=change), model)) == {"model"}


def test_a_curve_without_its_points_is_caught(model: nn.Module, tmp_path: Path) -> None:
    honest = minimized(model, tmp_path / "honest", "quick", "linf:0.1")
    forged = forge(honest, tmp_path / "forged", table=lambda verdicts: verdicts.pop("nearest"))
    assert failed(outcomes(forged, model)) == {"rows"}


def test_a_search_added_for_a_curve_is_held_to_its_suite(model: nn.Module, tmp_path: Path) -> None:
    (record,) = Store(minimized(model, tmp_path, "quick", "linf:0.1")).records()
    content = record.model_dump(mode="json")

    def suite(change: Callable[[dict[str, Any]], Any]) -> Outcome:
        forged = json.loads(json.dumps(content))
        change(forged)
        return check_suite(Record.model_validate(forged))

    assert suite(lambda c: None).ok is True
    assert suite(lambda c: c["attacks"][2]["parameters"].update(steps=1)).ok is False
    assert suite(lambda c: c["attacks"].pop(2)).ok is False
    assert suite(lambda c: c["suite"].update(minimize=False)).ok is None
    assert suite(lambda c: c["suite"].update(version=1)).ok is True  # in linf it was the same
    assert suite(lambda c: (c["suite"].update(version=1), c["attacks"].pop(0))).ok is False
    assert (
        suite(lambda c: (c["suite"].update(version=1), c["attacks"][2]["parameters"].update(steps=1))).ok
        is None
    )


# -- single bytes -----------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["records", "verdicts", "examples"]),
    place=st.floats(0, 1, exclude_max=True),
    mask=st.integers(1, 255),
)
def test_any_changed_byte_is_caught(filed: Path, tmp_path: Path, kind: str, place: float, mask: int) -> None:
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(filed, copy)
    (path,) = (copy / kind).iterdir()
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= mask
    path.write_bytes(content)
    assert failed(outcomes(copy))


@pytest.mark.parametrize("kind", ["records", "verdicts", "examples"])
@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b" ", lambda b: b""])
def test_cut_and_lengthened_files_are_caught(
    filed: Path, tmp_path: Path, kind: str, change: Callable[[bytes], bytes]
) -> None:
    shutil.copytree(filed, tmp_path / "copy")
    (path,) = (tmp_path / "copy" / kind).iterdir()
    path.write_bytes(change(path.read_bytes()))
    assert failed(outcomes(tmp_path / "copy"))


@pytest.mark.parametrize("kind", ["verdicts", "examples"])
def test_a_missing_file_is_caught(filed: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(filed, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / kind)
    assert failed(outcomes(tmp_path / "copy")) == {kind}


# -- a forger who seals what he changed -------------------------------------------------------------


def forge(
    filed: Path,
    folder: Path,
    *,
    record: Callable[[dict[str, Any]], None] | None = None,
    table: Callable[[pd.DataFrame], None] | None = None,
    examples: Callable[[dict[str, torch.Tensor]], None] | None = None,
) -> Path:
    """A store whose record was changed and given fresh hashes, checksum and id throughout."""
    store = Store(filed)
    (honest,) = store.records()
    content, verdicts, saved = honest.model_dump(mode="json"), store.verdicts(honest), store.examples(honest)
    assert saved is not None
    if table:
        table(verdicts)
    if examples:
        examples(saved)
    parquet, tensors = verdicts_bytes(verdicts), examples_bytes(saved)
    content["artefacts"] = {
        "verdicts_sha256": verdicts_sha256(verdicts),
        "verdicts_file_sha256": sha256(parquet),
        "examples_sha256": sha256(tensors),
    }
    if record:
        record(content)
    for name, written in {
        f"records/{content_id(content)}.json": _sealed(content).encode(),
        f"verdicts/{sha256(parquet)}.parquet": parquet,
        f"examples/{sha256(tensors)}.safetensors": tensors,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(written)
    return folder


def _count_again(content: dict[str, Any], verdicts: pd.DataFrame) -> None:
    """Make a record's derived numbers those of a table."""
    parts = {key: value for key, value in derive(verdicts).items() if not key.startswith("artefacts")}
    _place(content, json.loads(json.dumps(parts, default=lambda part: part.model_dump(mode="json"))))


def test_accuracies_that_are_not_the_tables_are_caught(filed: Path, tmp_path: Path) -> None:
    def better(content: dict[str, Any]) -> None:
        honest = Store(filed).records()[0]
        better = Store(filed).verdicts(honest)
        first = better.index[better["status"] == "broken"][0]
        better.loc[first, ["status", "attack", "distance"]] = ["survived", "", float("nan")]
        _count_again(content, better)
        for attack in content["attacks"]:
            attack["survived"] = max(attack["survived"], content["robust"]["k"])
            attack["attacked"] = max(attack["attacked"], attack["survived"])
            attack["broke"] = min(attack["broke"], attack["attacked"] - attack["survived"])

    found = outcomes(forge(filed, tmp_path, record=better))
    assert {"statuses", "robust", "classes"} <= failed(found)


@pytest.mark.parametrize(
    ("path", "value", "check"),
    [
        ("data.indices_sha256", "0" * 64, "data.indices_sha256"),
        ("data.indices_sha256", None, "record"),
        ("artefacts.verdicts_sha256", "0" * 64, "artefacts.verdicts_sha256"),
        ("artefacts.verdicts_sha256", None, "record"),
        ("classes", [], "record"),
        ("fairness", None, "record"),
        ("data.sha256", "0" * 64, "data"),
        ("classes.0.name", "ten", None),
        ("fairness.worst", 99, "fairness"),
        ("fairness.worst_tenth", 0.9, "fairness"),
        ("fairness.low", 0.0, "fairness"),
        ("cost.forwards", 1, "passes"),
        ("cost.checks.backwards", 1, "passes"),
        ("attacks.1.forwards", 10**6, "passes"),
        ("attacks.0.broke", 0, "attacks"),
        ("attacks.0.label", "other", "rows"),
        ("threat", {"norm": "linf", "eps": "0.01", "radius": 0.01, "bounds": [0.0, 1.0]}, "rows"),
        ("threat", {"norm": "linf", "eps": "0.08", "radius": 0.08, "bounds": [0.2, 1.0]}, "ball"),
        ("threat.knowledge", "decision", "threat"),
        ("threat.targeted", True, "threat"),
        ("data.name", "imagenet", "data.name"),
        ("data.split", "validation", "data.name"),
    ],
)
def test_a_sealed_change_of_the_record_is_caught(
    filed: Path, tmp_path: Path, path: str, value: Any, check: str | None
) -> None:
    def change(content: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        holder: Any = content
        for key in parents:
            holder = holder[int(key) if key.isdigit() else key]
        assert holder[last] != value
        holder[last] = value

    found = failed(outcomes(forge(filed, tmp_path, record=change)))
    assert check in found if check else not found  # names of classes follow from nothing


def test_groups_of_the_table_that_the_record_leaves_out_are_caught(filed: Path, tmp_path: Path) -> None:
    def split(verdicts: pd.DataFrame) -> None:
        verdicts["group"] = ["north", "south"] * 30

    assert failed(outcomes(forge(filed, tmp_path, table=split))) == {"groups"}


def _set(column: str, status: str, value: Any) -> Callable[[pd.DataFrame], None]:
    def change(verdicts: pd.DataFrame) -> None:
        verdicts.loc[verdicts.index[verdicts["status"] == status][0], column] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("status", "survived", "broken"), _set("status", "broken", "survived"), _set("status", "broken", "fine"),
        _set("distance", "broken", 0.09), _set("distance", "broken", float("nan")), _set("distance", "broken", 0.01),
        _set("distance", "survived", 0.01), _set("attack", "broken", "magic"), _set("attack", "survived", "fgsm"),
        _set("sample_id", "survived", 10**6), _set("label", "survived", 99), _set("forwards", "survived", -1),
        _set("forwards", "survived", 7), _set("prediction", "survived", 99), _set("distance", "broken", -0.01),
        _set("nearest", "broken", 0.2), _set("nearest", "broken", float("nan")), _set("nearest", "broken", -0.01),
        _set("nearest", "survived", 0.05),
        lambda verdicts: verdicts.pop("label"),
        lambda verdicts: verdicts.__setitem__("sample_id", 5),
    ],
)  # fmt: skip
def test_a_sealed_change_of_the_table_is_caught(
    filed: Path, tmp_path: Path, change: Callable[[pd.DataFrame], None]
) -> None:
    assert failed(outcomes(forge(filed, tmp_path, table=change)))


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda saved: saved["x_adv"][0].mul_(1.5), "ball"),
        (lambda saved: saved["x_adv"][0].fill_(float("nan")), "ball"),
        (lambda saved: saved["x_adv"][0].sub_(1e-3), "ball"),
        (lambda saved: saved["x"][0].fill_(0.5), "ball"),
        (lambda saved: saved["sample_id"][:1].fill_(10**6), "examples"),
        (lambda saved: saved["sample_id"][:1].copy_(saved["sample_id"][1:2]), "examples"),
        (lambda saved: saved.pop("x_adv"), "examples"),
        (lambda saved: saved["x_adv"].copy_(saved["x"]), "ball"),
    ],
)
def test_a_sealed_change_of_the_examples_is_caught(
    filed: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any], check: str
) -> None:
    assert check in failed(outcomes(forge(filed, tmp_path, examples=change)))


def test_an_example_that_fools_nobody_is_caught(filed: Path, tmp_path: Path, model: nn.Module) -> None:
    """Moved by as much, elsewhere: only the model can tell."""

    def elsewhere(saved: dict[str, torch.Tensor]) -> None:
        far = (saved["x_adv"] - saved["x"]).abs().flatten(1).amax(1).view(-1, 1, 1, 1)
        saved["x_adv"] = saved["x"] + torch.where(saved["x"] > 0.5, -far, far) * (torch.arange(8) == 0)

    folder = forge(filed, tmp_path, examples=elsewhere)
    assert failed(outcomes(folder, model)) >= {"fooled"}


# -- command line -----------------------------------------------------------------------------------


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["robust", "leaderboard", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return (int(stop.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def user_model(model: nn.Module, tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    save_weights(model, tmp_path / "w.safetensors")
    return "--model", f"{tmp_path}/mine.py:make", "--weights", f"{tmp_path}/w.safetensors", "--device", "cpu"


def test_add_then_verify(
    cli: Callable[..., tuple[int, str, str]], report: Report, tmp_path: Path, user_model: tuple[str, ...]
) -> None:
    report.save(tmp_path / "run")
    options = ("--store", tmp_path / "board", "--name", "means", "--licence", "MIT")
    code, out, err = cli(
        "add", tmp_path / "run", *options, "--paper", "Means", "--paper-url", "https://a.example/b"
    )
    assert (code, err) == (0, "")
    path = out.strip()
    code, _, err = cli("add", tmp_path / "run", *options, "--paper", "Means", "--paper-url", "a.example/b")
    assert (code, err.count("\n")) == (2, 1)
    assert "paper.url: expected an address such as https://example.org/paper, got 'a.example/b'" in err
    code, out, _ = cli("verify", path, *user_model, "--rerun", 5, "--draw", 3)
    assert code == 0, out
    assert out.endswith("nothing contradicts the record\n")
    record = Store(tmp_path / "board").records()[0]
    assert (record.model.licence, record.paper and record.paper.url) == ("MIT", "https://a.example/b")
    assert cli("verify", record.short_id, "--store", tmp_path / "board")[0] == 0
    text = Path(path).read_text()
    Path(path).write_text(text.replace('"seed": 0', '"seed": 1'))
    code, out, _ = cli("verify", path, *user_model)
    assert code == 1
    assert out.startswith("FAIL  record")


@pytest.mark.parametrize(
    ("options", "defense"),
    [((), "bit-depth"), (("--defense", "pgd-at", "--set", "steps=7"), "pgd-at")],
)
def test_what_was_attacked_behind_a_transform_is_verified_behind_it(
    inside: Callable[..., Ended],
    tmp_path: Path,
    user_model: tuple[str, ...],
    options: tuple[str, ...],
    defense: str,
) -> None:
    done = inside(
        "attack", *user_model, "--data", "builtin:digits", "--limit", "30", "--threat", "linf:0.08", "--attack", "pgd",
        "--transform", "bit-depth,bits=2", "--save-examples", "--out", "run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = inside("leaderboard", "add", "run", "--store", "board", "--name", "means", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = Store(tmp_path / "board").records()
    assert record.defense.name == defense
    assert options or (record.defense.parameters["bits"], record.defense.parameters["masks_gradients"]) == (
        2,
        True,
    )
    path = done.stdout.strip()
    done = inside("leaderboard", "verify", path, *user_model, "--rerun", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "bit-depth goes in front of the model, as the record says" in done.stderr
    for check in ("fooled", "model", "clean", "rerun"):
        assert f"\nok    {check} " in done.stdout, done.stdout


def test_a_name_that_only_reads_like_a_transform_is_none() -> None:
    assert transform_of("the one behind nothing") is None
    assert transform_of("net.py:make behind bit-depth,bits=99") is None
    assert transform_of("net.py:make") is None
    found = transform_of(name_behind("nets behind walls.py:make", "bit-depth,bits=2"))
    assert found is not None
    assert found.parameters["bits"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verify", "nothing.json"), "expected STORE/records/ID.json"),
        (("verify", "a/records/b.json"), "no such file"),
        (("verify", "a/records/b.json", "--rerun", "3"), "--rerun: needs --model"),
        (("add", "nowhere", "--store", "s", "--name", "n"), "cannot read nowhere"),
        (
            ("add", "nowhere", "--store", "s", "--name", "n", "--trained-threat", "nonsense"),
            "--trained-threat: ",
        ),
        (
            ("add", "nowhere", "--store", "s", "--name", " "),
            "--name: expected what the model is to be called",
        ),
        (
            ("add", "nowhere", "--store", "s", "--name", "n", "--paper-url", "https://x.example"),
            "--paper-url",
        ),
    ],
)
def test_mistakes_are_one_line(
    cli: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
