"""What the training loop gives back: the best epoch, the same for the same seed, the caller's own left alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from fitting import OPTIONS, THREAT, assert_same, build_net, clean_loss, plain_net, some_digits, train
from torch import Tensor, nn
from torch.nn import functional

from robust.defenses import Batch, Trainer, make_defense
from robust.defenses.schedules import rate
from robust.sources import load_data
from robust.threat import Linf


def test_it_learns_and_returns_the_best_epoch_in_eval_mode() -> None:
    model, trainer = train(replace(OPTIONS, epochs=15))
    test = load_data("builtin:digits:test")
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        assert (model(test.rows(slice(None))).argmax(1) == test.y).float().mean() > 0.8
    assert [r.epoch for r in trainer.history] == list(range(1, 16))
    assert trainer.history[-1].loss < trainer.history[0].loss / 3
    assert trainer.best is not None
    assert trainer.best.robust_accuracy == max(r.robust_accuracy or 0 for r in trainer.history)


def test_validation_takes_any_number_of_samples() -> None:
    """More than a batch of them, of which the first 128 tell the alignment."""
    many = some_digits(600)
    trainer = Trainer(replace(OPTIONS, epochs=2, validation_steps=1), validation=many)
    trainer.fit(build_net(), some_digits(), clean_loss, threat=THREAT, title="")
    last = trainer.history[-1]
    assert last.robust_accuracy is not None
    assert last.fgsm_accuracy is not None
    assert last.alignment is not None
    assert 0 <= last.fgsm_accuracy <= last.clean_accuracy
    assert 0.3 < last.alignment <= 1


def test_weights_are_those_of_the_best_epoch_not_the_last() -> None:
    """Labels are shuffled from epoch 4 on: what follows is worse, and must not be what is returned."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        y = batch.y if batch.epoch < 4 else batch.y.roll(1)
        return functional.cross_entropy(model(batch.x), y)

    validation = load_data("builtin:digits:test")
    trainer = Trainer(replace(OPTIONS, epochs=6, schedule="constant"), validation=validation)
    model = trainer.fit(build_net(), some_digits(), loss, threat=None, title="spoilt")
    with torch.no_grad():
        accuracy = float((model(validation.rows(slice(None))).argmax(1) == validation.y).float().mean())
    assert trainer.best is not None
    assert trainer.best.epoch < 5
    assert accuracy == pytest.approx(trainer.best.clean_accuracy)
    assert trainer.history[-1].clean_accuracy < accuracy - 0.1


def test_what_does_not_train_against_the_threat_is_chosen_by_clean_accuracy() -> None:
    trainer = Trainer(replace(OPTIONS, epochs=6))
    make_defense("none").fit(build_net(), some_digits(), threat=Linf("0.3"), trainer=trainer)
    assert trainer.best is not None
    assert trainer.best.clean_accuracy == max(r.clean_accuracy for r in trainer.history)
    assert not any(r.rolled_back for r in trainer.history)


def test_same_seed_same_weights_other_seed_other_weights() -> None:
    first, _ = train()
    torch.manual_seed(99)
    again, _ = train()
    assert_same(first, again)
    other, _ = train(replace(OPTIONS, seed=1))
    assert not torch.equal(first[1].weight, other[1].weight)  # type: ignore[index]


def test_ticks_count_the_batches() -> None:
    seen: list[tuple[int, int]] = []
    train(replace(OPTIONS, epochs=1), ticks=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]


def test_the_callers_model_and_the_global_random_state_are_untouched() -> None:
    model = build_net()
    model[2].eval()  # type: ignore[index]
    model[1].weight.requires_grad_(False)  # type: ignore[index]
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    fitted = Trainer(OPTIONS).fit(model, some_digits(), clean_loss, threat=THREAT, title="")
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(fitted[1].weight, before["1.weight"])  # type: ignore[index]  # frozen stays frozen
    assert not torch.equal(fitted[5].weight, before["5.weight"])  # type: ignore[index]


def test_the_average_of_the_weights_is_what_is_validated_and_returned() -> None:
    """With so slow an average, what is returned are the weights after the first step of all."""
    plain, _ = train(replace(OPTIONS, epochs=1, batch_size=300))
    averaged, _ = train(replace(OPTIONS, epochs=1, batch_size=300, ema=0.5))
    assert_same(plain, averaged)  # a single step: the average begins there
    slow, _ = train(replace(OPTIONS, epochs=3, batch_size=300, ema=1 - 1e-7))
    fast, _ = train(replace(OPTIONS, epochs=3, batch_size=300))
    first = build_net()
    assert (slow[5].weight - first[5].weight).abs().max() < (fast[5].weight - first[5].weight).abs().max()  # type: ignore[index]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("one-cycle", [0.04, 0.5, 1.0, 2 / 3, 1 / 3]),
        ("cyclic", [0.025, 0.3125, 0.625, 5 / 6, 5 / 12]),
        ("step", [1.0, 1.0, 1.0, 0.1, 0.01]),
        ("cosine", [1.0, 0.9619398, 0.8535534, 0.5, 0.1464466]),
        ("constant", [1.0] * 5),
    ],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    options = replace(OPTIONS, schedule=schedule)  # type: ignore[arg-type]
    found = [rate(options, progress) for progress in (0, 0.125, 0.25, 0.5, 0.75)]
    assert found == pytest.approx(expected)


class Shifts(nn.Module):
    """Scales its input, in place or aside."""

    def __init__(self, *, aside: bool) -> None:
        super().__init__()
        self.net, self._aside = plain_net(), aside

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone() if self._aside else x
        out: Tensor = self.net(x.sub_(0.3).div_(0.7))
        return out


@pytest.mark.parametrize("name", ["pgd-at+awp", "free", "grad-align", "distillation"])
def test_a_model_that_writes_into_its_input_trains_to_the_weights_of_one_that_does_not(name: str) -> None:
    writes, plain = (
        make_defense(name).fit(
            Shifts(aside=aside),
            some_digits(40),
            threat=THREAT,
            trainer=Trainer(replace(OPTIONS, epochs=1, batch_size=20)),
        )
        for aside in (False, True)
    )
    assert_same(writes, plain)
    assert not writes._forward_pre_hooks
