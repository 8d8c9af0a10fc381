"""`robust doctor MODEL DATA`: each planted flaw is named with its advice; an honest model is well."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Outcome
from torch import Tensor, nn

import robust
from robust.examination import Line, _saved_bytes, examine
from robust.sources import as_samples, save_weights


def lines(model: nn.Module, data: tuple[Tensor, Tensor], **options: object) -> dict[str, Line]:
    target = robust.Target(model, device="cpu", **options)  # type: ignore[arg-type]
    return {line.what: line for line in examine(target, as_samples(data))}


class Around(nn.Module):
    """The net with something before and after it."""

    def __init__(self, net: nn.Module, before=lambda x: x, after=lambda z: z) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


def test_an_honest_model_is_well(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    found = lines(net, digits)
    assert {line.state for line in found.values()} == {"ok"}
    assert found["outputs"].found == "logits"
    right = int((net(digits[0]).argmax(1) == digits[1]).sum())
    assert found["clean accuracy"].found.startswith(f"{right} of 64")
    assert found["accuracy by batch"].found.startswith("1: ")
    assert "of the first" not in found["accuracy by batch"].found  # all are seen one by one: no more than 64
    assert "0 predictions differ" in found["accuracy by batch"].found
    assert found["weights"].found.startswith("float32")
    assert net.training is False


@pytest.mark.parametrize(
    ("what", "state", "before", "after", "words"),
    [
        ("outputs", "look", None, lambda z: z.softmax(1), "probabilities"),
        ("randomness", "bad", lambda x: x + 0.2 * torch.rand_like(x), None, "move by up to"),
        ("batch", "bad", lambda x: x - x.mean(0, keepdim=True), None, "with its batch"),
        ("gradients", "bad", None, lambda z: z.detach(), "no gradient"),
        ("gradients", "look", None, lambda z: z * 1e4, "cross-entropy has no gradient"),
        ("clean accuracy", "bad", None, lambda z: -z, "of 64"),
        ("normalisation", "bad", lambda x: x / 255, None, "0 to 255"),
        ("accuracy by batch", "look", lambda x: x - x.mean(0, keepdim=True), None, "predictions differ"),
    ],
)
def test_flaws_are_named(what, state, before, after, words, net, digits) -> None:
    model = Around(net, before or (lambda x: x), after or (lambda z: z))
    found = lines(model, digits)[what]
    assert (found.state, words in found.found) == (state, True), found
    assert found.advice


def test_draws_are_not_taken_for_batch_statistics(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    found = lines(Around(net, lambda x: x + torch.rand_like(x), lambda z: z), digits)["accuracy by batch"]
    assert (found.state, found.advice) == ("ok", ""), found
    assert found.found.endswith("predictions differ, as they may by the draws alone")


def test_the_advised_normalisation_works(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    model = Around(net, lambda x: x * 0.3081 + 0.1307)  # was trained on inputs so normalised
    found = lines(model, digits)["normalisation"]
    assert found.advice == "give --normalize 0.1307 0.3081"
    assert lines(model, digits, normalize=(0.1307, 0.3081))["normalisation"].state == "ok"


def test_half_precision_is_named(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    model = Around(net.double(), lambda x: x.double())
    found = lines(model, digits)["weights"]
    assert found.state == "look"
    assert found.found.startswith("float64")


def test_memory_counts_what_autograd_keeps() -> None:
    model = nn.Sequential(nn.Linear(100, 1000), nn.ReLU(), nn.Linear(1000, 2))
    x = torch.rand(4, 100, requires_grad=True)
    held = _saved_bytes(model, lambda: model(x))
    # The input, what follows the ReLU (kept once for it and once for the next product: one storage).
    assert held == 4 * (100 + 1000) * 4


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "robust", "doctor", *arguments], capture_output=True, text=True
    )


def test_the_command(tmp_path: Path) -> None:
    save_weights(robust.load("builtin:digits-mlp", device="cpu").model, tmp_path / "w.safetensors")
    done = run(
        "builtin:digits-mlp", "builtin:digits", "--weights", str(tmp_path / "w.safetensors"), "--limit", "64"
    )
    assert done.returncode == 0, done.stderr
    assert "bad   clean accuracy" in done.stdout  # fresh weights guess
    assert "micro-batch" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_model_without_data() -> None:
    done = run("builtin:digits-mlp")
    assert done.returncode == 2
    assert (
        done.stderr.strip() == "robust: doctor: MODEL needs DATA to look at it with, such as builtin:digits"
    )


def test_accuracy_one_by_one_says_on_how_many(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    twice = tuple(torch.cat([part, part]) for part in digits)
    assert " of the first 64, 7: " in lines(net, twice)["accuracy by batch"].found  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["--weights=nope.safetensors", "--limit=3"])
def test_what_is_for_a_model_is_refused_without_one(
    tmp_path: Path, inside: Callable[..., Outcome], option: str
) -> None:
    done = inside("doctor", option, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "are for a MODEL" in done.stderr


def test_doctor_names_versions_and_what_is_missing(tmp_path: Path, inside: Callable[..., Outcome]) -> None:
    done = inside("doctor", cwd=tmp_path)
    assert done.returncode == 0
    assert "torch" in done.stdout
    assert "python" in done.stdout
    assert ("not installed" in done.stdout) == ('pip install "robust-harness[' in done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 80
