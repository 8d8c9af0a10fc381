"""What a test with the fixture comes to, and what it leaves to look at: outcomes, evidence, replays."""

from __future__ import annotations

from pathlib import Path

from sessions import FAILS, PASSES, PLAIN, UNDECIDED, Session

pytest_plugins = ["pytester"]


def test_the_three_outcomes(session: Session) -> None:
    session.write(PASSES, FAILS, UNDECIDED, PLAIN)
    result = session.run()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*test_it.py .Fu.*",
            "*fail: robust accuracy is below 45.0%",
            "robust accuracy at most *% [[]0.0%, *%[]] under linf:0.1, clean 100.0%",
            "gate: sequential at 95.0% confidence; 20 of 300 samples used",
            "samples: 0 misclassified, * broken, * survived",
            "suite quick (stopped), seed 0",
            "broke most: fgsm (*",
            "trust: trusted",
            "worst samples:",
            "  sample *: label ? taken for ? by * at linf distance * (fgsm)",
            "evidence: *robust*test_it.py_test_fails",
            "replay: pytest test_it.py::test_fails --robust-device cpu",
            "*= robustness =*",
            "     pass  test_it.py::test_passes",
            "*(at least 45.0%), linf:0.1, suspect,",  # after the few passes of quick
            "           * of 300 samples",
            "     fail  test_it.py::test_fails",
            "undecided  test_it.py::test_undecided",
            "*20 samples do not tell whether robust accuracy is at least 45.0%",
            "*1 failed, 2 passed, 1 undecided*",
        ]
    )
    assert "Traceback" not in result.stdout.str()
    assert [line for line in result.outlines if len(line) > 80 and "evidence: " not in line] == []
    kept = session.path / ".pytest_cache" / "d" / "robust" / "test_it.py_test_fails"
    assert {"report.json", "verdicts.parquet", "examples.safetensors"} <= {p.name for p in kept.iterdir()}


def test_undecided_can_fail(session: Session) -> None:
    session.write(UNDECIDED)
    session.run("--robust-fail-on-undecided").assert_outcomes(failed=1)
    session.pytester.makeini("[pytest]\nrobust_fail_on_undecided = true\n")
    session.run().assert_outcomes(failed=1)


def test_the_replay_does_the_same_again(session: Session) -> None:
    session.write(FAILS)
    first = session.run("--robust-seed", "3", "--robust-samples", "200", "--robust-preset", "smoke")
    line = next(line for line in first.outlines if line.startswith("replay:"))
    command = line.removeprefix("replay: pytest ").split()
    assert command[1:] == [
        "--robust-preset", "smoke", "--robust-samples", "200", "--robust-seed", "3", "--robust-device", "cpu"
    ]  # fmt: skip
    again = session.run(*command)
    told = [
        [line for line in r.outlines if "robust accuracy" in line or "sample " in line]
        for r in (first, again)
    ]
    assert told[0] == told[1] != []


def test_the_replay_of_what_is_undecided_fails_too(session: Session) -> None:
    session.write(UNDECIDED)
    session.run("--robust-fail-on-undecided").stdout.fnmatch_lines(["replay: *--robust-fail-on-undecided*"])


def test_evidence_of_an_earlier_run_goes_when_the_test_passes(session: Session) -> None:
    other = FAILS.replace("test_fails", "test_other")
    session.write(FAILS, other)
    session.run().assert_outcomes(failed=2)
    home = session.path / ".pytest_cache" / "d" / "robust"
    both = {"test_it.py_test_fails", "test_it.py_test_other"}
    assert {folder.name for folder in home.iterdir()} == both
    session.write(FAILS.replace("0.1)", "0.8)"), other)
    session.run("--collect-only")
    assert {folder.name for folder in home.iterdir()} == both
    session.run().assert_outcomes(passed=1, failed=1)
    assert {folder.name for folder in home.iterdir()} == {"test_it.py_test_other"}


CAUGHT = """
def test_fails(robust):
    options = {"threat": EPS, "suite": "quick", "at_least": 0.45}
    with pytest.raises(pytest.fail.Exception):
        robust.check(Threshold(), samples(300, 0.1), **options)
    robust.check(Threshold(), samples(300, 0.8), **options)
"""


def test_a_test_that_passes_keeps_the_evidence_of_its_own_run(session: Session) -> None:
    session.write(CAUGHT)
    session.run().assert_outcomes(passed=1)
    kept = session.path / ".pytest_cache" / "d" / "robust" / "test_it.py_test_fails"
    assert (kept / "report.json").is_file()


SWALLOWED = """
from concurrent.futures import ThreadPoolExecutor

@pytest.mark.robust(threat=EPS, suite="quick", at_least=0.45)
def test_in_a_thread(robust):
    with ThreadPoolExecutor() as pool:
        pool.submit(robust.check, Threshold(), samples(300, 0.1))

@pytest.mark.robust(threat=EPS, suite="quick", at_least=0.45)
def test_catches(robust):
    try:
        robust.check(Threshold(), samples(300, 0.1))
    except BaseException:
        pass
"""


def test_a_failure_that_does_not_end_a_marked_test_fails_it(session: Session) -> None:
    session.write(SWALLOWED)
    result = session.run()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*a check ended as 'fail' without ending the test*"])


def test_without_the_cache_evidence_goes_to_the_temporary_folder(session: Session) -> None:
    session.write(FAILS)
    result = session.run("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    line = next(line for line in result.outlines if line.startswith("evidence:"))
    assert (Path(line.removeprefix("evidence: ")) / "report.json").is_file()
    assert not (session.path / ".pytest_cache").exists()


def test_evidence_that_cannot_be_written_hides_nothing(session: Session) -> None:
    session.write(FAILS)
    session.run()
    home = session.path / ".pytest_cache" / "d" / "robust"
    for file in (home / "test_it.py_test_fails").iterdir():
        file.unlink()
    (home / "test_it.py_test_fails").rmdir()
    (home / "test_it.py_test_fails").write_text("in the way")
    result = session.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["fail: robust accuracy is below*", "evidence: could not be written*", "replay:*"]
    )


IN_UNITTEST = """
import unittest
@pytest.mark.robust(threat=EPS, suite="quick", at_least=0.45)
class TestIt(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _with_the_fixture(self, robust):
        self.robust = robust
    def test_passes(self):
        self.robust.check(Threshold(), samples(300, 0.8))
    def test_is_undecided(self):
        self.robust.check(Threshold(), samples(300, 0.45), max_samples=20)
    def test_forgets(self):
        pass
    def test_fails_before_it_checks(self):
        self.assertEqual(1, 2)
    def test_is_skipped(self):
        self.skipTest("not today")
"""


def test_methods_of_unittest_are_held_to_their_marker(session: Session) -> None:
    session.write(IN_UNITTEST)
    done = session.run()
    outcomes = done.parseoutcomes()
    assert outcomes == {"passed": 1, "failed": 2, "skipped": 1, "undecided": 1}
    done.stdout.fnmatch_lines_random(["*AssertionError: 1 != 2", "*the test never called robust.check(*"])
