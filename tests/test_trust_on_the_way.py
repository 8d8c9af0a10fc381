"""Models whose gradients are right at the samples, and lead astray on the way to the boundary."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, one_hot
from wrapped import Wrap, levels, with_gradient

import robust
from robust.attacks import PGD
from robust.diagnose import Subject
from robust.diagnose.ascent import ALIKE, ascents
from robust.report import Report
from robust.sources import load_data
from robust.target import Target
from robust.threat import Threat


class Tempered(nn.Module):
    """Logits that shrink as the input gets rough; the class that it says is the net's own."""

    def __init__(self, net: nn.Module, rate: float) -> None:
        super().__init__()
        self.net, self.rate = net, rate

    def forward(self, x: Tensor) -> Tensor:
        rough = (x - avg_pool2d(x, 3, 1, 1)).square().flatten(1).mean(1)
        out: Tensor = self.net(x) * (-self.rate * rough).exp()[:, None]
        return out


class Cascade(nn.Module):
    """The net where it is sure, and elsewhere the class of the nearest of the samples, which has no gradient."""

    def __init__(self, net: nn.Module, known: tuple[Tensor, Tensor], least: float, vote: float) -> None:
        super().__init__()
        self.net, self.known, self.least, self.vote = net, known, least, vote

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        first, second = logits.topk(2, dim=1).values.unbind(1)
        nearest = torch.cdist(x.detach().flatten(1), self.known[0].flatten(1)).argmin(1)
        instead = self.vote * one_hot(self.known[1][nearest], logits.shape[1]).to(logits)
        return torch.where((first - second > self.least)[:, None], logits, instead)


class Turned(nn.Module):
    """A net whose gradient is changed where its margin is small, turned round by default, and there alone."""

    def __init__(self, net: nn.Module, least: float, change: Callable[[Tensor], Tensor] = torch.neg) -> None:
        super().__init__()
        self.net, self.least, self.change = net, least, change

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            first, second = self.net(x).topk(2, dim=1).values.unbind(1)
        sure = (first - second > self.least).view(-1, 1, 1, 1)
        out: Tensor = self.net(torch.where(sure, x, with_gradient(self.change)(x)))
        return out


def seen(model: nn.Module, digits: tuple[Tensor, Tensor], threat: str) -> tuple[Report, list[str]]:
    report = robust.evaluate(model.eval(), digits, threat=threat, device="cpu")
    return report, [finding["check"] for finding in report.findings]


@pytest.mark.parametrize(("threat", "more"), [("linf:0.1", 2), ("l2:0.6", 4), ("l1:3", 0)])
def test_a_temperature_that_falls_hides_no_boundary(
    threat: str, more: int, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """Margins fall to nothing without a class that comes near; what sees their ratios breaks what the bare net's attacks do."""
    bare, _ = seen(net, digits, threat)
    report, found = seen(Tempered(net, 150), digits, threat)
    blinded = robust.evaluate(
        Tempered(net, 150), digits, threat=threat, suite=[PGD(steps=20, loss="margin")], device="cpu"
    )
    assert report.statuses["survived"] <= bare.statuses["survived"] + more
    assert blinded.statuses["survived"] > bare.statuses["survived"] + more + 5
    assert ("shrinking-logits" in found) == (report.statuses["survived"] > 3)
    assert report.checks["shrunk"] == report.statuses["survived"]
    assert bare.checks["shrunk"] == 0


def test_a_temperature_is_seen_through_where_there_are_three_classes(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    few = x[y < 3], y[y < 3]
    bare, told = seen(Wrap(net, after=lambda z: z[:, :3]), few, "linf:0.12")
    report, found = seen(Tempered(Wrap(net, after=lambda z: z[:, :3]), 400), few, "linf:0.12")
    assert told == []
    assert report.statuses["survived"] <= bare.statuses["survived"]
    assert "shrinking-logits" in found


@pytest.mark.parametrize("vote", [1, 20])
def test_an_answer_without_a_gradient_where_the_net_is_unsure_is_told(
    vote: float, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    report, found = seen(Cascade(net, digits, least=3, vote=vote), digits, "linf:0.1")
    assert "masked-ascent" in found
    assert ("shrinking-logits" in found) == (vote == 1)
    assert report.trust == "unreliable"


def test_a_backward_that_turns_near_the_boundary_is_told(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    _, found = seen(Turned(net, least=9.0), digits, "linf:0.08")
    assert "masked-ascent" in found


def test_a_backward_that_is_wrong_in_part_near_the_boundary_is_told(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """Along it the margin rises everywhere, so that it is seen all around the ends of ascents alone."""

    def noisy(gradient: Tensor) -> Tensor:
        noise = torch.randn(gradient[0].shape, generator=torch.Generator().manual_seed(1))
        return gradient + 2 * gradient.square().flatten(1).mean(1).sqrt().view(-1, 1, 1, 1) * noise

    report, found = seen(Turned(net, 9.0, noisy), digits, "linf:0.08")
    assert found == ["masked-ascent"]
    assert report.checks["ascent_level"] <= 0.1
    assert report.checks["ascent_alike"] < ALIKE


class Spectrum(nn.Module):
    """Logarithms of the magnitudes of Fourier coefficients: where one is near 0 the surface bends sharply."""

    def forward(self, x: Tensor) -> Tensor:
        return (torch.fft.fft2(x).abs() + 1e-3).log().flatten(1)


class Bumps(nn.Module):
    """A code of each value: eight bumps, of which one or two see it."""

    def forward(self, x: Tensor) -> Tensor:
        centres = torch.linspace(0, 1, 8).view(1, 8, 1, 1)
        return torch.exp(-(((x - centres) / 0.08) ** 2)).flatten(1)


def trained_behind(front: nn.Module, steps: int, pool: int = 1) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A small net behind a front, and the images that it was trained on, so many times smaller."""
    data = load_data("builtin:mnist5k:train").limit(1000)
    x, y = nn.functional.avg_pool2d(data.rows(slice(None)), pool), torch.as_tensor(data.y)
    torch.manual_seed(0)
    model = nn.Sequential(front, nn.Linear(front(x[:1]).shape[1], 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, (x, y)


@pytest.mark.parametrize(
    ("front", "threat", "turn"), [(Spectrum(), "linf:0.002", True), (nn.Flatten(), "linf:0.05", False)]
)
def test_gradients_that_turn_from_step_to_step_are_told(front: nn.Module, threat: str, turn: bool) -> None:
    model, (x, y) = trained_behind(front, 40)
    report, found = seen(model, (x[:128], y[:128]), threat)
    assert found == (["turning-gradients"] if turn else [])
    assert report.checks["ascended"] > 16
    small = [entry["attacked"] for entry in report.attacks if entry["selection"].get("turning")]
    assert sum(small) > 5 if turn else sum(small) == 0


PASSED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "in bfloat16": lambda net: Wrap(net.bfloat16(), Tensor.bfloat16, lambda z: (z + 300).float()),
    "inputs of 4 bits": lambda net: Wrap(net, levels(15)),
    "with noise": lambda net: Wrap(net, after=lambda z: z + torch.randn_like(z)),
}


@pytest.mark.parametrize("threat", ["linf:0.004", "l2:0.04"])
def test_small_steps_break_what_all_before_left_where_gradients_turn(threat: str) -> None:
    model, (x, y) = trained_behind(Spectrum(), 40)
    report, found = seen(model, (x[:128], y[:128]), threat)
    small = [entry for entry in report.attacks if (entry["parameters"].get("step_size") or 1) <= 0.15]
    assert sum(entry["broke"] for entry in small) > 5
    assert found == ["turning-gradients"]
    assert (report.checks["ahead"] > 0) == (threat[:2] == "l2")  # searches inside, of breaks seen outside
    model, (x, y) = trained_behind(nn.Flatten(), 40)
    honest, _ = seen(model, (x[:128], y[:128]), "l2:0.5")
    assert honest.checks["seen"] > 50
    assert honest.checks["ahead"] == 0


@pytest.mark.parametrize(("front", "long"), [(Bumps(), True), (nn.Flatten(), False)])
def test_what_long_ascents_break_behind_a_code_of_each_value_is_told(front: nn.Module, long: bool) -> None:
    """In l1, where ascents from outside come in along slopes of other bumps."""
    model, (x, y) = trained_behind(front, 60, pool=2)
    report, found = seen(model, (x[:96], y[:96]), "l1:1")
    assert found == (["longer-ascent-wins"] if long else [])
    assert report.statuses["survived"] > 3


PASSED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "in bfloat16": lambda net: Wrap(net.bfloat16(), Tensor.bfloat16, lambda z: (z + 300).float()),
    "inputs of 4 bits": lambda net: Wrap(net, levels(15)),
    "with noise": lambda net: Wrap(net, after=lambda z: z + torch.randn_like(z)),
}


@pytest.mark.parametrize("kind", PASSED)
def test_rounding_and_noise_tell_nothing_of_ascents(
    kind: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = (part[:12] for part in digits)
    with Target(PASSED[kind](net).eval(), device="cpu") as target:
        subject = Subject(
            target, Threat("linf", "0.02"), x, y, torch.arange(12), torch.ones(12, dtype=torch.bool), [], 64
        )
        assert ascents(subject) is None
