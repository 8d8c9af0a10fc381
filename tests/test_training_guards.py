"""Guards of the training loop: divergence, collapse, catastrophic overfitting, failures that count as none robust."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fitting import OPTIONS, THREAT, build_net, clean_loss, some_digits
from torch import Tensor, nn
from torch.nn import functional

from robust.defenses import Batch, EpochResult, Trainer
from robust.defenses.guards import Skill, overfits_catastrophically
from robust.defenses.training import _Fit
from robust.defenses.validation import Figures
from robust.errors import TrainingError


def test_a_loss_that_is_not_finite_stops_with_epoch_batch_and_advice() -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        value = clean_loss(model, batch)
        return value / 0 if batch.epoch == 2 and batch.progress > 0.29 else value

    with pytest.raises(TrainingError, match=r"epoch 2, batch 2 of 5; lower learning_rate \(now 0\.01\)"):
        Trainer(OPTIONS).fit(build_net(), some_digits(), loss, threat=None, title="")


def test_divergence_by_the_learning_rate_is_caught() -> None:
    options = replace(OPTIONS, optimizer="sgd", learning_rate=1e6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    with pytest.raises(TrainingError, match="lower learning_rate"):
        Trainer(options).fit(model, some_digits(), clean_loss, threat=None, title="")


def collapsing(model: nn.Module, batch: Batch) -> Tensor:
    """Learns for three epochs, then learns that everything is class 0."""
    return functional.cross_entropy(model(batch.x), batch.y * (batch.epoch <= 3))


def test_collapse_stops_early_and_a_rerun_does_not_forget_it(tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=30, learning_rate=0.05, schedule="constant")
    for _ in range(2):
        trainer = Trainer(options, out=tmp_path)
        with pytest.raises(
            TrainingError, match=r"after epoch \d+ every validation sample gets the same class"
        ):
            trainer.fit(build_net(), some_digits(), collapsing, threat=None, title="collapse")
        assert len(trainer.history) < 15


def test_a_handful_of_validation_samples_tells_nothing_of_a_collapse() -> None:
    """Two of them get one class from every other good model: small data could not be trained on."""
    epoch = EpochResult(1, 1, 0.1, 0.5, None, 0.1, 1.0)
    for samples in (2, 500):
        skill = Skill(10, samples)
        skill.note(0.5, is_constant=True)
        if samples == 2:
            skill.check([epoch], over=True)
        else:
            with pytest.raises(TrainingError, match="same class"):
                skill.check([epoch], over=True)


def test_collapse_at_the_end_is_no_result() -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(batch.x), batch.y * 0)

    with pytest.raises(TrainingError, match="after epoch 4"):
        Trainer(OPTIONS).fit(build_net(), some_digits(), loss, threat=None, title="")


class BreaksUnderAttack(nn.Module):
    """Finite where no gradient is taken, NaN where one is."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build_net()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out * float("nan") if x.requires_grad else out


def test_validation_counts_no_failure_as_robust() -> None:
    trainer = Trainer(OPTIONS)
    trainer.fit(BreaksUnderAttack(), some_digits(), clean_loss, threat=THREAT, title="")
    assert trainer.history[-1].clean_accuracy > 0.3
    assert trainer.history[-1].robust_accuracy == 0


def test_catastrophic_overfitting_is_undone_and_the_step_lowered(tmp_path: Path) -> None:
    """PGD accuracy is reported to fall in epoch 3 while FGSM's stays: weights go back, steps are halved."""
    seen: list[tuple[int, float]] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        if not seen or seen[-1] != (batch.epoch, batch.damping):
            seen.append((batch.epoch, batch.damping))
        return clean_loss(model, batch)

    good = EpochResult(2, 4, 1.0, 0.9, 0.6, 0.1, 0.0, 0.65, 0.9)
    bad = replace(good, epoch=3, robust_accuracy=0.1, fgsm_accuracy=0.8)
    honest = replace(bad, fgsm_accuracy=0.2)
    assert overfits_catastrophically(bad, [good])
    assert not overfits_catastrophically(honest, [good])
    assert not overfits_catastrophically(bad, [replace(good, rolled_back=True)])

    model, data = build_net(), some_digits()
    run = _Fit(model, data, data, None, loss, THREAT, replace(OPTIONS, schedule="constant"), 1.0, 1)
    run.epoch(1, None)
    before = copy.deepcopy(run.model.state_dict())
    run.history[0] = replace(run.history[0], robust_accuracy=2.0)  # whatever comes is far below
    run.validator.figures = lambda counts: Figures(0.9, 0.1, 0.8, 0.1, False)  # type: ignore[method-assign]
    run.epoch(2, None)
    assert run.history[-1].rolled_back
    assert all(torch.equal(before[key], value) for key, value in run.model.state_dict().items())
    run.epoch(3, None)
    assert seen == [(1, 1.0), (2, 1.0), (3, 0.5)]
    assert run.history[-1].learning_rate == pytest.approx(OPTIONS.learning_rate / 2)
