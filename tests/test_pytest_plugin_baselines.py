"""Regression against a baseline: written, kept, lost, and compared with its like alone."""

from __future__ import annotations

import pytest
from sessions import REGRESSION, Session

from robust.gate.fixture import slug

pytest_plugins = ["pytester"]


def test_tests_of_like_names_have_baselines_of_their_own() -> None:
    ids = [
        "t.py::test[a b]",
        "t.py::test[a_b]",
        "t.py::test[linf:8/255]",
        "t.py::test[linf 8 255]",
        "t.py::test_a_b",
    ]
    ids += [f"t.py::test{'x' * 200}{end}" for end in "ab"] + [f"t.py::{start}{'x' * 200}" for start in "ab"]
    names = [slug(test) for test in ids]
    assert len({*names}) == len(names)
    assert slug("tests/t.py::Test::test_it") == "tests_t.py_Test_test_it"


def test_two_comparisons_in_a_test_have_baselines_of_their_own(session: Session) -> None:
    second = "    other = robust.evaluate(Threshold(AT), samples(300, 0.7), threat=EPS, suite='fgsm', max_samples=50)\n"
    session.write(REGRESSION + second + "    robust.no_regression(other)\n")
    session.run("--robust-update-baseline").assert_outcomes(passed=1)
    session.run().assert_outcomes(passed=1)


SHARED = """
@pytest.mark.parametrize("survive", [0.9, 0.8])
def test_shared(robust, survive):
    report = robust.evaluate(Threshold(AT), samples(300, survive), threat=EPS, suite="quick", max_samples=50)
    robust.no_regression(report, baseline="one.json")
"""


def test_comparisons_that_write_over_each_other_are_told(session: Session) -> None:
    session.write(SHARED)
    over = session.run("--robust-update-baseline")
    assert over.ret == pytest.ExitCode.TESTS_FAILED
    told = "baseline one.json: written by *[[]0.9[]] and *[[]0.8[]], each over the other; give each a `baseline`*"
    over.stdout.fnmatch_lines([told])
    alike = SHARED.replace("0.8]", "0.9]")
    session.write(alike)
    assert session.run("--robust-update-baseline").ret == pytest.ExitCode.OK
    session.run().assert_outcomes(passed=2)


def test_the_baseline_flow(session: Session) -> None:
    session.write(REGRESSION)
    session.run().stdout.fnmatch_lines(["*no such file; write it with --robust-update-baseline*"])
    written = session.run("--robust-update-baseline")
    written.assert_outcomes(passed=1)
    written.stdout.fnmatch_lines(
        ["  written  *", "*baseline: robust-baselines/test_it.py_test_regression.json"]
    )
    kept = session.run()
    kept.assert_outcomes(passed=1)
    kept.stdout.fnmatch_lines(["*% -> *% on 100 samples, 0 lost, 0 won, p = 1"])
    session.write(REGRESSION, at=0.72)
    lost = session.run()
    lost.assert_outcomes(failed=1)
    lost.stdout.fnmatch_lines(
        [
            "*fail: robust accuracy fell by * points, 0 accepted; baseline robust-baselines/*.json",
            "robust accuracy *% -> *% on the same 100 samples; exact McNemar p = *",
            "lost * samples: *",
            "won * samples: *",
            "trust: *",
            "replay: pytest test_it.py::test_regression*",
        ]
    )


def test_where_baselines_lie(session: Session) -> None:
    session.write(REGRESSION)
    session.run("--robust-update-baseline", "--robust-baseline", "mine").assert_outcomes(passed=1)
    assert (session.path / "mine" / "test_it.py_test_regression.json").is_file()
    session.run("--robust-update-baseline", "--robust-baseline", "one.json").assert_outcomes(passed=1)
    session.run("--robust-baseline", "one.json").assert_outcomes(passed=1)
    session.pytester.makeini("[pytest]\nrobust_baseline = one.json\n")
    session.run().assert_outcomes(passed=1)
    session.pytester.makeini("[pytest]\nrobust_baseline = theirs\nrobust_update_baseline = true\n")
    session.run().assert_outcomes(passed=1)
    assert (session.path / "theirs" / "test_it.py_test_regression.json").is_file()
    session.pytester.makeini("[pytest]\n")
    named = REGRESSION.replace("no_regression(report)", "no_regression(report, baseline='b/x.json')")
    session.write(named)
    session.run("--robust-update-baseline").assert_outcomes(passed=1)
    assert (session.path / "b" / "x.json").is_file()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("threat=EPS", "threat='linf:0.2'"), "made with other threat*compare like with like*"),
        (("samples(300, 0.9)", "samples(300, 0.6)"), "made with other data*"),
        (("'quick'", "'fgsm'"), "made with other suite*"),
        (("no_regression(report)", "no_regression(3)"), "expected the report of evaluate(), got int*"),
        (("no_regression(report)", "no_regression(report, max_drop=5)"), "max_drop: expected a fraction*"),
    ],
)
def test_unlike_baselines_fail_readably(session: Session, change: tuple[str, str], text: str) -> None:
    test = REGRESSION.replace('"', "'")
    session.write(test)
    session.run("--robust-update-baseline").assert_outcomes(passed=1)
    session.write(test.replace(*change))
    result = session.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*robust: *{text}"])
    assert "Traceback" not in result.stdout.str()


def test_a_corrupt_baseline_is_named(session: Session) -> None:
    session.write(REGRESSION)
    session.run("--robust-update-baseline", "--robust-baseline", "b.json")
    (session.path / "b.json").write_text('{"schema_version": 1, "n": ')
    result = session.run("--robust-baseline", "b.json")
    result.stdout.fnmatch_lines(["*baseline *b.json: cannot be read*--robust-update-baseline*"])


def test_a_stopped_gate_is_no_baseline(session: Session) -> None:
    session.write(
        "def test_it(robust):\n"
        "    from robust.gate.check import check\n"
        "    found = check(Threshold(), samples(300, 0.1), threat=EPS, at_least=0.9, device='cpu')\n"
        "    robust.no_regression(found)\n"
    )
    session.run().stdout.fnmatch_lines(["*stopped this suite early; use the report of evaluate()*"])
