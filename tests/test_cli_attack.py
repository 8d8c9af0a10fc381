"""`robust attack` as a user runs it: what it prints and writes, behind a transform, on initial weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import COMMON, run
from conftest import Outcome
from reports import make_report

from robust.cli.attack import _names, summary
from robust.defenses import make_defense
from robust.report import Report
from robust.sources import load, load_weights


def test_attack_writes_json_alone_to_standard_output_and_a_report(files: Path) -> None:
    done = run(
        "attack", *COMMON, "--threat", "linf:0.1", "--attack", "pgd", "--set", "steps=5", "--set", "loss=margin",
        "--limit", "40", "--json", "-", "--out", "out", "--save-examples", cwd=files,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    keys = (
        "clean_accuracy robust_accuracy interval n statuses forwards backwards seconds attacks trust findings "
        "threat suite seed model data device versions"
    )
    assert set(keys.split()) <= set(found)
    assert found["n"] == 40 == sum(found["statuses"].values())
    assert found["attacks"][0]["parameters"]["steps"] == 5
    assert found["model"]["spec"] == "my_model.py:make"
    report = Report.load(files / "out")
    assert report.robust_accuracy == found["robust_accuracy"]
    assert report.examples is not None
    assert len(report.examples["sample_id"]) == found["statuses"]["broken"] > 0


def test_a_model_is_attacked_behind_a_transform(files: Path, inside: Callable[..., Outcome]) -> None:
    """With weights of its own or with those of both, as hardening saves them; other options than theirs are refused."""
    threat = ("--threat", "linf:0.1")
    hardened = inside(
        "harden", *COMMON, *threat, "--defense", "bit-depth", "--set", "bits=1", "--out", "both", cwd=files
    )
    assert "attack them with: robust attack --transform bit-depth,bits=1" in hardened.stdout, hardened.stderr
    both = tuple("both/weights.safetensors" if part == "w.safetensors" else part for part in COMMON)
    assert "--transform" in inside("attack", *both, *threat, cwd=files).stderr
    other = inside("attack", *both, *threat, "--transform", "bit-depth", cwd=files)
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "saved with other options of bit-depth" in other.stderr
    quick = (*threat, "--suite", "quick", "--json", "-")
    found = [
        json.loads(inside("attack", *model, *quick, *transform, cwd=files).stdout)
        for model, *transform in ((COMMON,), (COMMON, *ONE_BIT), (both, *ONE_BIT))
    ]
    assert found[0]["clean_accuracy"] != found[1]["clean_accuracy"] == found[2]["clean_accuracy"]
    assert found[1]["robust_accuracy"] == found[2]["robust_accuracy"]
    assert found[1]["model"]["spec"] == "my_model.py:make behind bit-depth,bits=1"


def test_what_two_transforms_are_in_front_of_is_not_said_to_be_attacked_behind_one(
    files: Path, inside: Callable[..., Outcome]
) -> None:
    two = ("--defense", "bit-depth+bit-depth", "--out", "two")
    done = inside("harden", *COMMON, "--threat", "linf:0.1", *two, cwd=files)
    assert done.returncode == 0, done.stderr
    assert "attack them with" not in done.stdout
    assert "make_defense('bit-depth+bit-depth', ...).deployed(robust.load(SPEC).as_module())" in done.stdout
    model = load(f"{files / 'my_model.py'}:make", device="cpu").as_module()
    whole = make_defense("bit-depth+bit-depth").deployed(model)
    load_weights(whole, files / "two" / "weights.safetensors")


ONE_BIT = ("--transform", "bit-depth,bits=1")


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        ("pgd-at", "expected an input transform"),
        ("none+bit-depth", "expected an input transform"),
        ("bit-depth,bits", "--transform: expected NAME=VALUE, got 'bits'"),
        ("bit-depth,size=3", "size"),
        (",bits=1", "expected a transform's name"),
        ("bitdepth", "bit-depth"),
    ],
)
def test_what_is_no_transform_is_told(
    files: Path, inside: Callable[..., Outcome], transform: str, said: str
) -> None:
    done = inside("attack", *COMMON, "--threat", "linf:0.1", "--transform", transform, cwd=files)
    assert (done.returncode, done.stderr.count("\n"), said in done.stderr) == (2, 1, True), done.stderr


def test_attack_explains_itself_in_pictures(files: Path, inside: Callable[..., Outcome]) -> None:
    pytest.importorskip("matplotlib")
    done = inside(
        "attack", *COMMON, "--threat", "linf:0.1", "--attack", "pgd", "--out", "out", "--explain", "pictures", cwd=files
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {"panels.png", "losses.svg"} <= {file.name for file in (files / "pictures").iterdir()}
    assert "panels.png" in done.stderr
    assert Report.load(files / "out").examples is None  # only --save-examples keeps them


def test_without_matplotlib_nothing_is_attacked_for_pictures(
    files: Path, inside: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = inside(
        "attack", *COMMON, "--threat", "linf:0.1", "--suite", "quick", "--explain", "pictures", cwd=files
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "robust-harness[plots]" in done.stderr
    assert not (files / "pictures").exists()


def test_attack_prints_a_table_of_eighty_columns(files: Path, inside: Callable[..., Outcome]) -> None:
    done = inside("attack", *COMMON, "--threat", "l2:0.5", "--suite", "quick", cwd=files)
    assert done.returncode == 0, done.stderr
    assert "robust accuracy" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_an_attack_on_initial_weights_says_so(files: Path, inside: Callable[..., Outcome]) -> None:
    options = (
        "--data",
        "builtin:digits",
        "--threat",
        "linf:0.1",
        "--attack",
        "fgsm",
        "--limit",
        "9",
        "--device",
        "cpu",
    )
    done = inside("attack", "--model", "builtin:digits-mlp", *options, cwd=files)
    assert done.returncode == 0
    assert "builtin:digits-mlp has initial weights, which nothing has trained; give --weights" in done.stderr
    done = inside("attack", *COMMON[:-4], *options[2:], "--data", "data.npz", cwd=files)
    assert "trained" not in done.stderr


def test_labels_break_between_parameters_alone() -> None:
    text = summary(make_report(alone={"basin-hopping(radii=(1,),hops=8)": 40}))
    assert "radii=(1,)," in text
    assert "(steps=40)" in summary(make_report(alone={"torchattacks:PGD(steps=40)": 40}))


def test_long_labels_are_told_apart_by_few_words() -> None:
    options = "steps=20,targets=2,odi_steps=5,hop_steps=14"
    text = summary(make_report(alone={f"basin-hopping(radii=(1,),{options})": 40, "fgsm": 9}))
    assert "basin-hopping  " in text
    assert "hop_steps" not in text


def test_stages_that_no_sample_was_for_take_a_line_together() -> None:
    lines = summary(make_report(alone={"fgsm": 40, "apgd": None, "ddn": None})).splitlines()
    assert "for none of the samples: apgd, ddn" in lines
    assert [line.split()[0] for line in lines[2:4]] == ["fgsm", "for"]
    unattacked = summary(make_report(alone={"fgsm": None, "apgd": None}))
    assert "for none" not in unattacked
    assert "fgsm" in unattacked


def test_attacks_of_one_label_are_numbered() -> None:
    entries = [{"label": label, "parameters": {}} for label in ("pgd(steps=9)", *["transfer(Net)"] * 2)]
    assert _names(entries) == ["pgd", "transfer #1", "transfer #2"]


def test_attacks_of_one_name_have_beside_their_number_what_tells_them_apart() -> None:
    same = "basin-hopping(steps=10,hops=8,push=1,near=0.2,hope=4)"
    labels = [
        "basin-hopping(steps=10,targets=5,odi_steps=5,radii=(1,),near=None)", same, "fgsm",
        "apgd(steps=15,restarts=2,loss=margin,outside=4)", "apgd(steps=27)", "apgd(steps=15,targets=9)", same,
    ]  # fmt: skip
    entries = [{"label": label, "parameters": {"targets": 3}} for label in labels]
    assert _names(entries) == [
        "basin-hopping #1 targets=5", "basin-hopping #2 targets=3", "fgsm",
        "apgd #1 steps=15 restarts=2", "apgd #2 steps=27", "apgd #3 steps=15", "basin-hopping #3 targets=3",
    ]  # fmt: skip
    lines = summary(make_report(alone=dict.fromkeys(labels, 40))).splitlines()
    assert max(map(len, lines)) <= 80
    assert ["steps=15" in line for line in lines if line.startswith("apgd #")] == [True, False, True]
