"""Surfaces of steps and waves, and those that only bend."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from wrapped import Apply, Wrap, levels, rectified, seen_first, straight_through, trained, trained_with

import robust
from robust.diagnose import roughness, scattering
from robust.target import Target
from robust.threat import Threat


def test_waves_finer_than_the_threat_are_told(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    def waves(x: Tensor) -> Tensor:
        return x + 0.01 * (x * 500).sin()

    assert seen_first(Wrap(net, waves), digits) == ["shattered-gradient"]


def winners(share: float) -> Callable[[Tensor], Tensor]:
    """k-WTA (Xiao et al. 2020): all but the highest of a layer's activations are 0."""

    def highest(x: Tensor) -> Tensor:
        least = x.topk(round(share * x.shape[1]), dim=1).values[:, -1:]
        return x * (x >= least)

    return highest


def thermometer(x: Tensor) -> Tensor:
    """Buckman et al. 2018, with the gradient of a ramp: (N, 1, 8, 8) -> (N, 640)."""
    over = x.flatten(1)[..., None] - (torch.arange(10) + 0.5) / 10
    ramp = (5 * over + 0.5).clamp(0, 1)
    return (ramp + ((over > 0).to(x) - ramp).detach()).flatten(1)


ROUGH: dict[str, Callable[[], nn.Module]] = {
    "activations through floor": lambda: trained_with(
        Apply(lambda z: straight_through(lambda a: (2 * a).floor() / 2)(z.clamp(0, 4)))
    ),
    "activations through round": lambda: trained_with(
        Apply(lambda z: straight_through(torch.round)(z.clamp(0, 4)))
    ),
    "k winners take all": lambda: trained_with(Apply(winners(0.4))),
    "a tenth of them winners": lambda: trained_with(Apply(winners(0.1))),
    "a thermometer's code": lambda: trained_with(nn.ReLU(), Apply(thermometer), 640),
    "inputs of 2 bits": lambda: Wrap(rectified(), levels(3)),
    "inputs of 4 bits": lambda: Wrap(rectified(), levels(15)),
}


@pytest.mark.parametrize("kind", ROUGH)
def test_a_surface_of_steps_is_told_whatever_its_gradient(kind: str, digits: tuple[Tensor, Tensor]) -> None:
    model = ROUGH[kind]()
    for threat in ("linf:0.1", "l2:0.5"):
        assert "rough-surface" in seen_first(model, digits, threat)


def nearest_of_levels(net: nn.Module, x: Tensor, y: Tensor, most: int, eps: float) -> Tensor:
    """An attack in l2 that knows of the levels: ascents beyond eps, of which only what crosses a step is kept. -> (N,) bool."""
    broken = torch.zeros(len(x), dtype=torch.bool)
    for factor in (1.0, 1.4, 2.0):
        point = x.clone()
        for step in range(40):
            point.requires_grad_()
            loss = nn.functional.cross_entropy(net(levels(most)(point)), y, reduction="sum")
            gradient = torch.autograd.grad(loss, point)[0].flatten(1)
            move = nn.functional.normalize(gradient, dim=1).view_as(x) * factor * eps * (1 - step / 40)
            away = point.detach() + move - x
            point = (x + away.renorm(2, 0, factor * eps)).clamp(0, 1)
            level = (point * most).round()
            kept = x.clamp((level - 0.4999) / most, (level + 0.4999) / most).clamp(0, 1)
            wrong = net((kept * most).round() / most).argmax(1) != y
            broken |= wrong & ((kept - x).flatten(1).norm(dim=1) <= eps)
    return broken


def test_what_stands_behind_steps_is_more_than_could_be_broken(digits: tuple[Tensor, Tensor]) -> None:
    """Why `rough-surface` is told: in l2 a pixel need only cross the step, and leaves the others more of eps."""
    model = Wrap(rectified(), levels(3))
    report = robust.evaluate(model, digits, threat="l2:0.3", device="cpu")
    assert report.trust != "trusted"
    broken = nearest_of_levels(model.net, *digits, 3, 0.3).numpy()
    assert (broken & (report.verdicts.status == "survived").to_numpy()).sum() > 5


class Bits(nn.Module):
    """Rounds what a layer gives to 255 levels of its range, as 8-bit deployment does, with a straight-through gradient."""

    def __init__(self, layer: nn.Module, x: Tensor) -> None:
        super().__init__()
        out = layer(x)
        self.layer, self.low, self.step = layer, float(out.min()), float(out.max() - out.min()) / 255

    def forward(self, x: Tensor) -> Tensor:
        return straight_through(lambda z: ((z - self.low) / self.step).round() * self.step + self.low)(
            self.layer(x)
        )


@torch.no_grad()
def in_8_bits(net: nn.Module, x: Tensor) -> nn.Module:
    layers = []
    for layer in net.children():
        layers.append(Bits(layer, x))
        x = layer(x)
    return nn.Sequential(*layers)


class Recurrent(nn.Module):
    """The rows of a picture, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.GRU(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rows(x.squeeze(1))[0][:, -1])
        return out


EVEN: dict[str, Callable[[Tensor], nn.Module]] = {
    "ReLU": lambda _: rectified(),
    "GELU": lambda _: trained_with(nn.GELU()),
    "hard-swish": lambda _: trained_with(nn.Hardswish()),
    "tanh": lambda _: trained_with(nn.Tanh()),
    "in 8 bits": lambda x: in_8_bits(rectified(), x),
    "inputs of 8 bits": lambda _: Wrap(rectified(), levels(255)),
    "bfloat16": lambda _: Wrap(copy.deepcopy(rectified()).bfloat16(), lambda x: x.bfloat16()),
    "tiny logits": lambda _: Wrap(rectified(), after=lambda z: z * 1e-6),
    "untrained and recurrent": lambda _: Recurrent(),
}


@pytest.mark.parametrize("kind", EVEN)
def test_a_surface_that_bends_is_no_surface_of_steps(kind: str, digits: tuple[Tensor, Tensor]) -> None:
    model = EVEN[kind](digits[0])
    for threat in ("linf:0.1", "linf:8/255", "l2:0.5"):
        assert seen_first(model, digits, threat) == []


def look_along(model: nn.Module, x: Tensor, y: Tensor) -> roughness.Rough:
    with Target(model.eval(), device="cpu") as target:
        return roughness.rough(target, x, y, Threat.parse("linf:0.1"), 1e-6)


def test_waves_are_told(digits: tuple[Tensor, Tensor]) -> None:
    found = look_along(Wrap(rectified(), lambda x: x + 0.05 * (60 * x).sin()), *digits)
    assert found.told
    assert found.turns > roughness.TURNS


def test_a_steep_slope_between_two_plateaus_is_not_told() -> None:
    """A net fitted to one-hot targets may leave a margin still and then move it all within an interval."""

    class Cliff(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            light = x.flatten(1).mean(1, keepdim=True) - 0.5
            return torch.cat([(100 * light).tanh() + 0.05 * light, torch.zeros_like(light)], 1)

    x = 0.5 + 0.3 * (torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5)
    found = look_along(Cliff(), x, Cliff()(x).argmax(1))
    assert found.share > roughness.MOST
    assert not found.told
    assert found.kept < 0.1  # of a continuous rise


@pytest.mark.parametrize("threat", ["l1:2", "l0:4", "linf:1/255"])
def test_steps_are_looked_for_where_the_threat_has_a_scale(
    threat: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    assert "rough-surface" not in seen_first(Wrap(net, levels(15)), digits, threat)


class Glimpses(nn.Module):
    """Four queries, each of which looks at the patch that answers it best, by a softmax that is made sharper once it is trained."""

    temperature = 0.05

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.place = nn.Linear(9, 32), nn.Parameter(0.3 * torch.randn(36, 32))
        self.query, self.head = nn.Parameter(torch.randn(32, 4) / 32**0.5), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        seen = (self.patch(nn.functional.unfold(x, 3).transpose(1, 2)) + self.place).relu()
        where = (seen @ self.query / self.temperature).softmax(1)
        out: Tensor = self.head((where.transpose(1, 2) @ seen).flatten(1))
        return out


@functools.cache
def glimpses() -> nn.Module:
    return trained(Glimpses)


def at_temperature(value: float) -> nn.Module:
    model = copy.copy(glimpses())
    model.temperature = value  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("threat", ["linf:0.1", "l2:0.5"])
def test_a_selection_that_switches_within_the_threat_is_told(
    threat: str, digits: tuple[Tensor, Tensor]
) -> None:
    # Where it switches the margin all but jumps, which flat-margins may tell, too.
    assert seen_first(at_temperature(0.01), digits, threat)[0] == "scattered-gradients"
    assert seen_first(at_temperature(0.005), digits, threat)[0] == "scattered-gradients"
    assert seen_first(at_temperature(0.1), digits, threat) == []


@pytest.mark.parametrize(("eps", "share"), [("0.1", 1.0), ("0.0001", 0.0)])
def test_gradients_scatter_where_waves_are_finer_than_the_threat(
    eps: str, share: float, digits: tuple[Tensor, Tensor]
) -> None:
    """A gradient of cosines of every pixel, whose signs are as good as random two radii off, or the same."""
    x = 0.25 + digits[0] / 2
    waves = nn.Sequential(
        nn.Flatten(), Apply(lambda z: (100 * z).sin().sum(1, keepdim=True) * torch.tensor([1.0, 0.0]))
    )
    with Target(waves.eval(), device="cpu") as target:
        for norm, radius in (("linf", eps), ("l2", repr(8 * float(eps)))):
            assert scattering.scattered(target, x, 0 * digits[1], Threat.parse(f"{norm}:{radius}")) == share
