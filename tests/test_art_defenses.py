"""Defenses of ART by name: each does what it is called, is labelled, and leaves everything else alone."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import need_art
from test_defenses import OPTIONS, THREAT, assert_same, build_net, some_digits, survivors
from torch import nn
from torch.nn import functional

from robust.attacks import PGD
from robust.defenses import DEFENSES, Batch, Trainer, Wrapper, make_defense
from robust.defenses.adapters import LIBRARY
from robust.errors import InputError, UnknownNameError, UnsupportedError
from robust.sources import Samples, load_data
from robust.threat import Linf, Threat

need_art()

TRAINED = [name for name in LIBRARY.names() if LIBRARY.peers[name].role != "preprocessor"]
PUT_IN_FRONT = [name for name in LIBRARY.names() if LIBRARY.peers[name].role == "preprocessor"]


def test_every_defense_of_the_library_is_offered_or_refused_with_a_reason() -> None:
    from art.defences import preprocessor, trainer

    theirs = {
        name
        for module in (preprocessor, trainer)
        for name, item in vars(module).items()
        if isinstance(item, type) and name not in ("Preprocessor", "Trainer")
    }
    assert theirs == {*LIBRARY.peers, *LIBRARY.absent}
    with pytest.raises(UnsupportedError, match="PixelDefend is not offered here: it needs a trained"):
        make_defense("art:PixelDefend")
    with pytest.raises(UnknownNameError, match="did you mean 'art:FeatureSqueezing'"):
        make_defense("art:FeatureSqeezing")


@pytest.mark.parametrize("name", TRAINED)
def test_a_trainer_or_augmentation_learns_repeats_and_leaves_the_rest_alone(name: str) -> None:
    few = {"max_iter": 2, "length": 3}
    known = DEFENSES[f"art:{name}"].__dataclass_fields__
    defense = make_defense(f"art:{name}", **{key: value for key, value in few.items() if key in known})
    model, data, options = build_net().eval(), some_digits(200), replace(OPTIONS, epochs=8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    nets = [defense.fit(model, data, threat=THREAT, trainer=Trainer(options)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert_same(*nets)
    with torch.no_grad():
        right = (nets[0](data.rows(slice(None))).argmax(1) == data.y).float().mean()
    assert right > 0.5


def test_the_gradients_of_a_trainer_are_those_of_its_loss_and_its_weights_stay() -> None:
    """On a linear model PGD ends at x - eps sign, whatever its start: the loss there is known."""
    data = some_digits(40)
    batch = Batch(data.rows(slice(None)) * 0.5 + 0.25, data.y % 2, data.ids, 0, 1, 1.0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).train()
    slope = (model[1].weight[1] - model[1].weight[0]).detach()
    towards = 1.0 - 2.0 * batch.y.float()
    x_adv = batch.x + 0.1 * (towards[:, None] * slope.sign()).view_as(batch.x)
    functional.cross_entropy(model(x_adv), batch.y).backward()
    wanted = model[1].weight.grad.clone()
    model.zero_grad()
    before = model[1].weight.detach().clone()
    made = make_defense("art:AdversarialTrainerMadryPGD", max_iter=30)
    seen: list[torch.Tensor] = []

    class Caught(Exception):  # noqa: N818
        pass

    class Loop:
        def fit(self, _model: nn.Module, _data: object, objective: object, **_: object) -> None:
            loss = objective(model, batch)  # type: ignore[operator]
            loss.backward()
            seen.extend([loss.detach(), model[1].weight.grad])
            raise Caught

    with pytest.raises(Caught):
        made.fit(model, data, threat=THREAT, trainer=Loop())  # type: ignore[arg-type]
    assert torch.allclose(seen[1], wanted, atol=1e-5)
    with torch.no_grad():
        assert float(seen[0]) == pytest.approx(
            float(functional.cross_entropy(model(x_adv), batch.y)), rel=1e-4
        )
    assert torch.equal(model[1].weight, before)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", PUT_IN_FRONT)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 3.0)])
def test_a_preprocessor_goes_in_front_and_lets_gradients_through(
    name: str, bounds: tuple[float, float]
) -> None:
    wrapper = make_defense(f"art:{name}", **({"bit_depth": 2} if name == "FeatureSqueezing" else {}))
    assert isinstance(wrapper, Wrapper)
    assert wrapper.masks_gradients
    assert wrapper.parameters["masks_gradients"] is True
    model = build_net().eval()
    net = wrapper.deployed(model, bounds=bounds)
    x = (some_digits(4).rows(slice(None)) * (bounds[1] - bounds[0]) + bounds[0]).requires_grad_()
    np.random.seed(3)  # noqa: NPY002 - of TotalVarMin's draws
    changed = wrapper.transform(bounds)(x)
    np.random.seed(3)  # noqa: NPY002
    with torch.no_grad():
        assert torch.equal(net(x), model(changed))
    assert changed.shape == x.shape
    assert bounds[0] <= float(changed.min()) <= float(changed.max()) <= bounds[1]
    assert 0.001 < float((changed - x.detach()).abs().mean()) < 0.3 * (bounds[1] - bounds[0])
    (gradient,) = torch.autograd.grad(net(x).sum(), x)
    assert float(gradient.abs().sum()) > 0


def test_a_preprocessor_does_not_save_a_standard_model() -> None:
    data, test = some_digits(700), load_data("builtin:digits:test").take(slice(0, 100))
    wrapper, threat = make_defense("none+art:FeatureSqueezing", bit_depth="2"), Linf("0.25")
    net = wrapper.fit(build_net(), data, threat=threat, trainer=Trainer(replace(OPTIONS, epochs=6)))
    assert wrapper.title == "none+art:FeatureSqueezing"
    assert survivors(net, PGD(steps=20, loss="margin"), threat, test) < 0.15


def test_another_setting_is_another_model() -> None:
    model = build_net()
    keys = {
        bytes(
            make_defense("art:JpegCompression", quality=q)
            .deployed(model)
            .state_dict()["front.transform.setting"]
        )
        for q in (20, 50)
    }
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("FeatureSqueezing", {"bit_depth": 100}, r"art:FeatureSqueezing: .*bit depth"),
        ("FeatureSqueezing", {"bits": 3}, "no option 'bits'"),
        ("AdversarialTrainerMadryPGD", {"eps": 0.1}, "the threat sets that"),
        ("AdversarialTrainerMadryPGD", {"max_iter": 0}, "max_iter: expected at least 1"),
        ("AdversarialTrainerTRADESPyTorch", {"beta": "much"}, "beta: expected a number"),
        ("Mixup", {"alpha": -1}, "mixing interpolation strength"),
    ],
)
def test_what_does_not_fit_is_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_defense(f"art:{name}", **options)


@pytest.mark.parametrize("name", ["art:CutMix", "art:Cutout"])
def test_an_augmentation_of_images_refuses_features_in_a_line(name: str) -> None:
    data = Samples(torch.rand(20, 7), torch.arange(20) % 2, torch.arange(20))
    with pytest.raises(InputError, match=r"only be applied to image and video data.* shape \(7,\)"):
        make_defense(name).fit(nn.Linear(7, 2), data, threat=None, trainer=Trainer(OPTIONS))


def test_a_trainer_refuses_a_norm_that_it_does_not_know() -> None:
    defense = make_defense("art:AdversarialTrainerFBFPyTorch")
    with pytest.raises(UnsupportedError, match="works for linf, not for l2"):
        defense.fit(build_net(), some_digits(), threat=Threat("l2", "0.5"), trainer=Trainer(OPTIONS))


def test_without_the_library_names_are_listed_and_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['art'] = None\n"
        "from robust.cli import lists\n"
        "lists.show(lists.What.defenses, 'art')\n"
        "from robust.defenses import make_defense\n"
        "from robust.errors import MissingDependencyError\n"
        "try: make_defense('art:FeatureSqueezing')\n"
        "except MissingDependencyError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "art:FeatureSqueezing" in done.stdout
    assert "robust-harness[art]" in done.stdout
