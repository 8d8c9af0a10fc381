"""Verdicts on models that were not made for this: what they may do, and how robustness is faked."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from toy import ENOUGH

import robust
from robust.attacks import PGD
from robust.bpda import Substituted
from robust.diagnose import PREFLIGHT_SAMPLES, preflight, roughness
from robust.parts import Plan, attack_part, join
from robust.report import Report
from robust.run import Run, Settings
from robust.run_checks import second_opinion
from robust.sources import as_samples, load_data
from robust.suites import Stage
from robust.target import Target
from robust.threat import Threat


class Reshapes(nn.Module):
    """A model that flattens with view(len(x), -1), which no rows at all do not survive."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out.view(len(x), -1)


@pytest.mark.parametrize("threat", ["linf:0.05", "l2:0.3", "l1:1", "l0:2"])
def test_a_model_is_never_called_on_no_rows(
    threat: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="cannot reshape"):
        Reshapes(net)(digits[0][:0])
    x, y = digits[0][:12], digits[1][:12]
    plain = robust.evaluate(net, (x, y), threat=threat, device="cpu")
    report = robust.evaluate(Reshapes(net).eval(), (x, y), threat=threat, device="cpu")
    assert report.failures == []
    assert report.trust == "trusted"
    assert report.statuses == plain.statuses
    assert report.statuses["survived"] > 0


class Wrap(nn.Module):
    """A model with something in front of it and behind it."""

    def __init__(
        self,
        net: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


def with_gradient(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Passes inputs through, and changes what autograd brings back."""

    class Changed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return change(gradient)

    def through(x: Tensor) -> Tensor:
        out: Tensor = Changed.apply(x)  # type: ignore[no-untyped-call]
        return out

    return through


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


def ruled_out(logits: Tensor) -> Tensor:
    """With one class more, which is never the answer."""
    return torch.cat([logits, torch.full_like(logits[:, :1], -1e9)], 1)


RULED_OUT: dict[str, tuple[list[str], Callable[[Tensor], Tensor]]] = {
    "none": ([], lambda x: x),
    "noise": (["randomized"], lambda x: x + 1e-3 * torch.randn_like(x)),
    "batch statistics": (["batch-dependent"], lambda x: x - 0.01 * x.mean(0, keepdim=True)),
    "another forward": (["gradient-model"], lambda x: x + 0.01 * torch.is_grad_enabled()),
}


@pytest.mark.parametrize("flaw", RULED_OUT)
def test_a_class_that_is_ruled_out_hides_no_flaw(
    flaw: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """Beside its logit all that the others do is small."""
    expected, before = RULED_OUT[flaw]
    assert seen_first(Wrap(net, before, ruled_out), digits) == expected


@pytest.mark.parametrize(("kind", "findings"), [(torch.bfloat16, []), (torch.float32, ["gradient-model"])])
def test_what_rounding_explains_is_no_other_model(
    kind: torch.dtype, findings: list[str], net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """Without gradients torch fuses attention, which in bfloat16 moves logits by a hundredth of their spread."""

    def fused(logits: Tensor) -> Tensor:
        return logits if torch.is_grad_enabled() else logits * 1.01

    model = Wrap(copy.deepcopy(net).to(kind), lambda x: x.to(kind), fused)
    assert seen_first(model, digits) == findings


SQUASHED: dict[str, tuple[bool, Callable[[Tensor], Tensor]]] = {
    "tanh": (True, lambda z: 10 * (z / 2).tanh()),
    "erf": (True, torch.erf),
    "clamp": (True, lambda z: z.clamp(-3, 3)),
    "a winner that is raised": (True, lambda z: z + 20 * nn.functional.one_hot(z.argmax(1), z.shape[1])),
    "what is above the leading two's middle": (
        True,
        lambda z: (z - z.topk(2, 1).values.mean(1, keepdim=True)).relu(),
    ),
    "a wide tanh": (False, lambda z: 30 * (z / 30).tanh()),
    "logarithms of probabilities": (False, lambda z: (3 * z).log_softmax(1)),
    "an ensemble's": (False, lambda z: (z.softmax(1) + (2 * z).softmax(1)).log()),
    "less the highest": (False, lambda z: z - z.amax(1, keepdim=True)),
    "one of them 0": (False, lambda z: z - z[:, :1]),
}


@pytest.mark.parametrize("kind", SQUASHED)
def test_logits_at_the_end_of_what_they_can_be_are_told(
    kind: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """There the label's own logit says nothing, and near a boundary neither does the other."""
    squashed, after = SQUASHED[kind]
    assert ("flat-margins" in seen_first(Wrap(net, after=after), digits)) == squashed


FAITHFUL: dict[str, Callable[[Tensor], Tensor]] = {
    "tiny": with_gradient(lambda g: g * 1e-30),
    "huge": with_gradient(lambda g: g * 1e30),
    "a substitute's": Substituted(lambda x: (x * 255).round() / 255),
    "of a smooth transform": lambda x: x - (x * 6 * torch.pi).sin() / (12 * torch.pi),
}


def seen_first(model: nn.Module, digits: tuple[Tensor, Tensor], threat: str = "linf:0.1") -> list[str]:
    """Names of what is found before the attacks, on as many samples as they look at."""
    x, y = (part[:PREFLIGHT_SAMPLES] for part in digits)
    with Target(model.eval(), device="cpu") as target:
        return [finding.check for finding in preflight(target, x, y, Threat.parse(threat)).findings]


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


PARTLY: dict[str, Callable[[Tensor], Tensor]] = {
    "every other pixel": lambda g: g * (torch.arange(64).view(8, 8) % 2),
    "turned round at a quarter of the pixels": lambda g: g * (1 - 2 * (torch.arange(64).view(8, 8) % 4 == 0).float()),
    "one half of the picture": lambda g: g * (torch.arange(8) < 4),
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


def test_waves_finer_than_the_threat_are_told(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    def waves(x: Tensor) -> Tensor:
        return x + 0.01 * (x * 500).sin()

    assert seen_first(Wrap(net, waves), digits) == ["shattered-gradient"]


def straight_through(hard: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A step function with the gradient of the identity."""
    return lambda x: x + (hard(x) - x).detach()


def levels(most: int) -> Callable[[Tensor], Tensor]:
    return straight_through(lambda x: (x * most).round() / most)


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


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


def trained_with(
    activation: nn.Module, front: nn.Module | None = None, features: int = 64, epochs: int = 30
) -> nn.Module:
    """A small net trained on digits with the thing in place."""
    data = load_data("builtin:digits:train")
    x, y = data.rows(slice(None)), data.y
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            front or nn.Flatten(), nn.Linear(features, 64), activation, nn.Linear(64, 64), activation, nn.Linear(64, 10)
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(128):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
    return model.eval()


@functools.cache
def rectified() -> nn.Module:
    """That net with ReLU, and nothing else."""
    return trained_with(nn.ReLU())


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


@pytest.mark.parametrize("kind", FAITHFUL)
def test_a_gradient_that_leads_uphill_is_believed(
    kind: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    model = Wrap(net, FAITHFUL[kind]).eval()
    report = robust.evaluate(model, digits, threat="linf:0.1", suite=ENOUGH, device="cpu")
    assert report.findings == []


class PartlyDetached(nn.Module):
    """Three columns of eight have a gradient."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(torch.cat([x[..., :3], x[..., 3:].detach()], -1))
        return out


@pytest.mark.parametrize("threat", ["linf:0.1", "l1:1.2"])
def test_margins_that_tell_nothing_of_a_near_boundary_are_told(
    threat: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """The winner, and a little of the logits: the argmax is the net's own, and gradients lead the way."""

    def flattened(z: Tensor) -> Tensor:
        return nn.functional.one_hot(z.argmax(1), z.shape[1]) + 1e-3 * z

    reports = [
        robust.evaluate(model, digits, threat=threat, device="cpu")
        for model in (net, Wrap(net, after=flattened).eval())
    ]
    assert [finding["check"] for finding in reports[0].findings] == []
    # Once, though it shows before the attacks and in what they saw.
    assert [f["check"] for f in reports[1].findings if f["check"] != "rough-surface"] == ["flat-margins"]
    assert reports[1].checks["approached"] >= reports[1].checks["flat"] > 5


def test_random_search_gives_a_second_opinion(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    suite = [{"name": "pgd", "steps": 25, "loss": "margin"}]
    masked = robust.evaluate(PartlyDetached(net), digits, threat="linf:0.1", suite=suite, device="cpu")
    honest = robust.evaluate(net, digits, threat="linf:0.05", suite=suite, device="cpu")
    assert "black-box-wins" in {finding["check"] for finding in masked.findings}
    assert masked.trust == "unreliable"
    assert honest.findings == []
    assert honest.checks["asked"] > 3
    assert honest.checks["nearer"] == 0


def test_the_second_opinion_is_on_what_much_was_spent_on(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    samples = as_samples(digits, bounds=(0.0, 1.0))
    run = Run(Target(net, device="cpu"), samples, Threat.parse("linf:0.02"), Settings())
    with run.target:
        run.look()
        run.verdicts.forwards += 480  # half of them are to be asked
        second_opinion(run, [Stage(PGD(steps=10))])
    assert 0.3 * run.verdicts.standing < run.checks["asked"] < 0.7 * run.verdicts.standing
    assert run.checks["nearer"] > 2  # no gradient was ever used here


def test_the_second_opinion_is_the_same_in_parts(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    samples, settings = as_samples(digits, bounds=(0.0, 1.0)), Settings(micro_batch=16)
    threat = Threat.parse("linf:0.1")
    plan = Plan(threat, "pgd", [Stage(PGD(steps=10, loss="margin"))], True)

    def report(*ranges: range) -> Report:
        target = Target(PartlyDetached(net).eval(), device="cpu")
        parts = [attack_part(target, samples, plan, settings, rows) for rows in ranges]
        return join(parts, plan, data=samples.about, n=len(samples))

    whole, cut = report(range(64)), report(range(20), range(20, 64))
    assert whole.findings == cut.findings
    assert whole.checks["asked"] == cut.checks["asked"]
    assert whole.checks["nearer"] == cut.checks["nearer"]


BLOCKED: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda x: x.clamp(0, 1),
    "hardtanh": lambda x: nn.functional.hardtanh(x, 0.0, 1.0),
    "relu": torch.relu,
}


@pytest.mark.parametrize("front", BLOCKED)
def test_a_clamp_in_front_hides_nothing(front: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    plain = robust.evaluate(net, digits, threat="linf:0.08", suite=ENOUGH, device="cpu")
    report = robust.evaluate(
        Wrap(net, BLOCKED[front]).eval(), digits, threat="linf:0.08", suite=ENOUGH, device="cpu"
    )
    assert ("inward" in report.engine) == _blocks_at_zero(BLOCKED[front])
    assert "inward" not in plain.engine
    assert report.statuses == plain.statuses
    assert report.findings == []


def _blocks_at_zero(front: Callable[[Tensor], Tensor]) -> bool:
    """Older versions of torch let the gradient through a clamp's ends."""
    x = torch.zeros(1, requires_grad=True)
    front(x).sum().backward()  # type: ignore[no-untyped-call]
    return float(x.grad) == 0


def test_a_clamp_behind_a_normalisation_hides_nothing(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    model = Wrap(net, lambda x: (x * 0.3 + 0.2).clamp(0, 1)).eval()
    report = robust.evaluate(
        model, digits, threat="linf:0.08", suite=ENOUGH, device="cpu", normalize=(0.2, 0.3)
    )
    plain = robust.evaluate(net, digits, threat="linf:0.08", suite=ENOUGH, device="cpu")
    assert report.statuses == plain.statuses
    assert report.findings == []


def test_outputs_of_sigmoids_are_told(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    report = robust.evaluate(
        Wrap(net, after=torch.sigmoid).eval(), digits, threat="linf:0.05", suite=ENOUGH, device="cpu"
    )
    assert [finding["check"] for finding in report.findings] == ["probabilities"]


HONEST: dict[str, Callable[[nn.Module], nn.Module]] = {
    "one class for all": lambda net: Wrap(net, after=lambda z: 1e-6 * z + 5 * torch.eye(10)[3]),
    "large logits": lambda net: Wrap(net, after=lambda z: z * 3),
    "infinite slope at black": lambda net: Wrap(net, lambda x: (x + 1e-30).sqrt().square()),
    "bfloat16": lambda net: Wrap(copy.deepcopy(net).bfloat16(), lambda x: x.bfloat16()),
    "two classes": lambda net: Wrap(net, after=lambda z: torch.stack([z[:, :5].amax(1), z[:, 5:].amax(1)], 1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", HONEST)
def test_honest_models_of_other_kinds_trip_none(
    kind: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    y = (y >= 5).long() if kind == "two classes" else y
    report = robust.evaluate(HONEST[kind](net).eval(), (x, y), threat="linf:0.05", suite=ENOUGH, device="cpu")
    assert report.findings == []
    assert report.failures == []


class Triangle(nn.Module):
    """Finite everywhere, but with a NaN for a derivative at the tips of a triangle wave."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x + 0.01 * torch.asin(torch.sin(8 * torch.pi * x)))
        return out


@pytest.mark.parametrize("threat", ["l1:2", "l2:0.5", "l0:4"])
def test_a_gradient_that_is_not_finite_is_none(
    threat: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x = (digits[0] * 16).round() / 16  # where some tips are
    report = robust.evaluate(Triangle(net).eval(), (x, digits[1]), threat=threat, device="cpu")
    assert report.statuses["error"] == 0
    assert "non-finite" not in {finding["check"] for finding in report.findings}
