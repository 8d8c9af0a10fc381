"""BPDA: exact forward, substituted backward, and what that does to input transforms."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robust
from robust.bpda import BPDA, Substituted, Transform
from robust.errors import InputError, ModelError
from robust.losses import margin
from robust.target import Target
from robust.transforms import JPEG, BitDepth, Median


def test_forward_is_exact_and_backward_is_the_substitutes() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = weight
    x = torch.tensor([[0.31, 0.77]])
    for backward, slope in ((lambda x: x, 1.0), (lambda x: 5 * x, 5.0)):
        with BPDA(torch.round, model, backward=backward, device="cpu") as target:
            point = x.clone().requires_grad_()
            logits = target.logits(point)
            assert torch.equal(logits, model(torch.tensor([[0.0, 1.0]])))
            (gradient,) = torch.autograd.grad(logits[0, 0], point)
            torch.testing.assert_close(gradient, slope * weight[:1])
            with torch.no_grad():
                assert torch.equal(target.logits(x), logits)


def test_the_transform_comes_before_the_normalisation(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, _ = digits
    inner = Target(net, normalize=([0.3], [0.7]), device="cpu")
    for target in (
        BPDA(BitDepth(1), inner),
        BPDA(BitDepth(1), net, normalize=([0.3], [0.7]), device="cpu"),
    ):
        with target, torch.no_grad():
            assert torch.equal(target.logits(x), net((x.round() - 0.3) / 0.7))
    with pytest.raises(InputError, match="normalize: the model is a Target"):
        BPDA(BitDepth(1), inner, normalize=(0.0, 1.0))


def test_the_model_and_a_learnt_transform_are_handed_back(net: nn.Module) -> None:
    transform = nn.Conv2d(1, 1, 3, padding=1)
    net.train()
    with BPDA(transform, net, device="cpu"):
        assert not net.training
        assert not transform.weight.requires_grad
    assert net.training
    assert transform.weight.requires_grad


def test_substitutes_that_do_not_fit_are_named(net: nn.Module) -> None:
    with pytest.raises(InputError, match="transform: expected a callable"):
        BPDA("jpeg", net)  # type: ignore[arg-type]
    layer = Substituted(lambda x: x[:, :1])
    with pytest.raises(ModelError, match="they must agree"):
        layer(torch.rand(2, 3, 4, 4, requires_grad=True))


@pytest.mark.parametrize(
    ("transform", "advice"),
    [
        (lambda x: torch.stack([x, x[:1]]), r"its transform fails in test_bpda\.py, line \d+$"),
        (
            lambda x: x.double(),
            r"its transform gives torch\.float64 for torch\.float32: end it with \.to\(x\.dtype\)",
        ),
        (lambda x: x.numpy(), "its transform gives ndarray: let it return a tensor"),
        (lambda x: x[..., :4], r"its transform gives \(30, 1, 8, 4\) for \(30, 1, 8, 8\)"),
    ],
    ids=["raises", "double", "array", "shape"],
)
@pytest.mark.parametrize("within", [False, True], ids=["in front", "within"])
def test_a_model_that_fails_on_what_a_transform_gave_names_the_transform(
    net: nn.Module, digits: tuple[Tensor, Tensor], transform: Transform, advice: str, within: bool
) -> None:
    model = nn.Sequential(Substituted(transform), net) if within else BPDA(transform, net, device="cpu")
    x, y = digits
    with pytest.raises(ModelError, match=advice):
        robust.evaluate(model, (x[:30], y[:30]), threat="linf:0.1", suite="quick", device="cpu")


def _raise(*_: object) -> Tensor:
    raise ValueError("no stand-in today")


class Failing(torch.autograd.Function):
    """The identity, whose gradient raises."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    backward = staticmethod(_raise)


def test_a_substitute_that_fails_is_named_with_what_it_raises(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits

    def evaluated(backward: Transform) -> robust.Report:
        target = BPDA(torch.round, net, backward=backward, device="cpu")
        return robust.evaluate(target, (x[:30], y[:30]), threat="linf:0.1", suite="quick", device="cpu")

    raised = r"ValueError: no stand-in today \(test_bpda\.py, line \d+\)"
    with pytest.raises(
        ModelError, match=rf"^bpda: backward: fails on input \(30, 1, 8, 8\) \({raised}\); give"
    ):
        evaluated(_raise)
    with pytest.raises(ModelError, match="its substitute `backward` NoneType; they must agree"):
        evaluated(lambda x: None)  # type: ignore[arg-type, return-value]
    (finding,) = [f for f in evaluated(Failing.apply).findings if f["check"] == "detached-graph"]
    assert re.match(rf"no gradient reaches the input \({raised}\); ", finding["message"])


@pytest.mark.parametrize("transform", [BitDepth(2), JPEG(50), Median(3)], ids=lambda t: type(t).__name__)
def test_transforms_keep_box_and_shape_and_treat_samples_alone(transform: nn.Module) -> None:
    x = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    out = transform(x)
    assert out.shape == x.shape
    assert ((out >= 0) & (out <= 1)).all()
    assert not torch.equal(out, x)
    assert torch.equal(transform(x[2:3]), out[2:3])
    assert transform(x[:, :1]).shape == (5, 1, 12, 12)


def test_transforms_by_hand() -> None:
    x = torch.tensor([[[[0.1, 0.2, 0.9], [0.3, 1.0, 0.4], [0.5, 0.0, 0.6]]]])
    torch.testing.assert_close(BitDepth(1)(x)[0, 0, 0], torch.tensor([0.0, 0.0, 1.0]))
    wide = BitDepth(2, (-1.0, 1.0))(torch.tensor([-1.0, -0.4, 0.9]))
    torch.testing.assert_close(wide, torch.tensor([-1.0, -1 / 3, 1.0]))
    assert Median(3)(x)[0, 0, 1, 1].item() == pytest.approx(0.4)
    smooth = torch.linspace(0, 1, 16).expand(1, 1, 16, 16)
    torch.testing.assert_close(JPEG(95)(smooth), smooth, atol=0.02, rtol=0)


def test_settings_are_part_of_the_models_hash(net: nn.Module) -> None:
    hashes = {
        robust.sources.model_sha256(BPDA(BitDepth(bits), copy.deepcopy(net), device="cpu").model)
        for bits in (2, 3)
    }
    assert len(hashes) == 2


def test_bpda_breaks_what_quantisation_hides(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """The same attack on the same deployed model: by its own gradients nothing, by the substitute's most."""
    x, y = digits
    hidden = nn.Sequential(BitDepth(3), net)
    options = {"threat": "linf:0.2", "suite": "pgd", "device": "cpu", "batch_size": 64}
    masked = robust.evaluate(hidden, (x, y), **options)
    through = robust.evaluate(BPDA(BitDepth(3), net, device="cpu"), (x, y), **options)
    assert masked.clean_correct == through.clean_correct
    assert "zero-gradient" in {finding["check"] for finding in masked.findings}
    assert "zero-gradient" not in {finding["check"] for finding in through.findings}
    assert through.robust_accuracy < masked.robust_accuracy - 0.3
    with Target(hidden, device="cpu") as target:  # the breaks are the deployed model's
        assert margin(target.logits(x), y).shape == (64,)
