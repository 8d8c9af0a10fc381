"""Gradients that are not the slope of the model, of all of it or of a part, and honest ones that look like them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from toy import ENOUGH
from wrapped import Wrap, seen_first, with_gradient

import robust
from robust.bpda import Substituted
from robust.diagnose import slope
from robust.target import Target
from robust.threat import Threat


def scrambled(gradient: Tensor) -> Tensor:
    order = torch.randperm(gradient[0].numel(), generator=torch.Generator().manual_seed(0))
    return gradient.flatten(1)[:, order].view_as(gradient)


def every_other_turned(gradient: Tensor) -> Tensor:
    signs = 1 - 2 * (torch.arange(gradient[0].numel()) % 2)
    return gradient * signs.view_as(gradient[0])


LIES: dict[str, Callable[[Tensor], Tensor]] = {
    "scrambled": with_gradient(scrambled),
    "every other pixel turned": with_gradient(every_other_turned),
    "without its signs": with_gradient(torch.abs),
    "constant": with_gradient(torch.ones_like),
    "turned round": with_gradient(torch.neg),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_gradient_that_is_not_the_slope_is_told(
    lie: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    model = Wrap(net, LIES[lie]).eval()
    report = robust.evaluate(model, digits, threat="linf:0.1", suite=ENOUGH, device="cpu")
    assert "gradient-model" in {finding["check"] for finding in report.findings}
    assert report.trust == "unreliable"


def test_more_samples_are_looked_at_where_a_few_leave_a_doubt(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    cost = {}
    for name, model in {"honest": net, "scrambled": Wrap(net, LIES["scrambled"]).eval()}.items():
        with Target(model, device="cpu") as target:
            found = slope.uphill(target, x, y, Threat.parse("linf:0.1"))
        cost[name] = found.backwards
        assert found.clear is (name == "honest")
    assert cost["honest"] < slope.SAMPLES * 4 < cost["scrambled"]


NEVER_TWICE: dict[str, Callable[[Tensor], Tensor]] = {
    "turned round at random": lambda g: g * (2 * torch.randint(2, (len(g), 1, 1, 1)) - 1),
    "noisy": lambda g: g + 0.5 * g.std() * torch.randn_like(g),
}


@pytest.mark.parametrize("kind", NEVER_TWICE)
def test_a_gradient_that_differs_the_next_time_is_told(
    kind: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """The logits do not, so that nothing else says that there is chance in the model."""
    assert seen_first(Wrap(net, with_gradient(NEVER_TWICE[kind])), digits) == ["gradient-model"]


@pytest.mark.parametrize(("kind", "findings"), [(torch.bfloat16, []), (torch.float32, ["gradient-model"])])
def test_what_rounding_explains_is_no_other_model(
    kind: torch.dtype, findings: list[str], net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """Without gradients torch fuses attention, which in bfloat16 moves logits by a hundredth of their spread."""

    def fused(logits: Tensor) -> Tensor:
        return logits if torch.is_grad_enabled() else logits * 1.01

    model = Wrap(copy.deepcopy(net).to(kind), lambda x: x.to(kind), fused)
    assert seen_first(model, digits) == findings


FAITHFUL: dict[str, Callable[[Tensor], Tensor]] = {
    "tiny": with_gradient(lambda g: g * 1e-30),
    "huge": with_gradient(lambda g: g * 1e30),
    "a substitute's": Substituted(lambda x: (x * 255).round() / 255),
    "of a smooth transform": lambda x: x - (x * 6 * torch.pi).sin() / (12 * torch.pi),
}


@pytest.mark.parametrize("kind", FAITHFUL)
def test_a_gradient_that_leads_uphill_is_believed(
    kind: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    model = Wrap(net, FAITHFUL[kind]).eval()
    report = robust.evaluate(model, digits, threat="linf:0.1", suite=ENOUGH, device="cpu")
    assert report.findings == []


def test_a_part_that_passes_no_gradient_beside_one_that_does_is_told(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """The other part is another net: its gradient leads uphill, and attacks that follow it see little of the model."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        other = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        x, y = digits
        optimizer = torch.optim.Adam(other.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(other(x), y).backward()
            optimizer.step()

    class Mixed(nn.Module):
        def __init__(self, share: float, second: nn.Module) -> None:
            super().__init__()
            self.first, self.second, self.share = net, second, share

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x).detach() * (1 - self.share) + self.share * self.second(x)

    assert seen_first(Mixed(0.05, other), digits) == ["partial-gradient"]
    assert seen_first(Mixed(0.05, net), digits) == []  # in proportion: the way is right


def test_signs_in_place_of_a_gradient_are_no_slope_but_lead_uphill(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    assert seen_first(Wrap(net, with_gradient(torch.sign)), digits) == ["partial-gradient"]


def small_slopes(gradient: Tensor, share: float, instead: float) -> Tensor:
    """So much times their value in place of the slopes that are the smallest of an image, a share of them."""
    size = gradient.flatten(1).abs()
    bound = size.quantile(share, dim=1).view(-1, 1, 1, 1)
    return torch.where(gradient.abs() < bound, instead * gradient, gradient)


def in_part_noise(gradient: Tensor) -> Tensor:
    noise = torch.randn(gradient[0].shape, generator=torch.Generator().manual_seed(1))
    return gradient + 0.3 * gradient.square().flatten(1).mean(1).sqrt().view(-1, 1, 1, 1) * noise


PARTLY: dict[str, Callable[[Tensor], Tensor]] = {
    "every other pixel": lambda g: g * (torch.arange(64).view(8, 8) % 2),
    "turned round at a quarter of the pixels": lambda g: g * (1 - 2 * (torch.arange(64).view(8, 8) % 4 == 0).float()),
    "one half of the picture": lambda g: g * (torch.arange(8) < 4),
    "without the small slopes": lambda g: small_slopes(g, 0.8, 0),
    "small slopes turned round": lambda g: small_slopes(g, 0.5, -1),
    "in part noise": in_part_noise,
    "of a steeper image": lambda g: g * g.abs(),
}  # fmt: skip


@pytest.mark.parametrize("kind", PARTLY)
def test_a_gradient_of_some_of_the_pixels_is_told(
    kind: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """It leads uphill, as steeply as it says in l2 but not as steeply as it could: searches in l2 saw nothing of it."""
    model = Wrap(net, with_gradient(PARTLY[kind]))
    report = robust.evaluate(model, digits, threat="l2:0.5", device="cpu")
    assert "partial-gradient" in {finding["check"] for finding in report.findings}


class Pooled(nn.Module):
    """The largest of each square's values beside all of them."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, 8, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 14 * 14, 10)]
        self.largest, self.all = nn.Sequential(*layers), nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.largest(x) + 0.45 * self.all(x.flatten(1))
        return out


def test_pooled_maxima_of_a_black_background_are_no_missing_gradient() -> None:
    """Where neighbours are equal, the largest of them has no slope: it is looked at where they differ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Pooled().eval()
        x = torch.zeros(24, 1, 28, 28)
        x[:, :, 11:17, 11:17] = torch.rand(24, 1, 6, 6)
    with torch.no_grad():
        y = model(x).argmax(1)
    assert seen_first(model, (x, y), "linf:0.02") == []


def test_a_gate_that_closes_within_the_threat_is_told(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """At the samples there is a gradient, and none at any point that is searched."""

    def gate(x: Tensor) -> Tensor:
        level = (x * 16).round() / 16
        odd = (x - level).abs().flatten(1).amax(1) > 0.01  # the digits' own values are sixteenths
        return torch.where(odd.view(-1, 1, 1, 1), (x > 0.5).to(x), x)

    assert "zero-gradient" in seen_first(Wrap(net, gate), digits)


def test_a_net_that_is_constant_around_a_few_samples_hides_nothing(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """As nets trained for verified bounds are, around some one in twenty: these are few, in the threat as at the samples."""
    few = digits[0][:2]

    class Dull(Wrap):
        def forward(self, x: Tensor) -> Tensor:
            near = (x[:, None] - few).abs().flatten(2).amax(2).amin(1) < 0.2
            return torch.where(near[:, None], torch.ones(10, dtype=x.dtype), self.net(x))

    assert seen_first(Dull(net, lambda x: x), digits) == []
