"""Data of a few features, where classes alternate within the box and surfaces bend within the threat, and nobody masks anything."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from wrapped import Apply, Wrap, levels

import robust
from robust.diagnose import Finding, Subject, review, spared, unbounded
from robust.parts import Plan, attack_part, join
from robust.report import Report
from robust.run import Settings
from robust.sources import as_samples
from robust.suites import resolve
from robust.target import Target
from robust.threat import Threat

Draw = Callable[..., Tensor]


def spirals(unit: Draw, normal: Draw, y: Tensor) -> tuple[Tensor, Tensor]:
    radius = unit(len(y))
    angle = 7 * radius + y * 2 * math.pi / 3 + 0.1 * normal(len(y))
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1) / 2.2 + 0.5, y


def moons(unit: Draw, normal: Draw, y: Tensor) -> tuple[Tensor, Tensor]:
    y = y % 2
    angle = math.pi * unit(len(y))
    upper, lower = (
        torch.stack([angle.cos(), angle.sin()], 1),
        torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1),
    )
    x = torch.where(y[:, None] == 0, upper, lower) + 0.1 * normal(len(y), 2)
    return (x + torch.tensor([1.4, 0.9])) / torch.tensor([3.8, 2.3]), y


def squares(
    a_side: int,
) -> Callable[[Draw, Draw, Tensor], tuple[Tensor, Tensor]]:
    def board(unit: Draw, _: Draw, y: Tensor) -> tuple[Tensor, Tensor]:
        x = unit(len(y), 2)
        return x, (a_side * x).long().sum(1) % 2

    return board


DATA: dict[str, Callable[[Draw, Draw, Tensor], tuple[Tensor, Tensor]]] = {
    "spirals": spirals,
    "moons": moons,
    "4 x 4 squares": squares(4),
    "6 x 6 squares": squares(6),
}


def drawn(kind: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=generator)
    unit, normal = (functools.partial(draw, generator=generator) for draw in (torch.rand, torch.randn))
    x, y = DATA[kind](unit, normal, y)
    return x.clamp(0, 1), y


class Bumps(nn.Module):
    """Radial basis functions: far from all of them there is hardly a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.rand(100, 2))

    def forward(self, x: Tensor) -> Tensor:
        return (-50 * torch.cdist(x, self.centres).square()).exp()


def waves(frequency: float) -> nn.Module:
    """Fourier features (Tancik et al. 2020)."""
    along = torch.randn(2, 64, generator=torch.Generator().manual_seed(1)) * 2 * math.pi * frequency
    return Apply(lambda x: torch.cat([(x @ along).sin(), (x @ along).cos()], 1))


NETS: dict[str, Callable[[], nn.Module]] = {
    "bumps": lambda: nn.Sequential(Bumps(), nn.Linear(100, 3)),
    "waves": lambda: nn.Sequential(waves(1), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 3)),
    "short waves": lambda: nn.Sequential(waves(3), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 3)),
    "ReLU": lambda: nn.Sequential(
        nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
    ),
}


@functools.cache
def fitted(net: str, kind: str) -> nn.Module:
    x, y = drawn(kind, 2000, 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETS[net]()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(40):
            for rows in torch.randperm(len(x)).split(100):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
    return model.eval().requires_grad_(requires_grad=False)


def right(model: nn.Module, kind: str) -> tuple[Tensor, Tensor]:
    x, y = drawn(kind, 150, 5)
    kept = model(x).argmax(1) == y
    return x[kept][:100], y[kept][:100]


def in_reach(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """Which samples a dense grid inside the threat breaks: (N,) bool."""
    unit = torch.linspace(-1, 1, 101)
    moves = torch.cartesian_prod(unit, unit)
    p = {"linf": math.inf, "l2": 2, "l1": 1}[threat.norm]
    moves = moves[moves.norm(p=p, dim=1) <= 1] * threat.radius
    return torch.stack(
        [(model((at + moves).clamp(0, 1)).argmax(1) != label).any() for at, label in zip(x, y, strict=True)]
    )


def overstated(report: Report, model: nn.Module, x: Tensor, y: Tensor) -> int:
    stands = torch.tensor((report.verdicts.status == "survived").to_numpy())
    return int((stands & in_reach(model, x, y, report.threat)).sum())


HONEST = [
    ("bumps", "4 x 4 squares", "linf:0.06"),  # classes alternate: the ascent over the box ends on a top
    ("bumps", "moons", "l2:0.096"),  # searches inside are ahead of what was seen outside, and right
    ("waves", "6 x 6 squares", "l2:0.0495"),
    ("short waves", "6 x 6 squares", "linf:0.1"),
    ("waves", "spirals", "linf:0.1"),  # nothing stands
    ("short waves", "spirals", "l2:0.0495"),  # it bends within the threat, and what stands does
]


@pytest.mark.parametrize(("net", "kind", "threat"), HONEST)
def test_an_honest_net_of_two_features_is_trusted(net: str, kind: str, threat: str) -> None:
    model = fitted(net, kind)
    x, y = right(model, kind)
    report = robust.evaluate(model, (x, y), threat=threat, device="cpu")
    assert report.findings == []
    assert overstated(report, model, x, y) <= 2


@pytest.mark.parametrize("threat", ["linf:0.25", "l2:0.2"])
def test_what_random_points_break_is_told(threat: str) -> None:
    """Gradients say nothing of what lies past a plain without any."""
    model = fitted("bumps", "moons")
    x, y = right(model, "moons")
    report = robust.evaluate(model, (x, y), threat=threat, device="cpu")
    assert overstated(report, model, x, y) > 2
    assert [finding["check"] for finding in report.findings] == ["black-box-wins"]
    assert report.checks["reached"] > 2


MASKED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "inputs of 6 levels": (levels(5), "rough-surface"),
    "inputs of 3 bits, and no gradient": (lambda x: (7 * x).round() / 7, "zero-gradient"),
    "waves": (lambda x: x + 0.01 * (500 * x).sin(), "shattered-gradient"),
}


@pytest.mark.parametrize("kind", MASKED)
def test_what_masks_gradients_of_two_features_is_told(kind: str) -> None:
    before, check = MASKED[kind]
    model = Wrap(fitted("ReLU", "moons"), before).eval()
    x, y = right(model, "moons")
    report = robust.evaluate(model, (x, y), threat="linf:0.1", device="cpu")
    assert check in {finding["check"] for finding in report.findings}


class ByLight(nn.Module):
    """Two classes by how light an input is on average, in steps; noise is dark."""

    def forward(self, x: Tensor) -> Tensor:
        light = (x.flatten(1).mean(1) > 0.75).to(x) + 0 * x.flatten(1).sum(1)
        return torch.stack([0.5 - light, light - 0.5], 1)


def test_few_features_that_withstand_ascents_and_noise_are_told() -> None:
    x = torch.cat([torch.full((16, 16), 0.2), torch.full((16, 16), 0.8)])
    y = torch.arange(2).repeat_interleave(16)
    with Target(ByLight(), device="cpu") as target:
        none = torch.zeros(32, dtype=torch.bool)
        subject = Subject(target, Threat.parse("linf:0.1"), x, y, torch.arange(32), none, [], 32)
        found = unbounded(subject)
        assert found is not None
        assert found.message.startswith("16 of 32 samples")  # those that noise is like


FINDINGS = [
    Finding(check, "suspect", "")
    for check in (
        "shattered-gradient",
        "rough-surface",
        "scattered-gradients",
        "turning-gradients",
        "masked-ascent",
        "flat-margins",
    )
]


@pytest.mark.parametrize(
    ("standing", "n", "checks", "left"),
    [
        (0, 100, {}, ["turning-gradients", "masked-ascent", "flat-margins"]),
        (2, 100, {}, ["turning-gradients", "masked-ascent", "flat-margins"]),
        (3, 100, {}, None),
        (2, 20, {}, None),  # a tenth
        (30, 100, {"sampled": 30, "reached": 1}, ["flat-margins"]),
        (30, 100, {"sampled": 30, "reached": 2}, None),
        (30, 100, {"sampled": 2, "reached": 0}, None),
    ],
)
def test_whom_surfaces_mislead_must_stand(
    standing: int, n: int, checks: dict[str, float], left: list[str] | None
) -> None:
    table = pd.DataFrame({"status": ["survived"] * standing + ["broken"] * (n - standing)})
    expected = [finding.check for finding in FINDINGS] if left is None else left
    assert [finding.check for finding in spared(FINDINGS, table, checks)] == expected


@pytest.mark.parametrize(
    ("sampled", "reached", "fires"), [(10, 2, True), (10, 1, False), (60, 3, True), (60, 2, False)]
)
def test_how_many_random_points_must_break(sampled: int, reached: int, fires: bool) -> None:
    found = review([], 100, cascade=True, checks={"sampled": sampled, "reached": reached})
    assert [finding.check for finding in found] == (["black-box-wins"] if fires else [])


@pytest.mark.parametrize(
    ("crossed", "sampled", "fires"), [(0, 30, False), (1, 30, False), (2, 30, True), (0, 0, True)]
)
def test_a_second_opinion_yields_to_points_all_over_the_threat(
    crossed: int, sampled: int, fires: bool
) -> None:
    counts = {"asked": 16, "nearer": 4, "crossed": crossed, "sampled": sampled, "reached": 1}
    assert bool(review([], 100, cascade=True, checks=counts)) is fires


def test_parts_say_what_the_whole_says() -> None:
    model = fitted("bumps", "moons")
    x, y = right(model, "moons")
    threat = Threat.parse("linf:0.25")
    name, stages = resolve("standard", threat)
    plan = Plan(threat, name, stages)
    samples = as_samples((x, y), bounds=(0.0, 1.0))

    def report(*ranges: range) -> Report:
        target = Target(model, device="cpu")
        parts = [attack_part(target, samples, plan, Settings(), rows) for rows in ranges]
        return join(parts, plan, data=samples.about, n=len(samples))

    whole, cut = report(range(100)), report(range(30), range(30, 100))
    assert whole.findings == cut.findings != []
    assert [whole.checks[key] for key in ("sampled", "reached")] == [
        cut.checks[key] for key in ("sampled", "reached")
    ]
