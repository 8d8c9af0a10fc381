"""Suites: what they hold, and what they cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust
from robust.errors import UnsupportedError
from robust.suites import SUITES, resolve
from robust.threat import Threat


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_default_suite_works_for_every_norm_it_claims(
    norm: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    eps = {"linf": "0.08", "l2": "0.5", "l1": "2"}[norm]
    report = robust.evaluate(net, digits, threat=f"{norm}:{eps}", device="cpu")
    assert report.suite == "standard"
    assert 0 < report.statuses["survived"] < report.clean_correct


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_standard_keeps_the_budget_it_states(
    norm: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    report = robust.evaluate(net, digits, threat=f"{norm}:0.001", suite="standard", device="cpu")
    survivors = report.verdicts[report.verdicts.status == "survived"]
    assert len(survivors) > 50
    assert survivors.forwards.max() == 1 + 213  # the clean pass and the attacks
    assert survivors.backwards.max() == 210


def test_autoattack_has_the_original_budgets() -> None:
    _, attacks = resolve("autoattack", Threat("linf", "8/255"))
    assert [attack.label for attack in attacks] == ["apgd", "apgd(targets=9)", "fab", "square"]
    found = [attack.parameters for attack in attacks]
    assert [found[0]["steps"], found[1]["steps"], found[2]["steps"], found[2]["targets"], found[3]["queries"]] == [
        100, 100, 100, 9, 5000,
    ]  # fmt: skip


def test_standard_breaks_no_less_than_its_parts(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    whole = robust.evaluate(net, digits, threat="linf:0.06", suite="standard", device="cpu")
    for attack in resolve("standard", whole.threat)[1]:
        part = robust.evaluate(net, digits, threat="linf:0.06", suite=attack, device="cpu")
        assert whole.statuses["survived"] <= part.statuses["survived"]


def test_l0_is_refused_with_what_there_is() -> None:
    with pytest.raises(UnsupportedError, match="not for l0"):
        resolve("standard", Threat("l0", "5"))


def test_every_suite_says_what_it_is() -> None:
    assert all(SUITES[name].__doc__ for name in SUITES)


def test_small_numbers_of_classes_have_fewer_targets() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    report = robust.evaluate(model, (x, y), threat="linf:0.2", device="cpu")
    assert report.statuses["error"] == 0
    assert report.verdicts.forwards.max() <= 1 + 12 + 22 + 2 * 22 + 1
