"""Copies against the judge: what a wrong, coarse or blurred one says is never a false break."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from toy import ENOUGH

import robust
from robust.audit import audit
from robust.losses import margin
from robust.oracle import Oracle
from robust.target import Target
from robust.threat import Threat

Digits = tuple[Tensor, Tensor]


def test_the_judge_overrules_a_wrong_copy(net: nn.Module, digits: Digits) -> None:
    x, y = digits
    right = net(x).argmax(1) == y
    x, y = x[right], y[right]

    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net(x).roll(1, 1)

    threat = Threat("linf", "0.05")
    with Target(net, device="cpu") as target:
        oracle = Oracle(target.twin(Wrong()), x, y, torch.arange(len(x)), threat, judge=target)
        for _ in oracle.steps(1):
            oracle.logits(x)  # each misclassified by the copy, none by the model
        assert len(oracle) == len(x)
        assert not oracle.ledger.broken.any()
        assert oracle.ledger.forwards.tolist() == [2] * len(x)
        for _ in oracle.steps(5):
            gradient = oracle.gradient(oracle.x, margin).gradient
            oracle.logits(oracle.project(oracle.x - 0.05 * gradient.sign()))
        found = oracle.ledger.broken
        assert audit(target, oracle.ledger.x_adv[found], x[found], y[found], threat).valid.all()


def test_half_precision_never_gives_a_false_break(net: nn.Module, digits: Digits) -> None:
    options = {"threat": "linf:0.1", "suite": ENOUGH, "device": "cpu", "seed": 0}
    coarse = robust.evaluate(net, digits, precision="bfloat16", **options)  # type: ignore[arg-type]
    exact = robust.evaluate(net, digits, precision="float32", **options)  # type: ignore[arg-type]
    assert coarse.engine == "bfloat16"
    assert exact.engine == "plain"
    assert coarse.statuses["misclassified"] == exact.statuses["misclassified"]
    assert coarse.statuses["broken"] > 0.8 * exact.statuses["broken"] > 5
    assert all(entry["rejected"] == 0 for entry in coarse.attacks)
    assert coarse.trust == exact.trust == "trusted"


def test_what_a_blurred_copy_may_be_wrong_about_is_for_the_judge_to_say(
    net: nn.Module, digits: Digits
) -> None:
    """A copy a little too confident sees no break where the model does; with its blur known, the judge is asked."""
    x, y = digits
    x, y = x[net(x).argmax(1) == y], y[net(x).argmax(1) == y]
    threat = Threat("linf", "0.1")

    class Shy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = net(x)
            return logits + 0.01 * (logits.amax(1) - logits.amin(1))[:, None] * nn.functional.one_hot(y, 10)

    with Target(net, device="cpu") as target:
        near = _at_the_boundary(target, x, y, threat)
        found = {}
        for blur in (0.0, 0.02):
            copy = target.twin(Shy())
            copy.blur = blur
            oracle = Oracle(copy, x, y, torch.arange(len(x)), threat, judge=target)
            oracle.logits(near)
            found[blur] = oracle.ledger.broken
        wrong = target.logits(near).argmax(1) != y
    assert int(found[0.0].sum()) < int(wrong.sum())
    assert torch.equal(found[0.02], wrong)


def _at_the_boundary(target: Target, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """Points a hair over the decision boundary, where the ball reaches it: between a break and x."""
    oracle = Oracle(target, x, y, torch.arange(len(x)), threat)
    for _ in oracle.steps(1):
        gradient = oracle.gradient(x, margin).gradient
        far = threat.project(x + gradient.sign(), x)
    low, high = torch.zeros(len(x), 1, 1, 1), torch.ones(len(x), 1, 1, 1)
    for _ in range(12):
        middle = (low + high) / 2
        wrong = (target.logits(x + middle * (far - x)).argmax(1) != y).view(-1, 1, 1, 1)
        low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
    return x + high * (far - x)
