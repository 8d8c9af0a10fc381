"""The public names, and what importing them costs."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

import robust
from robust.errors import UnknownNameError
from robust.registry import Registry, nearest


def test_every_public_name_is_there() -> None:
    for name in robust.__all__:
        assert getattr(robust, name) is not None
    assert set(robust.__all__) <= set(dir(robust))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        robust.nonsense  # noqa: B018


def test_what_the_schema_of_a_plan_points_at_is_there() -> None:
    from robust.sweep.config import SweepConfig

    named = re.findall(r"`robust\.(\w+)", json.dumps(SweepConfig.model_json_schema()))
    assert [name for name in named if not hasattr(robust, name)] == []


def test_importing_is_cheap_and_needs_no_extras() -> None:
    code = (
        "import sys\n"
        "for name in ('torchattacks', 'art', 'matplotlib', 'torchvision', 'timm', 'ray'): sys.modules[name] = None\n"
        "import robust\n"
        "assert 'torch' not in sys.modules\n"
        "import robust.cli, robust.sweep, robust.hardening, robust.leaderboard\n"
        "assert 'lightning_fabric' not in sys.modules, 'seconds that only trainings should pay'\n"
        "[getattr(robust, name) for name in robust.__all__]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_registry_refuses_collisions_and_suggests() -> None:
    registry: Registry[object] = Registry("thing")
    first = object()
    registry.register("alpha")(first)
    registry.register("alpha")(first)
    with pytest.raises(ValueError, match="taken"):
        registry.register("alpha")(object())
    assert nearest("pdg", ["pdpgd", "pgd"]) == "pgd"
    with pytest.raises(UnknownNameError, match="unknown thing 'alhpa'; did you mean 'alpha'"):
        registry["alhpa"]
    assert list(registry) == ["alpha"]


def test_entry_points_are_loaded_once_and_late(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    class Entry:
        name = "theirs"

        def load(self) -> object:
            loaded.append(self.name)
            return self

    monkeypatch.setattr(
        "robust.registry.entry_points", lambda group: [Entry()] if group == "robust.things" else []
    )
    registry: Registry[object] = Registry("thing", "robust.things")
    registry.register("ours")(object())
    assert registry["ours"]
    assert not loaded
    assert "theirs" in registry
    assert list(registry) == ["ours", "theirs"]
    assert loaded == ["theirs"]
