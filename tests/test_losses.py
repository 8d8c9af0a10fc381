"""Losses: known values, signs, and behaviour with few classes."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from robust.losses import LOSSES, dlr_targeted

LOGITS = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 5.0, 4.0, 1.0]])
Y = torch.tensor([0, 2])


def test_known_values() -> None:
    assert LOSSES["margin"](LOGITS, Y).tolist() == [-2.0, 1.0]
    assert LOSSES["dlr"](LOGITS, Y).tolist() == pytest.approx([-2 / 3, 1 / 4])
    expected = -LOGITS.log_softmax(1).gather(1, Y[:, None]).squeeze(1)
    torch.testing.assert_close(LOSSES["ce"](LOGITS, Y), expected)
    scaled = LOGITS / torch.tensor([[2.0], [1.0]])
    torch.testing.assert_close(LOSSES["mifpe"](LOGITS, Y), LOSSES["ce"](scaled, Y))
    assert LOSSES["logit"](LOGITS, Y).tolist() == [-3.0, -4.0]
    p = LOGITS.softmax(1)
    torch.testing.assert_close(
        LOSSES["probability"](LOGITS, Y), torch.stack([p[0, 1] - p[0, 0], p[1, 1] - p[1, 2]])
    )


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_rises_towards_misclassification_with_a_finite_gradient(name: str, classes: int) -> None:
    right = torch.linspace(1, 0, classes)[None].clone()
    right[0, 0] = 3.0
    wrong = right.clone()
    wrong[0, :2] = torch.tensor([2.0, 6.0])
    y = torch.zeros(1, dtype=torch.int64)
    right.requires_grad_()
    loss = LOSSES[name](right, y)
    (gradient,) = torch.autograd.grad(loss.sum(), right)
    assert loss.item() < LOSSES[name](wrong, y).item()
    assert gradient.isfinite().all()
    assert gradient[0, 0] < 0


@pytest.mark.parametrize("name", ["dlr", "mifpe"])
def test_the_scale_of_the_logits_does_not_matter(name: str) -> None:
    for scale in (1e-3, 1e3, 1e6):
        torch.testing.assert_close(
            LOSSES[name](LOGITS * scale, Y), LOSSES[name](LOGITS, Y), rtol=1e-4, atol=1e-5
        )


def test_the_difference_of_logits_ratio_does_not_see_how_small_logits_are() -> None:
    tiny = (LOGITS * 1e-15).requires_grad_()
    value = LOSSES["dlr"](tiny, Y)
    torch.testing.assert_close(value, LOSSES["dlr"](LOGITS, Y))
    (gradient,) = torch.autograd.grad(value.sum(), tiny)
    assert gradient.isfinite().all()
    assert gradient.square().sum().isfinite()
    ties = torch.ones(1, 10, requires_grad=True)
    for loss in (LOSSES["dlr"], partial(dlr_targeted, target=torch.tensor([[3]]))):
        (gradient,) = torch.autograd.grad(loss(ties, torch.tensor([0])).sum(), ties)
        assert gradient.square().sum().isfinite()
