"""Swaps that the gradient proposes: the exact answer where the model is linear, what one look misses, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust
from robust.attacks import GradientSwaps
from robust.errors import InputError


class Linear(nn.Module):
    """The second class's logit is a weighted sum of the values, less what `needed` of the best add together."""

    def __init__(self, weight: Tensor, needed: int) -> None:
        super().__init__()
        self.weight, self.least = weight, weight.topk(needed).values.sum() - 1e-3

    def forward(self, x: Tensor) -> Tensor:
        gained = x.flatten(1) @ self.weight - self.least
        return torch.stack([torch.zeros_like(gained), gained], 1)


class Groups(nn.Module):
    """Of each group of four values one is as good as all: the groups with the steepest slope at x are full at once."""

    def forward(self, x: Tensor) -> Tensor:
        slopes = torch.tensor([8.0, 7.0, 6.0, 5.0])
        gained = (slopes * x.view(-1, 4, 4).sum(2)).tanh().sum(1) - 3.9
        return torch.stack([torch.zeros_like(gained), gained], 1)


def _standing(model: nn.Module, eps: int, attack: GradientSwaps, shape: tuple[int, ...] = (1, 4, 4)) -> int:
    data = torch.zeros(5, *shape), torch.zeros(5, dtype=torch.int64)
    report = robust.evaluate(model, data, threat=f"l0:{eps}", suite=attack, device="cpu")
    return report.statuses["survived"]


@pytest.mark.parametrize("needed", [1, 2, 7, 16])
def test_on_a_linear_model_the_first_look_is_exact(needed: int) -> None:
    model = Linear(torch.rand(16, generator=torch.Generator().manual_seed(needed)) + 0.1, needed)
    assert _standing(model, needed, GradientSwaps(rounds=1, tries=1)) == 0
    if needed > 1:
        assert _standing(model, needed - 1, GradientSwaps()) == 5


def test_swaps_find_what_the_first_look_misses() -> None:
    assert _standing(Groups(), 4, GradientSwaps(rounds=1, tries=1)) == 5
    assert _standing(Groups(), 4, GradientSwaps(rounds=20)) == 0


@pytest.mark.parametrize("eps", [1, 15, 16, 40])
def test_any_number_of_changes_is_searched(eps: int) -> None:
    """As many values as there are, too, and more: none of these changes helps."""
    model = Linear(torch.full((16,), -1.0), 1)
    model.least = torch.tensor(1.0)
    assert _standing(model, eps, GradientSwaps(rounds=3)) == 5


def test_a_sample_pays_for_looks_and_swaps(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    attack = GradientSwaps(rounds=4, tries=3, proposals=5)
    report = robust.evaluate(net, digits, threat="l0:1", suite=attack, device="cpu")
    survivors = report.verdicts[report.verdicts.status == "survived"]
    assert len(survivors) > 20
    clean = 1
    assert set(survivors.forwards - clean) == {4 * (1 + 3 * 5)}
    assert set(survivors.backwards) == {4}


def test_samples_that_are_behind_end_after_a_round(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    attack = GradientSwaps(rounds=4, pace=1e-9)
    verdicts = robust.evaluate(net, digits, threat="l0:1", suite=attack, device="cpu").verdicts
    assert set(verdicts.backwards[verdicts.status == "survived"]) == {1}


@pytest.mark.parametrize(
    ("options", "named"), [({"rounds": 0}, "rounds"), ({"p_init": 1.5}, "p_init"), ({"pace": -0.1}, "pace")]
)
def test_options_out_of_range_are_named(options: dict[str, float], named: str) -> None:
    with pytest.raises(InputError, match=f"gradient-swaps: .*{named}"):
        GradientSwaps(**options)  # type: ignore[arg-type]
