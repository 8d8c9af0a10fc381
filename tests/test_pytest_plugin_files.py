"""What a session writes for others: JSON, JUnit properties, the pipeline's Markdown."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from sessions import FAILS, PASSES, PLAIN, REGRESSION, UNDECIDED, Session, settings_of

pytest_plugins = ["pytester"]


def test_json_has_it_all(session: Session) -> None:
    session.write(PASSES, FAILS, UNDECIDED)
    written = settings_of(session, "--robust-seed", "4")
    assert written["schema_version"] == 1
    assert written["settings"] == {"preset": None, "samples": None, "seed": 4, "device": "cpu"}
    assert written["totals"] == {"pass": 1, "fail": 1, "undecided": 1, "error": 0, "done": 0, "written": 0}
    failed = next(r for r in written["results"] if r["outcome"] == "fail")
    assert failed["test"] == "test_it.py::test_fails"
    assert failed["at_least"] == 0.45
    assert failed["complete"] is False
    assert Path(failed["evidence"]).is_dir()
    assert failed["n"] == sum(failed["statuses"].values())


def test_junit_properties(session: Session) -> None:
    session.write(PASSES)
    session.run("--junit-xml", "junit.xml")
    found = ET.parse(session.path / "junit.xml").getroot().iter("property")
    properties = {p.get("name"): p.get("value") for p in found}
    assert properties["robust_outcome"] == "pass"
    assert float(properties["robust_accuracy"] or 0) > 0.45
    assert properties["robust_threat"] == "linf:0.1"


def test_markdown_for_the_pipeline(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    page = session.path / "summary.md"
    page.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    session.write(PASSES, FAILS)
    session.run()
    text = page.read_text()
    assert text.startswith("before\n## Robustness\n")
    assert "| `test_it.py::test_fails` | **FAIL** | at most " in text
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(session.path / "none" / "summary.md"))
    session.run().stdout.fnmatch_lines(["*GITHUB_STEP_SUMMARY: cannot write*"])


IN_ERROR = """
class Poisoned(Threshold):
    def forward(self, x):
        return super().forward(x.where(x <= 0.7, float("nan")))
@pytest.mark.robust(threat=EPS, suite="quick", at_least=0.45)
def test_is_poisoned(robust):
    robust.check(Poisoned(), samples(300, 0.8))
"""


def test_a_test_that_fails_by_samples_in_error_is_said_to(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = session.path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    session.write(IN_ERROR)
    done = session.run("--robust-json", "all.json")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        ["error: * samples ended in an error (*", "    error  test_it.py::test_is_poisoned"]
    )
    assert "| `test_it.py::test_is_poisoned` | **ERROR** | " in page.read_text()
    written = json.loads((session.path / "all.json").read_text())
    assert (written["totals"]["error"], written["failures"]) == (1, [])


FAILS_OTHERWISE = """
@pytest.mark.robust(threat=EPS, at_least=0.45)
def test_forgets(robust):
    pass
@pytest.fixture
def data():
    raise FileNotFoundError("weights.pt | is not here")
def test_has_no_data(robust, data):
    pass
"""


def test_tests_that_fail_for_another_reason_are_told_too(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = session.path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    session.write(PASSES, FAILS, FAILS_OTHERWISE, REGRESSION, PLAIN)
    written = settings_of(session)
    found = {each["test"].partition("::")[2]: each["reason"] for each in written["failures"]}
    assert list(found) == ["test_forgets", "test_has_no_data", "test_regression"]
    assert "the test never called robust.check(model, data)" in found["test_forgets"]
    assert "weights.pt" in found["test_has_no_data"]
    assert "no such file; write it with --robust-update-baseline" in found["test_regression"]
    text = page.read_text()
    assert "Failed for other reasons:\n\n- `test_it.py::test_forgets`: **FAIL** `" in text
    assert text.count("**FAIL**") == 4
    session.write(FAILS_OTHERWISE)
    session.run()
    assert page.read_text().count("## Robustness\n\nFailed for other reasons:") == 1


EXPECTED = """
def checked(robust, survive, **options):
    robust.check(Threshold(), samples(300, survive), threat=EPS, suite="quick", at_least=0.45, **options)
@pytest.mark.xfail
def test_xfails(robust):
    checked(robust, 0.8)
    checked(robust, 0.1)
@pytest.mark.xfail(strict=False)
def test_xpasses(robust):
    checked(robust, 0.8)
@pytest.mark.xfail(strict=True, reason="mend | me")
def test_xpasses_strictly(robust):
    checked(robust, 0.8)
@pytest.mark.xfail
def test_is_undecided(robust):
    checked(robust, 0.45, max_samples=20)
"""


def test_checks_under_an_xfail_mark_are_told_as_pytest_sees_them(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = session.path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    session.write(EXPECTED)
    done = session.run("--robust-json", "all.json")
    assert done.parseoutcomes() == {"failed": 1, "xfailed": 1, "xpassed": 1, "undecided": 1}
    rows = [line.split(" | ")[:2] for line in page.read_text().splitlines() if "| `test_it" in line]
    expected = [
        ("xfails", "pass", None), ("xfails", "xfail", "xfail"), ("xpasses", "xpass", "xpass"),
        ("xpasses_strictly", "xpass(strict)", "xpass(strict)"), ("is_undecided", "undecided", None),
    ]  # fmt: skip
    assert rows == [[f"| `test_it.py::test_{name}`", shown] for name, shown, _ in expected]
    done.stdout.fnmatch_lines(
        ["    xfail  test_it.py::test_xfails", "xpass(strict)  test_it.py::test_xpasses*"]
    )
    assert "`test_it.py::test_xpasses_strictly`: **FAIL** `[XPASS(strict)] mend" in page.read_text()
    written = json.loads((session.path / "all.json").read_text())
    assert [result["xfail"] for result in written["results"]] == [met for *_, met in expected]
    outcomes = session.run("--robust-fail-on-undecided").parseoutcomes()
    assert outcomes == {"failed": 1, "xfailed": 2, "xpassed": 1}
    session.run("--runxfail").assert_outcomes(passed=2, failed=1, skipped=0)
    assert page.read_text().count("**FAIL** | ") == 1


IN_FIXTURES = """
def checked(robust, survive, **options):
    robust.check(Threshold(), samples(300, survive), threat=EPS, suite="quick", at_least=0.45, **options)
@pytest.fixture
def fails(robust):
    checked(robust, 0.1)
@pytest.fixture
def undecided(robust):
    checked(robust, 0.45, max_samples=20)
@pytest.fixture
def fails_after(robust):
    yield
    checked(robust, 0.1)
def test_before(fails):
    pass
def test_skipped(undecided):
    pass
def test_around(robust, fails_after):
    checked(robust, 0.8)
"""


def test_checks_of_fixtures_are_told_like_those_of_tests(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = session.path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    session.write(IN_FIXTURES)
    done = session.run("--robust-json", "all.json")
    assert done.parseoutcomes() == {"passed": 1, "errors": 2, "undecided": 1}
    written = json.loads((session.path / "all.json").read_text())
    found = [(result["test"].partition("::")[2], result["outcome"]) for result in written["results"]]
    expected = [("before", "fail"), ("skipped", "undecided"), ("around", "pass"), ("around", "fail")]
    assert found == [(f"test_{name}", outcome) for name, outcome in expected]
    assert written["failures"] == []
    assert page.read_text().count("**FAIL**") == 2


def test_a_json_file_that_cannot_be_written_loses_no_summary(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(session.path / "summary.md"))
    session.write(PASSES + "    import pathlib; pathlib.Path('r.json').mkdir()\n")
    found = session.run("--robust-json", "r.json")
    found.stdout.fnmatch_lines(["--robust-json: cannot write *"])
    assert found.ret == pytest.ExitCode.TESTS_FAILED  # a file that was asked for is missing
    assert "test_passes" in (session.path / "summary.md").read_text()


def test_collecting_alone_keeps_the_results_of_the_last_run(session: Session) -> None:
    session.write(PASSES)
    written = settings_of(session)
    assert settings_of(session, "--collect-only") == written
