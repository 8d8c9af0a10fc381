"""Robustness of the digits classifier: two gates and a comparison with the last release."""

from __future__ import annotations

import pytest

from attacks import Brightness

SUITE = ["fgsm", "pgd", Brightness()]


@pytest.mark.robust(threat="linf:0.05", suite=SUITE, at_least=0.7)
def test_withstands_a_twentieth(robust, model, data):
    robust.check(model, data)


@pytest.mark.robust(threat="linf:0.2", at_least=0.5)
def test_withstands_a_fifth(robust, model, data):
    """Fails: see the README."""
    robust.check(model, data)


def test_is_no_worse_than_the_last_release(robust, model, data):
    report = robust.evaluate(model, data, threat="linf:0.05", suite=SUITE, max_samples=200)
    robust.no_regression(report, max_drop=0.02)
