"""The registered architectures: published parameter counts, logits, sizes that they take."""

from __future__ import annotations

import pytest
import torch
from refusals import refused
from torch import nn

from robust.sources import MODELS, PreActResNet18, ResNet18, SmallCNN, TinyMLP, WideResNet


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mnist-cnn", 166_406),
        ("digits-mlp", 8_970),
        ("cifar-resnet18", 11_173_962),
        ("cifar-preactresnet18", 11_172_170),
        ("cifar-wrn28-10", 36_479_194),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = MODELS[name]()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len((MODELS[name].__doc__ or "").splitlines()[0]) > 20


def test_every_registered_model_is_counted_above() -> None:
    assert list(MODELS) == [
        "cifar-preactresnet18",
        "cifar-resnet18",
        "cifar-wrn28-10",
        "digits-mlp",
        "mnist-cnn",
    ]


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (SmallCNN(), (1, 28, 28)),
        (SmallCNN(7, in_channels=3, image_size=8), (3, 8, 8)),
        (SmallCNN(7, image_size=5), (1, 5, 5)),
        (TinyMLP(), (1, 8, 8)),
        (TinyMLP(4, in_channels=2, image_size=3), (2, 3, 3)),
        (ResNet18(7, in_channels=1), (1, 16, 16)),
        (PreActResNet18(7), (3, 8, 8)),
        (WideResNet(7, depth=10, widen=1), (3, 32, 32)),
        (WideResNet(7, in_channels=1, depth=16, widen=2), (1, 20, 20)),
    ],
)
def test_logits_per_sample_and_gradients_everywhere(model: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.random.fork_rng():  # else one draw in sixteen gives four positive logits
        torch.manual_seed(1)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    model.eval()
    logits = model(x)
    classes = list(model.parameters())[-1].shape[0]
    assert logits.shape == (3, classes)
    assert torch.allclose(model(x[1:2]), logits[1:2], atol=1e-5)
    assert (logits < 0).any()  # neither probabilities nor a final ReLU
    logits.square().sum().backward()
    assert (x.grad.flatten(1).abs().amax(1) > 0).all()
    assert all(p.grad is not None for p in model.parameters())


def test_resnet_stages_halve_the_image_three_times() -> None:
    sizes = []
    model = ResNet18().eval()
    for stage in model.stages:
        stage.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:])))
    model(torch.zeros(1, 3, 32, 32))
    assert sizes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_sizes_that_no_network_takes() -> None:
    refused(lambda: MODELS["mnist-cnn"](image_size=3), "at least 4, got 3")
    refused(lambda: MODELS["cifar-resnet18"](image_size=4), "at least 8, got 4")
    refused(lambda: WideResNet(depth=27), "6 n + 4", "got 27")
    refused(lambda: WideResNet(widen=0), "widen", "got 0")
