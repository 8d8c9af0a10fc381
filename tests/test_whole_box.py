"""An eps or sigma that lets everything through is told, once, and stops nobody."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome
from torch import Tensor, nn

import robust
from robust.attacks import APGD
from robust.gate.check import check
from robust.sweep import SweepConfig, run_sweep
from robust.threat import Threat
from robust.whole_box import whole_box, wide_noise


@pytest.mark.parametrize(
    ("threat", "bounds", "said"),
    [
        ("linf:8", (0, 1), "eps 8 covers the whole box [0, 1]; did you mean 8/255?"),
        ("linf:1", (0, 1), "eps 1 covers the whole box [0, 1]; did you mean 1/255?"),
        ("linf:0.999", (0, 1), ""),
        ("linf:8", (0, 255), ""),
        ("linf:300", (0, 255), "eps 300 covers the whole box [0, 255], 255 across in linf: every input is allowed; "
         "give a smaller eps"),
        ("l2:128", (0, 1), "eps 128 covers the whole box [0, 1]; did you mean 128/255?"),
        ("l2:7.9", (0, 1), ""),
        ("l2:8", (0, 1), "eps 8 covers the whole box [0, 1]; did you mean 8/255?"),
        ("l1:63", (0, 1), ""),
        ("l1:64", (0, 1), "eps 64 covers the whole box [0, 1], 64 across in l1: every input is allowed; give a smaller eps"),
        ("l0:63", (0, 1), ""),
        ("l0:64", (0, 1), "eps 64 covers the whole box [0, 1], 64 across in l0: every input is allowed; give a smaller eps"),
        ("patch:8x8", (0, 1), ""),
    ],
)  # fmt: skip
def test_what_covers_64_values(threat: str, bounds: tuple[float, float], said: str) -> None:
    assert whole_box(Threat.parse(threat, bounds), 64) == said


def test_noise_wider_than_the_box() -> None:
    assert wide_noise(1.0, (0, 1)) == ""
    assert wide_noise(8, (0, 1)) == "sigma 8 is wider than the box [0, 1]; did you mean 8/255 = 0.0314?"
    assert wide_noise(300, (0, 255)) == "sigma 300 is wider than the box [0, 255]"


def test_searches_from_many_times_a_radius_that_no_float32_holds_find_what_there_is(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    report = robust.evaluate(net, digits, threat="l1:3e38", suite=APGD(outside=256), device="cpu")
    assert report.statuses["broken"] == len(digits[1]) - report.statuses["misclassified"]


def test_python_is_told_by_the_log_and_goes_on(
    net: nn.Module, digits: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    robust.evaluate(net, digits, threat="linf:8", suite="fgsm", device="cpu")
    check(net, digits, threat="linf:8", at_least=0.5, suite="fgsm", device="cpu")
    robust.evaluate(net, digits, threat="linf:8/255", suite="fgsm", device="cpu")
    told = [(record.name, record.levelno, record.getMessage()) for record in caplog.records]
    line = "eps 8 covers the whole box [0, 1]; did you mean 8/255?"
    assert told == [("robust", logging.WARNING, line)] * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["attack", "--threat", "linf:8", "--attack", "fgsm"],
            "robust: eps 8 covers the whole box [0, 1]; did you",
        ),
        (
            ["certify", "--sigma", "8", "--n0", "2", "--n", "2"],
            "robust: sigma 8 is wider than the box [0, 1]; did",
        ),
    ],
)
def test_commands_say_it_on_a_line(
    arguments: list[str], said: str, inside: Callable[..., Outcome], tmp_path: Path
) -> None:
    given = ("--model", "builtin:digits-mlp", "--data", "builtin:digits", "--limit", "4", "--device", "cpu")
    done = inside(*arguments, *given, cwd=tmp_path)
    assert done.returncode == 0
    assert [said in line for line in done.stderr.splitlines()] == [False, True]


def test_a_sweep_says_it_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = {
        "data": "builtin:digits",
        "limit": 6,
        "threats": ["linf:8", "linf:0.1", "l2:9"],
        "suites": ["fgsm"],
        "seeds": [0, 1],
        "models": [{"spec": "builtin:digits-mlp"}],
        "curves": [{"norm": "linf", "eps": ["0.1", "1"], "suite": "fgsm"}],
    }
    run_sweep(SweepConfig.model_validate(plan), tmp_path, device="cpu")
    told = [record.getMessage().split(" covers")[0] for record in caplog.records if record.name == "robust"]
    assert sorted(told) == ["eps 8", "eps 9"]
