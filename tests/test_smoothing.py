"""Randomised smoothing: closed forms, abstention, independence of the batch, the printed table."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Linear
from scipy.stats import norm
from torch import Tensor, nn

import robust
from robust import smoothing
from robust.cli import main
from robust.defenses import GaussianTraining, Trainer, TrainingOptions
from robust.errors import InputError, StoreError
from robust.smoothing import ABSTAIN, Interrupted, SmoothedTarget, certify
from robust.sources import Samples, load_data, load_model, save_weights

SIGMA = 0.5


def linear() -> nn.Module:
    """Two classes in the plane, the boundary x0 = 0.5; a smoothed half-space has the distance as its radius."""
    return Linear(torch.tensor([[-3.0, 0.0], [3.0, 0.0]]), torch.tensor([1.5, -1.5]))


def points(*first: float) -> Samples:
    x = torch.tensor([[value, 0.3] for value in first])
    return Samples(x, (x[:, 0] > 0.5).long(), torch.arange(len(x)) + 7)


def test_the_radius_of_a_half_space_is_its_distance() -> None:
    data = points(0.1, 0.3, 0.7, 1.0)
    found = certify(linear(), data, sigma=SIGMA, n=20_000, device="cpu").table
    distance = (data.x[:, 0] - 0.5).abs()
    assert found["prediction"].tolist() == data.y.tolist()
    for row, true in zip(found.itertuples(), distance.tolist(), strict=True):
        assert row.radius <= true  # a lower bound, and wrong with probability .001
        assert row.radius > true - 0.03
        p = float(norm.cdf(true / SIGMA))
        assert abs(row.count / 20_000 - p) < 4 * math.sqrt(p * (1 - p) / 20_000)


def test_it_abstains_on_the_boundary_and_never_certifies_beyond_n() -> None:
    found = certify(linear(), points(0.5, 1.0), sigma=0.05, n=1000, device="cpu")
    assert found.table["prediction"].tolist()[0] == ABSTAIN
    assert found.table["radius"].tolist()[0] == 0
    assert found.abstained == 0.5
    most = 0.05 * norm.ppf(0.001 ** (1 / 1000))  # all n draws agree
    assert found.table["radius"].tolist()[1] == pytest.approx(most)
    assert found.radii() == pytest.approx([0, 0.05, 0.1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_answers_that_are_not_finite_certify_nothing(value: float) -> None:
    class Broken(nn.Module):
        """Says nothing on the right of x0 = 0.5, which class 0 would win there."""

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = linear()(x)
            return torch.where(x[:, :1] > 0.5, torch.tensor([value, 0.0]), logits)

    data = points(0.1, 0.9)
    found = certify(Broken(), Samples(data.x, 0 * data.y, data.ids), sigma=0.05, n=1000, device="cpu")
    assert found.table["prediction"].tolist() == [0, ABSTAIN]
    assert found.not_finite == found.to_dict()["not_finite"] == 1100
    assert "1100 answers of the model were not finite" in str(found)


def test_certified_accuracy_falls_with_the_radius_and_counts_errors() -> None:
    data = points(0.1, 0.3, 0.7, 1.0)
    wrong = Samples(data.x, 1 - data.y, data.ids)
    good, bad = (certify(linear(), part, sigma=SIGMA, n=2000, device="cpu") for part in (data, wrong))
    curve = [row["accuracy"] for row in good.rows([0, 0.1, 0.3, 0.4, 2])]
    assert curve == [1.0, 1.0, 0.5, 0.25, 0.0]
    assert bad.accuracy() == 0


def test_a_certificate_is_the_samples_own() -> None:
    data = points(0.1, 0.45, 0.7, 1.0)
    whole = certify(linear(), data, sigma=SIGMA, n=500, device="cpu").table
    alone = certify(linear(), data.take([2]), sigma=SIGMA, n=500, device="cpu").table
    assert alone.iloc[0].to_dict() == whole.iloc[2].to_dict()
    other = certify(linear(), data, sigma=SIGMA, n=500, seed=1, device="cpu").table
    assert other["count"].tolist() != whole["count"].tolist()


def test_an_interruption_keeps_the_certificates_that_are_done() -> None:
    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    data = points(0.1, 0.45, 0.7, 1.0)
    whole = certify(linear(), data, sigma=SIGMA, n=500, device="cpu")
    with pytest.raises(Interrupted) as cut:
        certify(linear(), data, sigma=SIGMA, n=500, device="cpu", progress=stop)
    found = cut.value.found
    assert found.table.equals(whole.table.head(2))
    assert (found.asked, found.to_dict()["samples"], found.to_dict()["asked"]) == (4, 2, 4)
    assert "the first 2 of 4 samples" in str(found)
    assert "first" not in str(whole)


def test_no_certified_sample_is_broken_by_an_attack() -> None:
    """Noise-trained digits: within its certified radius the smoothed classifier stands every attack."""
    train, test = load_data("builtin:digits:train"), load_data("builtin:digits:test").take(slice(0, 12))
    base = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    trainer = Trainer(TrainingOptions(epochs=6, learning_rate=1e-2, device="cpu"))
    net = GaussianTraining(sigma=0.25).fit(base, train.take(slice(0, 700)), threat=None, trainer=trainer)
    found = certify(net, test, sigma=0.25, n=500, device="cpu")
    assert found.accuracy(0.25) > 0.5
    target = SmoothedTarget(net, sigma=0.25, draws=16, device="cpu")
    report = robust.evaluate(target, test, threat="l2:0.25", suite="quick")
    assert not [finding for finding in report.findings if finding["check"] == "randomized"]
    certified = found.table[(found.table.prediction == found.table.label) & (found.table.radius >= 0.35)]
    broken = report.verdicts[report.verdicts.status == "broken"]
    assert len(certified) > 2
    assert not set(certified.sample_id) & set(broken.sample_id)


def test_a_smoothed_target_is_checked_as_the_deterministic_model_that_it_is(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    class OtherGradients(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = net(1 - x if torch.is_grad_enabled() else x)
            return out

    x, y = digits[0][:40], digits[1][:40]
    for model, named in ((net, "short-search"), (OtherGradients(), "gradient-model")):
        target = SmoothedTarget(model, sigma=0.1, draws=32, device="cpu")
        report = robust.evaluate(target, (x, y), threat="linf:0.02", suite="fgsm")
        assert named in {finding["check"] for finding in report.findings}


def test_the_smoothed_target_is_the_mean_probability_and_passes_gradients() -> None:
    target = SmoothedTarget(linear(), sigma=SIGMA, draws=1000, device="cpu")
    x = points(0.1, 0.6).x.requires_grad_()
    with target:
        logits = target.logits(x)
        again = target.logits(x)
        (gradient,) = torch.autograd.grad(logits[:, 1].sum(), x)
    assert torch.equal(logits, again)
    noise = torch.linspace(-5, 5, 2001)
    weight = (-noise.square() / 2).exp()
    for value, row in zip((0.1, 0.6), logits.detach().exp(), strict=True):
        mean = (torch.sigmoid(6 * (value + SIGMA * noise - 0.5)) * weight).sum() / weight.sum()
        assert float(row[1]) == pytest.approx(float(mean), abs=0.04)
    assert bool((gradient[:, 0] > 0).all())


@pytest.mark.parametrize(
    "wrong",
    [
        {"sigma": 0.0}, {"n0": 0}, {"n": 0}, {"n": 1e3}, {"alpha": 1.0}, {"sigma": math.nan}, {"seed": 1.5},
        {"sigma": "0.25"}, {"sigma": None}, {"alpha": "0.01"},
    ],
)  # fmt: skip
def test_parameters_out_of_range(wrong: dict[str, object]) -> None:
    options = {"sigma": 0.25, **wrong}
    with pytest.raises(InputError, match=f"^{next(iter(wrong))}: expected"):
        certify(linear(), points(0.1), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"sigma": -1.0}, {"draws": 0}, {"draws": 2.5}])
def test_parameters_of_a_smoothed_target_out_of_range(wrong: dict[str, float]) -> None:
    options = {"sigma": 0.25, **wrong}
    with pytest.raises(InputError, match=f"^{next(iter(wrong))}: expected"):
        SmoothedTarget(linear(), device="cpu", **options)  # type: ignore[arg-type]


def test_certificates_that_cannot_be_written_leave_those_that_were_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certify(linear(), points(0.1), sigma=SIGMA, n=20, device="cpu").save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    more = certify(linear(), points(0.1, 0.3), sigma=SIGMA, n=20, device="cpu")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StoreError, match="No space left"):
        more.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`robust certify` in a folder with weights: exit status, standard output and error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["robust", "certify", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    save_weights(load_model("builtin:digits-mlp"), tmp_path / "w.safetensors")
    return run


_DIGITS = ("--model", "builtin:digits-mlp", "--weights", "w.safetensors", "--data", "builtin:digits", "--limit", "5",
    "--sigma", "0.25", "--n", "200", "--radii", "0,0.25", "--out", "kept", "--json", "r.json", "--device", "cpu")  # fmt: skip


def test_an_interrupted_command_keeps_the_certificates_that_are_done(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = smoothing._certified, []

    def stop_in_the_third(*given: Any, **options: Any) -> object:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*given, **options)

    monkeypatch.setattr(smoothing, "_certified", stop_in_the_third)
    status, out, err = command(*_DIGITS)
    assert status == 130
    assert "the first 2 of 5 samples" in out
    assert err == "robust: interrupted; 2 of 5 samples were certified\n"
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["samples"], found["asked"]) == (2, 5)
    assert (tmp_path / "kept" / "certificates.parquet").exists()


def test_the_command_prints_the_table_and_keeps_the_certificates(tmp_path: Path, command: Command) -> None:
    status, out, err = command(*_DIGITS)
    assert status == 0, err
    assert "certified accuracy" in out
    assert "n 200, alpha 0.001" in out
    assert max(map(len, out.splitlines())) <= 80
    found = json.loads((tmp_path / "r.json").read_text())
    assert [row["radius"] for row in found["certified"]] == [0, 0.25]
    assert (tmp_path / "kept" / "certificates.parquet").exists()
    for radii in ("x", "0,nan", "0,inf", "-1"):
        status, out, err = command(
            "--model", "builtin:digits-mlp", "--data", "builtin:digits", "--sigma", "1", f"--radii={radii}"
        )
        assert (status, out) == (2, "")
        assert err.startswith("robust: --radii: expected finite numbers")
        assert len(err.splitlines()) == 1
