"""Sessions of pytest within a test: the plugin as a user meets it, on a toy model."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

TOY = Path(__file__).with_name("toy.py").read_text(encoding="utf-8")
HEADER = "import pytest\nfrom toy import EPS, Threshold, samples\n"
INSTALLED = bool(entry_points(group="pytest11", name="robust"))
PASSES = """
@pytest.mark.robust(threat=EPS, suite="quick", at_least=0.45)
def test_passes(robust):
    assert robust.check(Threshold(), samples(300, 0.8)).outcome == "pass"
"""
FAILS = """
@pytest.mark.robust(threat=EPS, suite="quick", at_least=0.45)
def test_fails(robust):
    robust.check(Threshold(), samples(300, 0.1))
"""
UNDECIDED = """
@pytest.mark.robust(threat=EPS, suite="quick", at_least=0.45, max_samples=20)
def test_undecided(robust):
    robust.check(Threshold(), samples(300, 0.45))
"""
REGRESSION = """
def test_regression(robust):
    report = robust.evaluate(Threshold(AT), samples(300, 0.9), threat=EPS, suite="quick", max_samples=100)
    robust.no_regression(report)
"""
PLAIN = """
def test_plain():
    pass
"""


class Session:
    """Runs pytest with the plugin in a folder with a toy model."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester, self.path = pytester, pytester.path
        pytester.makepyfile(toy=TOY)

    def write(self, *tests: str, at: float = 0.5) -> None:
        self.pytester.makepyfile(test_it=HEADER + f"AT = {at}\n" + "".join(tests))

    def run(self, *arguments: str) -> pytest.RunResult:
        plugin = () if INSTALLED else ("-p", "robust.pytest_plugin")
        # The plugin that looks for unraisable exceptions collects garbage at length, in each inner session.
        return self.pytester.runpytest_inprocess(
            *plugin, "-p", "no:unraisableexception", "-W", "error", "--robust-device", "cpu", *arguments
        )


def settings_of(session: Session, *arguments: str) -> dict[str, Any]:
    session.run(*arguments, "--robust-json", "out/r.json")
    written: dict[str, Any] = json.loads((session.path / "out" / "r.json").read_text())
    return written
