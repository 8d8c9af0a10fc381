"""Verdicts on models that were not made for this: what they may do, and how logits hide what is near."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from toy import ENOUGH
from wrapped import Wrap, seen_first

import robust
from robust.diagnose import PREFLIGHT_SAMPLES, preflight
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
    rough = {"rough-surface", "scattered-gradients"}
    assert [f["check"] for f in reports[1].findings if f["check"] not in rough] == ["flat-margins"]
    assert reports[1].checks["approached"] >= reports[1].checks["flat"] > 5


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


@pytest.mark.parametrize("many", [0, 1, 2, 3])
def test_a_clamp_is_seen_where_two_of_the_few_samples_have_values_at_a_face(
    many: int, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """Wherever they stand: those with the most are looked at."""
    x, y = (part[:PREFLIGHT_SAMPLES] for part in digits)
    inside = x.clamp(0.01, 0.99)
    inside[20 : 20 + many] = x[20 : 20 + many]
    with Target(Wrap(net, torch.relu).eval(), device="cpu") as target:
        assert preflight(target, inside, y).blocked is (many >= 2)


def test_an_honest_net_is_looked_at_briefly(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:PREFLIGHT_SAMPLES] for part in digits)
    with Target(net, device="cpu") as target:
        seen = preflight(target, x, y, Threat.parse("linf:0.1"))
    assert seen.findings == []
    assert seen.forwards + seen.backwards < 31 * PREFLIGHT_SAMPLES


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
