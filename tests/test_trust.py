"""Verdicts on models that were not made for this: what they may do, and how robustness is faked."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from toy import ENOUGH

import robust
from robust.attacks import PGD
from robust.bpda import Substituted
from robust.diagnose import preflight
from robust.parts import Plan, attack_part, join
from robust.report import Report
from robust.run import Run, Settings
from robust.run_checks import second_opinion
from robust.sources import as_samples
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
    "a substitute's": Substituted(lambda x: (x * 15).round() / 15),
    "of a smooth transform": lambda x: x - (x * 6 * torch.pi).sin() / (12 * torch.pi),
}


def seen_first(model: nn.Module, digits: tuple[Tensor, Tensor]) -> list[str]:
    """Names of what is found before the attacks."""
    with Target(model.eval(), device="cpu") as target:
        return [finding.check for finding in preflight(target, *digits, Threat.parse("linf:0.1")).findings]


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


def test_waves_finer_than_the_threat_are_told(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    def waves(x: Tensor) -> Tensor:
        return x + 0.01 * (x * 500).sin()

    assert seen_first(Wrap(net, waves), digits) == ["shattered-gradient"]


def test_a_gate_that_closes_within_the_threat_is_told(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """At the samples there is a gradient, and none at any point that is searched."""

    def gate(x: Tensor) -> Tensor:
        level = (x * 16).round() / 16
        odd = (x - level).abs().flatten(1).amax(1) > 0.01  # the digits' own values are sixteenths
        return torch.where(odd.view(-1, 1, 1, 1), (x > 0.5).to(x), x)

    assert seen_first(Wrap(net, gate), digits) == ["zero-gradient"]


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
    assert [finding["check"] for finding in reports[1].findings] == ["flat-margins"]
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
