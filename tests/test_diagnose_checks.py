"""The registry of checks: its page, its advice, and how it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, nn

import robust
from robust.diagnose import CHECKS, checks_page
from robust.errors import InputError


def test_diagnose_is_named_when_it_is_wrong(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match="diagnose: expected 'standard' or 'full', got 'all'"):
        robust.evaluate(net, digits, threat="linf:0.1", diagnose="all")  # type: ignore[arg-type]


def test_the_page_of_checks_is_the_registry() -> None:
    page = (Path(__file__).parent.parent / "docs" / "checks.md").read_text(encoding="utf-8")
    assert page == checks_page()


def test_every_check_says_what_to_do() -> None:
    for name in CHECKS:
        check = CHECKS[name]
        finding = check.finding("something was seen")
        assert check.rule
        assert check.detects
        assert check.advice in finding.message
