"""Every defense by name: what it does, what it leaves alone, and what it must refuse."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robust import transforms
from robust.attacks import PGD
from robust.defenses import (
    DEFENSES,
    Batch,
    Defense,
    Distillation,
    FineTuning,
    Trainer,
    TrainingOptions,
    Wrapper,
    make_defense,
)
from robust.defenses.inner import Ascent, perturb
from robust.errors import InputError, UnknownNameError, UnsupportedError
from robust.oracle import Oracle
from robust.sources import Samples, load_data, load_weights, save_weights
from robust.target import Target
from robust.threat import Linf, Threat

OPTIONS = TrainingOptions(epochs=3, batch_size=64, learning_rate=5e-3, device="cpu")
THREAT = Linf("0.1")
ALL = [name for name in sorted(DEFENSES) if not issubclass(DEFENSES[name], Wrapper | FineTuning)]


def build_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(128, 10),
        )  # fmt: skip


def some_digits(count: int = 400) -> Samples:
    return load_data("builtin:digits:train").take(slice(0, count))


@functools.cache
def teacher() -> nn.Module:
    trainer = Trainer(replace(OPTIONS, epochs=12))
    return make_defense("pgd-at", steps=3).fit(build_net(), some_digits(), threat=THREAT, trainer=trainer)


def make(name: str) -> Defense:
    """A defense by name, with few steps and what it cannot do without."""
    known = {field.name for field in fields(DEFENSES[name])}
    few = {"steps": 3, "replays": 2, "temperature": 20, "options": {"steps": 3}, "teacher": teacher()}
    return make_defense(name, **{key: value for key, value in few.items() if key in known})


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (key, left), right in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(left, right), key


def first_batch(count: int = 32, epoch: int = 1) -> Batch:
    data = some_digits(count)
    return Batch(data.rows(slice(None)), data.y, data.ids, seed=0, epoch=epoch, progress=0.0)


def survivors(model: nn.Module, attack: PGD, threat: Threat, data: Samples) -> float:
    """Share of samples that are right before and after the attack."""
    x, y = data.rows(slice(None)), data.y
    with Target(model, device="cpu") as target:
        oracle = Oracle(target, x, y, data.ids, threat)
        oracle.visit(x)
        attack(oracle)
    return float((~oracle.ledger.broken).float().mean())


# -- by name ----------------------------------------------------------------------------------------


def test_the_registered_names() -> None:
    assert {"none", "pgd-at", "distillation"} <= set(DEFENSES)
    for name in DEFENSES:
        assert DEFENSES[name].name == name
        assert DEFENSES[name].paper


def test_make_defense_reads_text_mappings_and_objects() -> None:
    made = make_defense("pgd-at", steps="10", step_size="0.2")
    assert made.parameters == {"steps": 10, "step_size": 0.2, "warmup": 0.3}
    assert make_defense({"name": "pgd-at", "steps": 10, "step_size": 0.2}) == made
    assert make_defense(made) is made


@pytest.mark.parametrize("spec", [None, 3, ["pgd-at"]])
def test_what_is_no_name_is_told(spec: Any) -> None:
    with pytest.raises(InputError, match=r"defense: expected a name such as .* got"):
        make_defense(spec)


def test_unknown_names_and_options() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'distillation'"):
        make_defense("destillation")
    with pytest.raises(InputError, match="'epochs'; it is an option of the training: --train epochs=2, or"):
        make_defense("trades+awp", epochs="2")
    with pytest.raises(InputError, match="no option 'beta'; it has warmup, steps, step_size"):
        make_defense("pgd-at", beta=6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pgd-at", {"steps": 0}),
        ("pgd-at", {"step_size": 0.0}),
        ("pgd-at", {"warmup": 1.5}),
        ("pgd-at", {"steps": "many"}),
        ("distillation", {"temperature": 0}),
        ("distillation", {"temperature": float("nan")}),
        ("distillation", {"temperature": float("inf")}),
    ],
)
def test_parameters_out_of_range(name: str, options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        make_defense(name, **options)


# -- the contract of every defense ------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_it_learns_and_leaves_model_and_random_state_alone(name: str) -> None:
    model, data = build_net().eval(), some_digits()
    model[0].bias.requires_grad_(False)  # type: ignore[index,union-attr]
    model[1].train()  # type: ignore[index]
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    wanted = [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    net = make(name).fit(model, data, threat=THREAT, trainer=Trainer(replace(OPTIONS, epochs=8)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert not any(module.training for module in net.modules())
    with torch.no_grad():
        right = (net(data.rows(slice(None))).argmax(1) == data.y).float().mean()
    assert right > 0.75


@pytest.mark.parametrize("name", ALL)
def test_it_repeats_and_resumes_to_the_same_weights(name: str, tmp_path: Path) -> None:
    """Stopped once in every stage of the training (distillation has two)."""
    defense, data = make(name), some_digits(200)
    whole = defense.fit(build_net(), data, threat=THREAT, trainer=Trainer(OPTIONS))
    torch.rand(3)
    stops = 0

    def stop(result: object) -> None:
        nonlocal stops
        if getattr(result, "epoch", 0) == 2:
            stops += 1
            raise KeyboardInterrupt

    for _ in range(4):
        try:
            resumed = defense.fit(
                build_net(), data, threat=THREAT, trainer=Trainer(OPTIONS, out=tmp_path, progress=stop)
            )
            break
        except KeyboardInterrupt:
            continue
    assert stops == (2 if name == "distillation" else 1)
    assert_same(whole, resumed)


@pytest.mark.parametrize("name", ALL)
def test_it_trains_in_mixed_precision(name: str) -> None:
    trainer = Trainer(replace(OPTIONS, epochs=4, precision="bf16-mixed"))
    model = make(name).fit(build_net(), some_digits(), threat=THREAT, trainer=trainer)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert trainer.history[-1].clean_accuracy > 0.3


@pytest.mark.parametrize("name", ALL)
def test_another_defenses_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    other: Defense = make_defense("none" if name != "none" else "pgd-at")
    options = replace(OPTIONS, epochs=1)
    other.fit(build_net(), some_digits(), threat=THREAT, trainer=Trainer(options, out=tmp_path))
    with pytest.raises(InputError, match="differs in defense"):
        make(name).fit(build_net(), some_digits(), threat=THREAT, trainer=Trainer(options, out=tmp_path))


# -- PGD adversarial training -----------------------------------------------------------------------


def test_adversarial_training_holds_where_standard_training_falls() -> None:
    data, test = some_digits(700), load_data("builtin:digits:test").take(slice(0, 200))
    options = replace(OPTIONS, epochs=8, validation_steps=3)
    standing = {}
    for name in ("none", "pgd-at"):
        model = make_defense(name, **({} if name == "none" else {"steps": 4})).fit(
            build_net(), data, threat=Linf("0.15"), trainer=Trainer(options)
        )
        standing[name] = survivors(model, PGD(steps=20, loss="margin"), Linf("0.15"), test)
    assert standing["pgd-at"] > standing["none"] + 0.15


def test_adversarial_training_needs_a_threat_it_can_attack() -> None:
    trainer = Trainer(OPTIONS)
    with pytest.raises(InputError, match="defense 'pgd-at' trains against one"):
        make_defense("pgd-at").fit(build_net(), some_digits(), threat=None, trainer=trainer)
    with pytest.raises(UnsupportedError, match="not for l0"):
        make_defense("pgd-at").fit(build_net(), some_digits(), threat=Threat("l0", "4"), trainer=trainer)
    assert trainer.history == []


# -- the inner attack -------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", [Linf("0.1"), Threat("l2", "0.5"), Threat("l1", "3")])
def test_the_inner_attack_stays_inside_and_raises_the_loss(threat: Threat) -> None:
    model, batch = build_net().eval(), first_batch()
    x_adv = perturb(model, batch, PGD(steps=7), threat)
    assert bool(threat.contains(x_adv, batch.x).all())
    assert not x_adv.requires_grad
    clean, adversarial = (functional.cross_entropy(model(x), batch.y) for x in (batch.x, x_adv))
    assert adversarial > clean


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_inner_steps_spend_nothing_on_pixels_at_the_end_of_the_box(norm: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    batch = first_batch()
    batch = replace(batch, x=(batch.x > 0.5).float())  # black and white: half of every gradient leads out
    threat = Threat(norm, "0.5")
    x_adv = Ascent(1, 1.0, start="clean")(model, batch, threat)
    torch.testing.assert_close(threat.distance(x_adv, batch.x), torch.full((len(batch.x),), 0.5))


def test_the_inner_attack_trains_nothing() -> None:
    model = build_net().train()
    model[0].bias.requires_grad_(False)  # type: ignore[index,union-attr]
    before = copy.deepcopy(model.state_dict())
    seen: list[bool] = []
    model[1].register_forward_pre_hook(lambda module, _: seen.append(module.training))  # type: ignore[index]
    perturb(model, first_batch(), PGD(steps=3), THREAT)
    assert seen == [False] * 3  # no pass beyond the three steps
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()][:3] == [True, False, True]
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_random_starts_are_the_samples_own_and_new_every_epoch() -> None:
    model, attack = build_net().eval(), PGD(steps=1, step_size=1e-6)
    one, again, two = (perturb(model, first_batch(epoch=e), attack, THREAT) for e in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    batch = first_batch()
    order = torch.arange(31, -1, -1)
    turned = replace(batch, x=batch.x[order], y=batch.y[order], ids=batch.ids[order])
    assert torch.allclose(perturb(model, turned, attack, THREAT), one[order], atol=1e-6)


# -- distillation -----------------------------------------------------------------------------------


def logit_gap(model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        top = model(x).sort(1).values
    return float((top[:, -1] - top[:, -2]).median())


def test_distillation_inflates_logits_and_hides_its_gradients() -> None:
    """Deployed at T = 1 the cross-entropy gradient is exactly zero for many samples; the margin's is not."""
    data, test = some_digits(700), load_data("builtin:digits:test").take(slice(0, 200))
    options = replace(OPTIONS, epochs=12)
    nets = {
        name: make_defense(name).fit(build_net(), data, threat=None, trainer=Trainer(options))
        for name in ("none", "distillation")
    }
    x = test.rows(slice(None))
    assert logit_gap(nets["distillation"], x) > 5 * logit_gap(nets["none"], x)
    net, threat = nets["distillation"], Linf("0.2")
    masked, honest = (survivors(net, PGD(steps=20, loss=loss), threat, test) for loss in ("ce", "margin"))
    assert masked > honest + 0.2


def test_the_student_learns_the_teachers_soft_labels_from_the_given_weights(tmp_path: Path) -> None:
    model, data = build_net(), some_digits()
    student = Distillation(temperature=5).fit(
        model, data, threat=None, trainer=Trainer(replace(OPTIONS, epochs=12), out=tmp_path)
    )
    stages = {path.stem: torch.load(path, weights_only=True) for path in tmp_path.glob("checkpoints/*.pt")}
    assert set(stages) == {"teacher", "model"}
    assert stages["teacher"]["identity"]["model"] == stages["model"]["identity"]["model"]
    teacher = build_net().eval()
    teacher.load_state_dict(stages["teacher"]["best"])
    x = data.rows(slice(None))

    def divergence(net: nn.Module) -> float:
        with torch.no_grad():
            soft = (teacher(x) / 5).softmax(1)
            return float(functional.kl_div((net.eval()(x) / 5).log_softmax(1), soft, reduction="batchmean"))

    assert divergence(student) < divergence(build_net()) / 2
    assert not torch.equal(student[5].weight, teacher[5].weight)  # type: ignore[index]


# -- wrapping defenses ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bit-depth", "median", "jpeg"])
def test_a_wrapper_deploys_its_transform_and_lets_gradients_through(name: str) -> None:
    model, data = build_net().eval(), some_digits(30)
    wrapper = make_defense(name)
    assert isinstance(wrapper, Wrapper)
    assert wrapper.masks_gradients
    assert wrapper.parameters["masks_gradients"] is True
    net = wrapper.fit(model, data, threat=THREAT, trainer=Trainer(OPTIONS))
    x = data.rows(slice(None)).requires_grad_()
    with torch.no_grad():
        changed = wrapper.transform((0.0, 1.0))(x)
        assert torch.equal(net(x), model(changed))
    assert not torch.equal(changed, x)
    (gradient,) = torch.autograd.grad(net(x).sum(), x)
    at = changed.detach().requires_grad_()
    assert torch.allclose(gradient, torch.autograd.grad(model(at).sum(), at)[0], atol=1e-6)


@pytest.mark.parametrize("name", ["median", "jpeg", "none+jpeg"])
def test_a_transform_of_images_is_refused_for_rows_before_training(name: str) -> None:
    data = Samples(torch.rand(20, 64), torch.arange(20) % 10, torch.arange(20))
    trainer = Trainer(OPTIONS, progress=lambda _: pytest.fail("trained"))
    with pytest.raises(InputError, match=r"images \(N, C, H, W\)"):
        make_defense(name).fit(nn.Linear(64, 10), data, threat=None, trainer=trainer)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (make, wrong)
        for make in (transforms.BitDepth, transforms.Median, transforms.JPEG)
        for wrong in ("a", 2.5, 0)
    ],
)
def test_a_transform_takes_an_integer_of_its_range(make: Callable[[Any], object], wrong: object) -> None:
    with pytest.raises(InputError, match=rf"expected an .*, got {wrong!r}"):
        make(wrong)


def test_a_transform_does_not_save_a_standard_model() -> None:
    """What plain gradients cannot see, the attack through BPDA does."""
    data, test = some_digits(700), load_data("builtin:digits:test").take(slice(0, 100))
    wrapper, threat = make_defense("none+bit-depth", bits=2), Linf("0.25")
    net = wrapper.fit(build_net(), data, threat=threat, trainer=Trainer(replace(OPTIONS, epochs=6)))
    assert wrapper.title == "none+bit-depth"
    attack = PGD(steps=20, loss="margin")
    masked = nn.Sequential(transforms.BitDepth(2), net.model)  # type: ignore[arg-type]
    assert survivors(masked, attack, threat, test) > 0.4
    assert survivors(net, attack, threat, test) < 0.15


def test_wrapped_weights_load_into_the_deployed_model(tmp_path: Path) -> None:
    wrapper = make_defense("none+median")
    net = wrapper.fit(build_net(), some_digits(60), threat=None, trainer=Trainer(replace(OPTIONS, epochs=1)))
    save_weights(net, tmp_path / "w.safetensors")
    again = wrapper.deployed(build_net())
    load_weights(again, tmp_path / "w.safetensors")
    x = some_digits(20).rows(slice(None))
    with torch.no_grad():
        assert torch.equal(again(x), net(x))


def test_fine_tuning_starts_from_trained_weights() -> None:
    data, options = some_digits(), replace(OPTIONS, epochs=3)
    defense = make_defense("pgd-at+fine-tune", steps=2, rate=0.5)
    with pytest.raises(InputError, match=r"fine-tune: model: right on .* give trained weights"):
        defense.fit(build_net(), data, threat=THREAT, trainer=Trainer(options))
    trainer = Trainer(options)
    defense.fit(teacher(), data, threat=THREAT, trainer=trainer)
    assert trainer.history[0].clean_accuracy > 0.6
    assert trainer.history[0].learning_rate < 0.5 * OPTIONS.learning_rate
