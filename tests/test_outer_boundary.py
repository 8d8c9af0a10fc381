"""The boundary from far out: what logits at a sample hide, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust
from robust.attacks import PGD, Attack, OuterBoundary
from robust.errors import InputError
from robust.oracle import Oracle
from robust.target import Target
from robust.threat import Threat


class Followers(nn.Module):
    """Behind a net: every logit is raised to a little under the highest, by what a feature of its own says.

    Which class leads is as it was. But the next one is nearly always a follower, which never takes over.
    """

    def __init__(self, net: nn.Module, inputs: int, classes: int) -> None:
        super().__init__()
        self.net = net
        generator = torch.Generator().manual_seed(4)
        self.register_buffer("features", torch.randn(inputs, classes, generator=generator) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        behind = 0.3 * (1 + 0.25 * torch.tanh(x.flatten(1) @ self.features))
        return torch.maximum(z, z.amax(1, keepdim=True) - behind)


class Halves(nn.Module):
    """Three classes of two pixels: the first one's sum, and behind it a class that follows; the third takes over at a sum of 1."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.flatten(1).T
        away = 1 - first - second
        return torch.stack([away, away.abs() - 0.1 - 0.05 * (second - first), -away], 1)


def standing(attack: Attack, threat: str) -> int:
    x = torch.tensor([[0.1, 0.15], [0.2, 0.1]]).view(2, 1, 1, 2)
    data = x, torch.zeros(2, dtype=torch.int64)
    return robust.evaluate(Halves(), data, threat=threat, suite=attack, device="cpu").statuses["survived"]


@pytest.mark.parametrize("threat", ["linf:0.4", "l2:0.56", "l1:0.8"])
def test_a_class_that_follows_the_label_hides_no_boundary(threat: str) -> None:
    """In linf the boundary is 0.375 away from the first sample and 0.35 from the second, half of what their sums lack of 1."""
    assert standing(PGD(steps=50, loss="margin", random_start=False), threat) == 2
    assert standing(OuterBoundary(), threat) == 0


@pytest.mark.parametrize("threat", ["linf:0.15", "l2:0.6", "l1:2"])
def test_what_the_suite_finds_past_followers_is_told(
    threat: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """Ascents on margins left four fifths and more standing, of which the net behind stands hardly any."""
    followers = Followers(net, digits[0][0].numel(), 10)
    report = robust.evaluate(followers, digits, threat=threat, device="cpu")
    past = [entry["broke"] for entry in report.attacks if entry["parameters"].get("loss") == "logit"]
    assert sum(past) > 20
    assert report.statuses["survived"] < 35
    assert "hidden-boundary" in {finding["check"] for finding in report.findings}


def test_nothing_is_hidden_where_no_class_follows(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    report = robust.evaluate(net, digits, threat="linf:0.06", device="cpu")
    (far, *_) = (entry for entry in report.attacks if entry["name"] == "outer-boundary")
    assert far["attacked"] > 3
    assert report.findings == []


def test_alone_it_says_nothing_of_margins_which_it_does_not_raise(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    report = robust.evaluate(net, digits, threat="linf:0.06", suite="outer-boundary", device="cpu")
    assert report.statuses["survived"] > 30
    assert report.findings == []


class Sure(nn.Module):
    """One class everywhere in the box."""

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1).sum(1)
        return torch.stack([z + 1, -z], 1)


def test_a_sample_without_a_misclassified_end_is_left_alone_after_four_of_a_line() -> None:
    data = torch.full((4, 1, 2, 2), 0.5), torch.zeros(4, dtype=torch.int64)
    report = robust.evaluate(Sure(), data, threat="l2:0.1", suite=OuterBoundary(lines=2), device="cpu")
    (entry,) = report.attacks
    assert (entry["forwards"], entry["backwards"]) == (4 * 2 * (4 + 1), 4 * 2)  # one is found by a gradient
    assert report.statuses["survived"] == 4


class Middle(nn.Module):
    """The second class in the middle of the box, the first all around."""

    def forward(self, x: Tensor) -> Tensor:
        away = (x.flatten(1) - 0.5).abs().amax(1)
        return torch.stack([away - 0.2, 0.2 - away], 1)


def test_samples_with_and_without_a_misclassified_end_go_side_by_side() -> None:
    x = torch.tensor([0.5, 0.1, 0.45, 0.9]).view(4, 1, 1, 1).expand(4, 1, 2, 2).contiguous()
    y = torch.tensor([1, 0, 1, 0])
    with Target(Middle(), device="cpu") as target:
        oracle = Oracle(target, x, y, torch.arange(4), Threat("linf", "0.3"))
        OuterBoundary(lines=2)(oracle)
        assert oracle.ledger.broken.tolist() == [True, False, True, False]


@pytest.mark.parametrize(("reach", "points"), [(1.0, 3), (None, 9)])
def test_a_walk_ends_that_comes_nowhere_near(reach: float | None, points: int) -> None:
    data = torch.full((3, 1, 1, 2), 0.05), torch.zeros(3, dtype=torch.int64)
    attack = OuterBoundary(steps=8, lines=1, halvings=4, reach=reach)
    report = robust.evaluate(Halves(), data, threat="linf:0.01", suite=attack, device="cpu")
    (entry,) = report.attacks
    assert entry["backwards"] == 3 * points


@pytest.mark.parametrize(
    ("options", "named"),
    [({"steps": 0}, "steps"), ({"lines": 0}, "lines"), ({"halvings": 0}, "halvings"), ({"overshoot": 0.9}, "overshoot"), ({"reach": 0.0}, "reach")],
)  # fmt: skip
def test_what_cannot_be_is_refused(options: dict[str, float], named: str) -> None:
    with pytest.raises(InputError, match=f"outer-boundary: .*{named}"):
        OuterBoundary(**options)  # type: ignore[arg-type]
