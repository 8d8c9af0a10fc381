"""Preprocessing as sources declare it: read, shown, applied to images and inside the Target."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import robust
from robust.errors import ModelError
from robust.sources.preprocess import Preprocessing, of_metadata, of_processor, of_timm


@pytest.mark.parametrize(
    ("config", "mean", "std", "size", "resize"),
    [
        ({"image_mean": [0.5], "image_std": [0.25], "size": 32}, (0.5,), (0.25,), (32, 32), None),
        ({"do_normalize": False, "size": {"height": 8, "width": 9}}, None, None, (8, 9), None),
        # Values from -1 to 1 by rescaling alone, then bytes as they are.
        ({"image_mean": [1.0], "image_std": [1.0], "rescale_factor": 1 / 127.5}, (0.5,), (0.5,), None, None),
        ({"do_rescale": False, "do_normalize": False}, (0.0,), (1 / 255,), None, None),
        ({"do_normalize": False, "size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": 32},
         None, None, (32, 32), 40),
    ],
)  # fmt: skip
def test_processor_configurations(
    config: dict, mean: object, std: object, size: object, resize: object
) -> None:
    found = of_processor(config, "test")
    for got, wanted in ((found.mean, mean), (found.std, std)):
        assert got == (wanted if wanted is None else pytest.approx(wanted))
    assert found.size == size
    assert found.resize == resize


def test_timm_configurations() -> None:
    found = of_timm(
        {"mean": (0.5,) * 3, "std": (0.2,) * 3, "input_size": (3, 224, 224), "crop_pct": 0.875}, "x"
    )
    assert found is not None
    assert (found.size, found.resize, found.interpolation) == ((224, 224), 256, "bilinear")
    assert of_timm({}, "x") is None


def test_metadata_of_a_file() -> None:
    found = of_metadata({"mean": "0.5, 0.4", "std": "[1, 2]"}, "x")
    assert found is not None
    assert found.normalize == ((0.5, 0.4), (1.0, 2.0))
    assert of_metadata({"author": "me"}, "x") is None
    with pytest.raises(ModelError, match="expected numbers"):
        of_metadata({"mean": "many", "std": "few"}, "x")


def test_fit_is_resize_and_centre_crop() -> None:
    rows = np.tile(np.arange(80, dtype=np.uint8)[:, None] * 3, (1, 40))
    image = Image.fromarray(rows)
    found = np.asarray(Preprocessing("x", size=(32, 32), resize=40, interpolation="nearest").fit(image))
    assert np.array_equal(found, rows[24:56, 4:36])  # the shorter side has 40 already
    assert Preprocessing("x", size=(80, 40)).fit(image) is image
    assert Preprocessing("x", size=(16, 16)).fit(image).size == (16, 16)
    wide = Preprocessing("x", size=(64, 64), resize=40).fit(image)
    assert wide.size == (64, 64)  # a crop larger than the scaled image


@pytest.mark.parametrize("bad", [{"size": (0, 3)}, {"resize": 10**9}, {"interpolation": "magic"}])
def test_sizes_that_no_image_has(bad: dict) -> None:
    with pytest.raises(ModelError, match="preprocessing from x"):
        Preprocessing("x", **bad)


def test_a_target_scales_images_to_its_size_differentiably() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
    target = robust.Target(model, size=(8, 8), device="cpu")
    small, exact = torch.rand(2, 3, 4, 4, requires_grad=True), torch.rand(2, 3, 8, 8)
    with target:
        assert torch.equal(target.logits(exact), model(exact))
        (gradient,) = torch.autograd.grad(target.logits(small).sum(), small)
    assert (gradient.abs().flatten(1).amax(1) > 0).all()


def test_torchvision_declares_what_its_weights_were_evaluated_with() -> None:
    pytest.importorskip("torchvision", exc_type=Exception)
    target = robust.load("torchvision:squeezenet1_1", device="cpu")
    assert target.size == (224, 224)
    assert target.normalize is not None
    assert target.normalize[0] == pytest.approx((0.485, 0.456, 0.406))
    shown = "resize shorter side 256 (bilinear), input 224x224, mean 0.485,0.456,0.406"
    assert shown in str(target.preprocessing)
    plain = robust.load("torchvision:squeezenet1_1", device="cpu", normalize=None)
    assert (plain.size, plain.normalize) == (None, None)
