"""Sweeps on Ray, as far as they go without it."""

from __future__ import annotations

import sys

import pytest

from robust.errors import MissingDependencyError
from robust.sweep.on_ray import require_ray


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"robust-harness\[ray\]"):
        require_ray()
