"""Options, configuration and markers: who has the last word, what they select, what the help says of them."""

from __future__ import annotations

from typing import Any

import pytest
from sessions import PASSES, PLAIN, Session, settings_of

pytest_plugins = ["pytester"]

MEASURES = """
def test_measures(robust):
    robust.evaluate(Threshold(), samples(300, 0.5), threat=EPS)
@pytest.mark.robust(threat=EPS, suite="fgsm", max_samples=40, seed=7)
def test_marked(robust):
    robust.evaluate(Threshold(), samples(300, 0.5))
    robust.evaluate(Threshold(), samples(300, 0.5), suite="pgd", max_samples=30)
"""


@pytest.mark.parametrize(
    ("arguments", "ini", "expected"),
    [
        ([], "", [("standard", 300, 0), ("fgsm", 40, 7), ("pgd", 30, 7)]),
        (["--robust-preset", "smoke"], "", [("quick", 100, 0), ("quick", 40, 7), ("quick", 30, 7)]),
        ([], "robust_preset = smoke", [("quick", 100, 0), ("fgsm", 40, 7), ("pgd", 30, 7)]),
        (
            ["--robust-samples", "35"],
            "robust_samples = 50",
            [("standard", 35, 0), ("fgsm", 35, 7), ("pgd", 30, 7)],
        ),
        ([], "robust_samples = 50\nrobust_seed = 5", [("standard", 50, 5), ("fgsm", 40, 7), ("pgd", 30, 7)]),
        (["--robust-seed", "2"], "robust_seed = 5", [("standard", 300, 2), ("fgsm", 40, 2), ("pgd", 30, 2)]),
    ],
    ids=["defaults", "smoke", "ini preset", "samples", "ini", "seed"],
)
def test_who_has_the_last_word(session: Session, arguments: list[str], ini: str, expected: list[Any]) -> None:
    session.pytester.makeini(f"[pytest]\n{ini}\n")
    session.write(MEASURES)
    written = settings_of(session, *arguments)
    assert [(r["suite"], r["n"], r["seed"]) for r in written["results"]] == expected


def test_the_full_preset_takes_all(session: Session) -> None:
    session.write(
        "def test_it(robust):\n    robust.evaluate(Threshold(), samples(24, 0.5), threat=EPS, max_samples=10)\n"
    )
    (result,) = settings_of(session, "--robust-preset", "full")["results"]
    assert (result["suite"], result["n"]) == ("thorough", 24)


def test_skip_and_only(session: Session) -> None:
    session.write(PASSES, PLAIN)
    session.run("--robust-skip").assert_outcomes(passed=1, skipped=1)
    session.run("--robust-only").assert_outcomes(passed=1, deselected=1)
    session.run("-m", "not robust").assert_outcomes(passed=1, deselected=1)
    both = session.run("--robust-skip", "--robust-only")
    both.stderr.fnmatch_lines(["*give one of them, not both*"])
    session.pytester.makeini("[pytest]\nrobust_only = true\n")
    session.run().assert_outcomes(passed=1, deselected=1)
    session.pytester.makeini("[pytest]\nrobust_skip = true\n")
    session.run().assert_outcomes(passed=1, skipped=1)


def test_a_bare_marker_only_selects(session: Session) -> None:
    session.write("@pytest.mark.robust\ndef test_it():\n    pass\n", PLAIN)
    session.run("--robust-only").assert_outcomes(passed=1, deselected=1)


def test_markers_of_classes_are_refined(session: Session) -> None:
    session.write(
        "@pytest.mark.robust(threat=EPS, suite='quick', at_least=0.45)\n"
        "class TestIt:\n"
        "    @pytest.mark.robust(at_least=0.95)\n"
        "    def test_fails(self, robust):\n"
        "        robust.check(Threshold(), samples(300, 0.7))\n"
        "    def test_passes(self, robust):\n"
        "        robust.check(Threshold(), samples(300, 0.7))\n"
    )
    session.run().assert_outcomes(passed=1, failed=1)


def test_help_shows_the_group(session: Session) -> None:
    text = session.run("--help").stdout.str()
    assert "adversarial robustness:" in text
    for name in ("preset", "samples", "seed", "device", "skip", "only", "json", "baseline", "update-baseline", "fail-on-undecided"):  # fmt: skip
        assert f"--robust-{name}" in text
        assert f"robust_{name.replace('-', '_')}" in text
    session.run("--markers").stdout.fnmatch_lines(["@pytest.mark.robust(threat, suite, at_least*"])
    session.run("--fixtures").stdout.fnmatch_lines(["robust*"])
