"""The training loop: exact resume, guards, what it must leave alone, what it must refuse."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robust.defenses import RECIPES, Batch, EpochResult, Trainer, TrainingOptions, make_defense
from robust.defenses.data import batches, crop_and_flip, mixed_batches
from robust.defenses.guards import Skill, overfits_catastrophically
from robust.defenses.schedules import rate
from robust.defenses.training import _Fit
from robust.defenses.validation import Figures
from robust.errors import DataError, InputError, ModelError, TrainingError, UnsupportedError
from robust.rng import Streams
from robust.sources import Samples, load_data
from robust.threat import Linf, Threat

OPTIONS = TrainingOptions(epochs=4, batch_size=64, learning_rate=1e-2, device="cpu")
THREAT = Linf("0.1")


def build_net() -> nn.Module:
    """Batch norm and dropout: both would betray a resume that is not exact."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 24),
            nn.BatchNorm1d(24),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(24, 10),
        )


def some_digits(count: int = 300) -> Samples:
    return load_data("builtin:digits:train").take(slice(0, count))


def clean_loss(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch.x), batch.y)


def train(options: TrainingOptions = OPTIONS, **keywords: object) -> tuple[nn.Module, Trainer]:
    trainer = Trainer(options, **keywords)  # type: ignore[arg-type]
    return trainer.fit(build_net(), some_digits(), clean_loss, threat=THREAT, title="clean"), trainer


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (key, left), right in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(left, right), key


def without_time(history: list[EpochResult]) -> list[EpochResult]:
    return [replace(result, seconds=0.0) for result in history]


class Interrupted(Exception):  # noqa: N818 - stands for Ctrl-C
    pass


def stop_after(epoch: int) -> Callable[[EpochResult], None]:
    def progress(result: EpochResult) -> None:
        if result.epoch == epoch:
            raise Interrupted

    return progress


# -- what comes out ---------------------------------------------------------------------------------


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


def test_epochs_shuffle_differently_and_leave_no_tiny_batch() -> None:
    one, two = (batches(129, 64, seed, torch.device("cpu")) for seed in (1, 2))
    assert [len(part) for part in one] == [43, 43, 43]
    assert sorted(torch.cat(one).tolist()) == list(range(129))
    assert not torch.equal(torch.cat(one), torch.cat(two))


@pytest.mark.parametrize("count", [3, 25, 26])
def test_pairs_of_an_odd_count_leave_no_sample_alone(count: int) -> None:
    parts = mixed_batches(count, 0, 2, 0.7, 0, torch.device("cpu"))
    assert {len(part) for part in parts} <= {2, 3}
    assert torch.cat(parts).sort().values.tolist() == list(range(count))


def test_ticks_count_the_batches() -> None:
    seen: list[tuple[int, int]] = []
    train(replace(OPTIONS, epochs=1), ticks=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]


def test_eight_bit_samples_train_like_their_floats() -> None:
    data = some_digits()
    stored = Samples((data.rows(slice(None)) * 255).round().to(torch.uint8), data.y, data.ids)
    scaled = Samples(stored.rows(slice(None)), data.y, data.ids)
    nets = [
        Trainer(replace(OPTIONS, epochs=1)).fit(build_net(), part, clean_loss, threat=THREAT, title="")
        for part in (stored, scaled)
    ]
    assert_same(*nets)


def test_crops_are_windows_of_the_padded_image() -> None:
    x = torch.rand(40, 2, 8, 8)
    out = crop_and_flip(x, Streams(0, torch.arange(40), ("augment", 1)))
    padded = functional.pad(x, (4, 4, 4, 4))
    flips = 0
    for i in range(40):
        windows = padded[i].unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4).reshape(-1, 2, 8, 8)
        plain = bool((windows == out[i]).flatten(1).all(1).any())
        flipped = bool((windows.flip(3) == out[i]).flatten(1).all(1).any())
        assert plain or flipped
        flips += flipped
    assert 5 < flips < 35


def test_recipes_train_in_every_precision() -> None:
    options = replace(
        RECIPES["cifar10"],
        epochs=1,
        learning_rate=0.01,
        device="cpu",
        precision="bf16-mixed",
        gradient_clip=1.0,
    )
    trainer = Trainer(replace(options, augment=True))
    trainer.fit(build_net(), some_digits(), clean_loss, threat=THREAT, title="")
    assert len(trainer.history) == 1


# -- what is left alone -----------------------------------------------------------------------------


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


# -- resume -----------------------------------------------------------------------------------------


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole, whole_trainer = train()
    with pytest.raises(Interrupted):
        train(out=tmp_path, progress=stop_after(2))
    seen: list[int] = []
    resumed, trainer = train(out=tmp_path, progress=lambda result: seen.append(result.epoch))
    assert seen == [3, 4]
    assert_same(whole, resumed)
    assert without_time(trainer.history) == without_time(whole_trainer.history)
    finished, _ = train(out=tmp_path, progress=lambda result: seen.append(result.epoch))
    assert seen == [3, 4]
    assert_same(whole, finished)


def test_kill_9_in_the_middle_of_an_epoch_loses_only_that_epoch(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, torch\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from test_training import train\n"
        "calls = []\n"
        "def ticks(done, total):\n"
        "    calls.append(done)\n"
        "    if len(calls) == 2 * total + 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(out=Path(sys.argv[1]), ticks=ticks)\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    seen: list[int] = []
    resumed, _ = train(out=tmp_path, progress=lambda result: seen.append(result.epoch))
    assert seen == [3, 4]
    assert_same(resumed, train()[0])


def test_a_checkpoint_of_another_run_is_refused_unless_replaced(tmp_path: Path) -> None:
    train(out=tmp_path)
    other = replace(OPTIONS, learning_rate=1e-3)
    with pytest.raises(InputError, match=r"differs in learning_rate; choose another folder"):
        train(other, out=tmp_path)
    replaced, _ = train(other, out=tmp_path, resume=False)
    assert_same(replaced, train(other)[0])
    with pytest.raises(InputError, match="differs in data"):
        Trainer(other, out=tmp_path, validation=some_digits()).fit(
            build_net(), some_digits(200), clean_loss, threat=THREAT, title="clean"
        )


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"\x80\x04cos\nsystem\n"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    train(replace(OPTIONS, epochs=1), out=tmp_path)
    (path,) = tmp_path.glob("checkpoints/*.pt")
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.pt cannot be read"):
        train(replace(OPTIONS, epochs=1), out=tmp_path)


def test_a_checkpoint_with_altered_numbers_is_damaged(tmp_path: Path) -> None:
    model, _ = train(replace(OPTIONS, epochs=1), out=tmp_path)
    (path,) = tmp_path.glob("checkpoints/*.pt")
    content, bias = path.read_bytes(), next(iter(model.parameters())).detach().numpy().tobytes()
    assert bias in content
    path.write_bytes(content.replace(bias, bytes(len(bias))))
    with pytest.raises(
        InputError, match=r"model\.pt cannot be read \(.* is not what was written\); delete it"
    ):
        train(replace(OPTIONS, epochs=1), out=tmp_path)


# -- guards -----------------------------------------------------------------------------------------


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


# -- refused before the first epoch -----------------------------------------------------------------


def never(model: nn.Module, batch: Batch) -> Tensor:
    raise AssertionError("an epoch began")


NAN = Samples(torch.full((50, 1, 8, 8), torch.nan), torch.zeros(50, dtype=torch.int64), torch.arange(50))


@pytest.mark.parametrize(
    ("model", "data", "threat", "error", "message"),
    [
        (nn.Linear(3, 10), some_digits(), None, ModelError, r"fails on samples of shape \(1, 8, 8\)"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 4)),
            some_digits(),
            None,
            DataError,
            r"labels go up to 9, but the model has 4 classes",
        ),
        (nn.Flatten(), some_digits(), None, ModelError, "no parameter to train"),
        (build_net(), NAN, None, DataError, "finite"),
        (build_net(), some_digits(9), None, InputError, "too few"),
        (build_net(), some_digits(), Linf("1.5"), InputError, "eps is larger than the box"),
        (build_net(), some_digits(), Threat("l2", "9"), InputError, "eps is larger than the box"),
        (build_net(), some_digits(), Threat("l0", "4"), UnsupportedError, "not for l0"),
        (build_net(), some_digits(), Linf("0.1", (0.0, 0.5)), DataError, "expected values in"),
    ],
)
def test_what_cannot_fit_is_refused(
    model: nn.Module, data: Samples, threat: Threat | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Trainer(OPTIONS).fit(model, data, never, threat=threat, title="")


def test_validation_of_another_shape_is_refused() -> None:
    flat = some_digits(20)
    flat = Samples(flat.rows(slice(None)).flatten(1), flat.y, flat.ids)
    with pytest.raises(DataError, match=r"validation: expected samples of the training data's shape"):
        Trainer(OPTIONS, validation=flat).fit(build_net(), some_digits(), never, threat=None, title="")
    with pytest.raises(InputError, match="augment crops images"):
        Trainer(replace(OPTIONS, augment=True), validation=flat).fit(
            build_net(), flat, never, threat=None, title=""
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"validation_steps": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("inf")},
        {"weight_decay": -1.0},
        {"gradient_clip": 0.0},
    ],
)
def test_options_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        replace(OPTIONS, **wrong)  # type: ignore[arg-type]


def test_half_precision_needs_cuda() -> None:
    with pytest.raises(InputError, match="'16-mixed' needs CUDA"):
        train(replace(OPTIONS, precision="16-mixed"))


# -- averages, schedules, extra data, several processes, catastrophic overfitting ---------------------


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


def test_extra_data_makes_up_its_share_of_every_batch() -> None:
    parts = mixed_batches(100, 30, 50, 0.6, 7, torch.device("cpu"))
    assert [int((part < 100).sum()) for part in parts] == [20] * 5
    assert [int((part >= 100).sum()) for part in parts] == [30] * 5
    own = torch.cat(parts)
    assert sorted(own[own < 100].tolist()) == list(range(100))
    assert set(own[own >= 100].tolist()) == set(range(100, 130))
    extra = load_data("builtin:digits:train").take(slice(500, 900))
    trainer = Trainer(replace(OPTIONS, epochs=6), extra=extra)
    trainer.fit(build_net(), some_digits(60), clean_loss, threat=None, title="")
    assert trainer.history[-1].clean_accuracy > 0.6
    wide = Samples(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64), torch.arange(4))
    with pytest.raises(DataError, match="extra: expected samples of the training data's shape"):
        Trainer(OPTIONS, extra=wide).fit(build_net(), some_digits(), clean_loss, threat=None, title="")


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


_TOGETHER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import torch
from dataclasses import replace
from test_training import OPTIONS, THREAT, clean_loss, plain_net, some_digits
from robust.defenses import Trainer, make_defense
torch.set_num_threads(1)
options = replace(OPTIONS, epochs=2, batch_size=60)
trainer = Trainer(options, validation=some_digits(60), out=Path(sys.argv[1]))
net = make_defense("trades", steps=2).fit(plain_net(), some_digits(240), threat=THREAT, trainer=trainer)
"""


def plain_net() -> nn.Module:
    """No batch norm, whose statistics are each process's own, and no dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


@pytest.mark.slow
def test_two_processes_train_to_the_weights_of_one(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    script = tmp_path / "together.py"
    script.write_text(_TOGETHER)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, extra in (("one", []), ("two", launcher)):
        done = subprocess.run(
            [sys.executable, *extra, str(script), str(tmp_path / name), str(Path(__file__).parent)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    one, two = (
        torch.load(tmp_path / name / "checkpoints" / "model.pt", weights_only=True) for name in ("one", "two")
    )
    for key, start in plain_net().state_dict().items():
        apart, moved = one["model"][key] - two["model"][key], one["model"][key] - start
        assert apart.norm() < 0.05 * moved.norm(), key  # gradients are added up in another order
    first, second = (json.loads(state["history"])[-1] for state in (one, two))
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-3)
    assert first["clean_accuracy"] == pytest.approx(second["clean_accuracy"], abs=0.02)


# -- formats and compilers ----------------------------------------------------------------------------


def conv_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(72, 10),
        )  # fmt: skip


def test_channels_last_trains_to_the_same_weights_but_for_rounding() -> None:
    formats: list[bool] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        formats.append(batch.x.is_contiguous(memory_format=torch.channels_last) and batch.x.stride(1) == 1)
        return clean_loss(model, batch)

    data = some_digits()
    wide = Samples(data.rows(slice(None)).expand(-1, 3, -1, -1).contiguous(), data.y, data.ids)
    net = conv_net()
    net[0] = nn.Conv2d(3, 8, 3, padding=1)  # type: ignore[index,operator]
    nets = []
    for channels_last in (False, True):
        options = replace(OPTIONS, epochs=4, optimizer="sgd", channels_last=channels_last)
        nets.append(Trainer(options).fit(net, wide, loss, threat=None, title=""))
        assert formats[-1] is channels_last
    plain, last = nets
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index]
    for (key, a), b in zip(plain.state_dict().items(), last.state_dict().values(), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-3), key


def _compiles() -> bool:
    try:
        torch.compile(nn.Linear(2, 2))(torch.zeros(1, 2))
    except Exception:
        return False
    return True


@pytest.mark.slow
def test_compiled_training_ends_where_plain_training_does() -> None:
    if not _compiles():
        pytest.skip("needs a compiler that torch.compile can use")
    nets = []
    for compiled in (False, True):
        options = replace(OPTIONS, epochs=2, optimizer="sgd", compile=compiled)
        defense = make_defense("pgd-at", steps=2)
        nets.append(defense.fit(plain_net(), some_digits(), threat=THREAT, trainer=Trainer(options)))
    plain, fast = (dict(net.state_dict()) for net in nets)
    assert set(plain) == set(fast)
    for key, value in plain.items():
        assert torch.allclose(value, fast[key], atol=2e-3), key
