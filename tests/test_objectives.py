"""Every objective against its paper's formula, written down a second time."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from robust.defenses import (
    ARD,
    AWP,
    ELLE,
    FGSMRS,
    MART,
    NFGSM,
    RSLAD,
    TRADES,
    Batch,
    FreeTraining,
    GaussianTraining,
    GradAlign,
    ObjectiveDefense,
    PGDTraining,
    Trainer,
    TrainingOptions,
    make_defense,
)
from robust.errors import InputError, ModelError
from robust.sources import Samples, load_data
from robust.target import Target
from robust.threat import Linf, Threat

THREAT = Linf("0.1")
TINY = Linf("1e-7")


def net(seed: int = 1) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)
        )


@pytest.fixture
def batch() -> Batch:
    data = load_data("builtin:digits:train").take(slice(0, 40))
    return Batch(data.rows(slice(None)), data.y, data.ids, seed=0, epoch=1, progress=0.9)


def kl_div(clean: Tensor, other: Tensor) -> Tensor:
    return functional.kl_div(other.log_softmax(1), clean.softmax(1), reduction="none").sum(1)


# -- losses -------------------------------------------------------------------------------------------


def test_trades_is_clean_cross_entropy_and_divergence(batch: Batch) -> None:
    model = net().eval()
    points = (batch.x + 0.1).clamp(0, 1)
    clean, adversarial = model(batch.x), model(points)
    expected = functional.cross_entropy(clean, batch.y) + 3 * kl_div(clean, adversarial).mean()
    assert torch.allclose(TRADES(beta=3.0).loss(model, batch, points, THREAT), expected)


def test_mart_boosts_and_weighs_by_wrongness(batch: Batch) -> None:
    model = net().eval()
    points = (batch.x + 0.1).clamp(0, 1)
    clean, adversarial = model(batch.x), model(points)
    p = adversarial.softmax(1)
    others = torch.stack(
        [torch.cat([row[:y], row[y + 1 :]]).max() for row, y in zip(p, batch.y, strict=True)]
    )
    boosted = functional.cross_entropy(adversarial, batch.y) - (1.0001 - others).log().mean()
    weights = 1 - clean.softmax(1)[torch.arange(40), batch.y]
    expected = boosted + 5 * (kl_div(clean, adversarial) * weights).mean()
    assert torch.allclose(MART().loss(model, batch, points, THREAT), expected, rtol=1e-5)


def test_robust_distillation_is_zero_for_a_student_that_is_the_teacher(batch: Batch) -> None:
    model = net().eval()
    for defense in (ARD(teacher=model, warmup=0.0), RSLAD(teacher=model, warmup=0.0)):
        assert defense.step(TINY)(copy.deepcopy(model), batch).item() == pytest.approx(0, abs=1e-4)
        assert defense.step(THREAT)(net(2).eval(), batch).item() > 0.01
    points = (batch.x + 0.1).clamp(0, 1)
    student, soft = net(2).eval(), model(batch.x)
    hard = functional.cross_entropy(student(batch.x), batch.y)
    ard = ARD(teacher=model, temperature=4.0, alpha=0.7)
    expected = 0.7 * 16 * kl_div(soft / 4, student(points) / 4).mean() + 0.3 * hard
    assert torch.allclose(ard.loss(student, batch, points, THREAT), expected)
    rslad = 5 / 6 * kl_div(soft, student(points)).mean() + 1 / 6 * kl_div(soft, student(batch.x)).mean()
    assert torch.allclose(RSLAD(teacher=model).loss(student, batch, points, THREAT), rslad)


def test_a_missing_teacher_is_named_before_the_first_epoch() -> None:
    data = load_data("builtin:digits:train").take(slice(0, 40))
    for name in ("ard", "rslad"):
        with pytest.raises(InputError, match=rf"{name}: teacher: this objective learns from a robust model"):
            make_defense(name).fit(net(), data, threat=THREAT, trainer=Trainer(TrainingOptions(epochs=1)))


def test_a_teacher_that_nothing_has_trained_is_refused() -> None:
    with pytest.raises(InputError, match="ard: teacher_weights: builtin:digits-mlp has initial weights"):
        ARD(teacher="builtin:digits-mlp").check(THREAT)


@pytest.mark.parametrize("name", ["ard", "rslad", "rslad+awp"])
@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        (nn.Linear(5, 10), r"fails on samples of shape \(1, 8, 8\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "has 3 classes, the model to train 10"),
        (3, "expected a model SPEC, a module or a Target, got 3"),
    ],
    ids=["shape", "classes", "type"],
)
def test_a_teacher_of_other_data_is_refused(name: str, teacher: object, said: str, batch: Batch) -> None:
    with pytest.raises(InputError, match=f"{name.partition('+')[0]}: teacher: {said}"):
        make_defense(name, teacher=teacher).step(THREAT)(net(), batch)  # type: ignore[attr-defined]


def test_a_teacher_may_be_named_by_a_path_in_a_record() -> None:
    told = json.loads(json.dumps(ARD(teacher=Path("nets") / "teacher.py:make").parameters))
    assert Path(told["teacher"]) == Path("nets/teacher.py:make")


def test_a_target_teaches_what_its_module_does(batch: Batch) -> None:
    teacher, student = net(2).eval(), net().eval()
    half = Target(teacher, normalize=(0.0, 2.0), device="cpu")
    plain = nn.Sequential(Scale(0.5), teacher)
    losses = [RSLAD(teacher=given).step(THREAT)(student, batch).item() for given in (half, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert RSLAD(teacher=half).parameters["teacher"].startswith("sha256:")
    assert make_defense("rslad+awp", teacher=half).parameters["options"]["teacher"].startswith("sha256:")
    with pytest.raises(InputError, match="teacher: its bounds are"):
        RSLAD(teacher=Target(teacher, bounds=(0, 2), device="cpu")).check(THREAT)


class Scale(nn.Module):
    """Inputs times a factor."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return self.by * x


@pytest.mark.parametrize("defense", [GradAlign(warmup=0.0), ELLE(warmup=0.0)])
def test_regularisers_vanish_where_the_loss_is_locally_linear(
    defense: GradAlign | ELLE, batch: Batch
) -> None:
    model = net().eval()

    def penalty(threat: Threat) -> float:
        doubled = replace(defense, weight=2 * defense.weight)
        x = batch.x
        return (doubled.loss(model, batch, x, threat) - defense.loss(model, batch, x, threat)).item()

    assert penalty(TINY) == pytest.approx(0, abs=1e-5)
    assert penalty(Linf("0.3")) > 1e-4
    assert penalty(Linf("0.5")) > penalty(Linf("0.2"))


class OnceReLU(torch.autograd.Function):
    """A ReLU whose gradient has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        passed: Tensor = gradient * (ctx.saved_tensors[0] > 0)
        return passed


class Once(nn.Module):
    """The net with that ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net[4](OnceReLU.apply(self.net[:3](x)))
        return out


def test_a_model_whose_gradients_cannot_be_differentiated_is_told_by_grad_align_alone() -> None:
    data = load_data("builtin:digits:train").take(slice(0, 40))
    options = TrainingOptions(epochs=1, batch_size=20, device="cpu")
    for name in ("grad-align", "grad-align+awp"):
        with pytest.raises(ModelError, match=r"^grad-align: model: .* differentiate twice .* such as 'elle'"):
            make_defense(name).fit(Once(), data, threat=THREAT, trainer=Trainer(options))
    make_defense("elle").fit(Once(), data, threat=THREAT, trainer=Trainer(options))


def test_label_smoothing_reaches_the_objectives(batch: Batch) -> None:
    model, smooth = net().eval(), replace(batch, label_smoothing=0.2)
    expected = functional.cross_entropy(model(batch.x), batch.y, label_smoothing=0.2)
    for name in ("none", "pgd-at", "fgsm-rs", "n-fgsm", "gaussian"):
        defense = make_defense(name)
        assert isinstance(defense, ObjectiveDefense)
        assert torch.equal(defense.loss(model, smooth, batch.x, THREAT), expected)


# -- points -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", [THREAT, Threat("l2", "0.5"), Threat("l1", "3")])
@pytest.mark.parametrize(
    "defense",
    [PGDTraining(steps=3), TRADES(steps=3), MART(steps=3), FGSMRS(), GradAlign(), RSLAD(teacher=net(3))],
)
def test_points_lie_in_the_threat_set(defense: ObjectiveDefense, threat: Threat, batch: Batch) -> None:
    model = net()
    points = defense.step(threat).points(model, batch)
    assert bool(threat.contains(points, batch.x).all())
    assert not torch.equal(points, batch.x)
    assert not points.requires_grad
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_n_fgsm_goes_beyond_eps_but_never_out_of_the_box(batch: Batch) -> None:
    points = NFGSM().step(THREAT).points(net(), batch)
    distance = THREAT.distance(points, batch.x)
    assert bool((distance > 0.2).all())
    assert bool((distance <= 0.3 + 1e-6).all())
    assert 0 <= float(points.min()) <= float(points.max()) <= 1


def test_single_steps_shrink_by_the_damping(batch: Batch) -> None:
    model = net()
    small = replace(batch, damping=0.01)
    for defense in (FGSMRS(), NFGSM()):
        far, near = (defense.step(THREAT).points(model, b) for b in (batch, small))
        nowhere = defense.step(THREAT).points(model, replace(batch, damping=1e-9))
        assert float((near - nowhere).abs().max()) < 0.002 < float((far - nowhere).abs().max())


def test_eps_grows_during_the_warmup(batch: Batch) -> None:
    defense, model = PGDTraining(steps=3, warmup=0.4), net()
    reach = [
        float(THREAT.distance(defense.step(THREAT).points(model, replace(batch, progress=p)), batch.x).max())
        for p in (0.0, 0.1, 0.2, 0.4, 1.0)
    ]
    assert reach == pytest.approx([0.0001, 0.025, 0.05, 0.1, 0.1], abs=1e-4)


def test_gaussian_noise_has_its_deviation_and_is_new_every_epoch(batch: Batch) -> None:
    step = GaussianTraining(sigma=0.5).step(None)
    one, again = (step.points(net(), batch) - batch.x for _ in range(2))
    two = step.points(net(), replace(batch, epoch=2)) - batch.x
    assert torch.equal(one, again)
    assert float(one.std()) == pytest.approx(0.5, abs=0.02)
    assert float((one * two).mean()) == pytest.approx(0, abs=0.02)


# -- AWP ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [False, True])
def test_awp_takes_the_gradient_at_moved_weights_and_puts_them_back(half: bool, batch: Batch) -> None:
    model, gamma = net(), 0.3
    before = copy.deepcopy(model.state_dict())
    step = AWP(of="none", gamma=gamma).step(None)
    with batch.undo, torch.autocast("cpu", torch.bfloat16, enabled=half):
        step(model, batch).backward()
    moved = copy.deepcopy(model)
    moved.load_state_dict(before)
    moved.zero_grad()
    functional.cross_entropy(moved(batch.x), batch.y).backward()
    with torch.no_grad():
        for p in (p for p in moved.parameters() if p.dim() > 1):
            assert p.grad is not None
            p.add_(gamma * p.norm() / p.grad.norm() * p.grad)
    moved.zero_grad()
    functional.cross_entropy(moved(batch.x), batch.y).backward()
    after = model.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
    assert int(after["2.num_batches_tracked"]) == 1  # the move does not count as training
    plain = net()
    functional.cross_entropy(plain(batch.x), batch.y).backward()
    ours, wanted, other = (m[1].weight.grad for m in (model, moved, plain))  # type: ignore[index]
    assert (ours - wanted).norm() < (0.1 if half else 1e-4) * wanted.norm()
    assert (other - wanted).norm() > 0.2 * wanted.norm()


def test_a_wrapper_is_named_with_what_it_wraps() -> None:
    made = make_defense("trades+awp", beta="2", gamma="0.005")
    assert made == AWP(of="trades", gamma=0.005, options={"beta": "2"})
    assert made.title == "trades+awp"
    assert made.parameters["options"] == TRADES(beta=2.0).parameters
    with pytest.raises(InputError, match="threat"):
        made.check(None)
    with pytest.raises(InputError, match="is no wrapper"):
        make_defense("awp+trades")
    for half in ("trades+", "+awp", "+"):
        with pytest.raises(InputError, match=r"expected INNER\+WRAPPER"):
            make_defense(half)
    with pytest.raises(InputError, match="'distillation' is not a single objective"):
        make_defense("distillation+awp")
    with pytest.raises(InputError, match="no option 'betta'"):
        make_defense("trades+awp", betta=1)


# -- free ---------------------------------------------------------------------------------------------


def test_free_training_replays_every_batch_and_carries_the_perturbation_on() -> None:
    data = load_data("builtin:digits:train").take(slice(0, 120))
    seen: list[tuple[int, int, Tensor]] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen.append((len(seen), len(x), x.detach().clone()))
            return self.inner(x)

    options = TrainingOptions(epochs=1, batch_size=54, device="cpu")
    FreeTraining(replays=3).fit(Watched(), data, threat=THREAT, trainer=Trainer(options, validation=data))
    assert len(seen) == 9  # three batches of 40, each three times
    first = [x for _, _, x in seen[:3]]
    assert not torch.equal(first[0], first[1])
    assert bool(THREAT.contains(first[2], first[0]).all())  # the very first perturbation is zero
    clean = {tuple(row.flatten().tolist()) for row in data.rows(slice(None))}
    later = {tuple(row.flatten().tolist()) for row in seen[3][2]}
    assert not clean & later  # the second batch begins where the first ended


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("trades", {"beta": 0}),
        ("mart", {"steps": 0}),
        ("fgsm-rs", {"step_size": -1}),
        ("n-fgsm", {"noise": 0}),
        ("free", {"replays": 0}),
        ("awp", {"gamma": 0}),
        ("awp", {"start": 2}),
        ("grad-align", {"weight": 0}),
        ("elle", {"weight": -1}),
        ("gaussian", {"sigma": float("inf")}),
        ("ard", {"alpha": 2}),
        ("ard", {"temperature": 0}),
        ("rslad", {"alpha": -1}),
    ],
)
def test_parameters_out_of_range(name: str, options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        make_defense(name, **options)


def test_samples_are_left_alone(batch: Batch) -> None:
    data = load_data("builtin:digits:train").take(slice(0, 60))
    copied = Samples(data.x.clone(), data.y.clone(), data.ids.clone())
    FreeTraining(replays=2).fit(net(), data, threat=THREAT, trainer=Trainer(TrainingOptions(epochs=1)))
    assert torch.equal(data.x, copied.x)
