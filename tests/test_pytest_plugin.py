"""The plugin as a user meets it: every option, every message, in sessions of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch

from robust.gate.fixture import slug

pytest_plugins = ["pytester"]

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


@pytest.fixture(scope="module", autouse=True)
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load all that a check loads late: inner sessions forget new modules, and numpy's load only once."""
    import hypothesis  # noqa: F401 - its own plugin loads it at the end of every session
    import toy

    from robust.gate.baseline import Baseline, compare
    from robust.gate.check import check, evaluate_some
    from robust.gate.evidence import keep

    data = toy.samples(60, 0.1)
    result = check(toy.Threshold(), data, threat=toy.EPS, at_least=0.9, device="cpu")
    keep(result.report, result.samples, tmp_path_factory.mktemp("warm"))
    report = evaluate_some(toy.Threshold(), data, threat=toy.EPS, suite="quick", device="cpu")
    compare(report, Baseline.of(report))


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


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Session:
    for name in ("GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    return Session(pytester)


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


def settings_of(session: Session, *arguments: str) -> dict[str, Any]:
    session.run(*arguments, "--robust-json", "out/r.json")
    written: dict[str, Any] = json.loads((session.path / "out" / "r.json").read_text())
    return written


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


def test_json_has_it_all(session: Session) -> None:
    session.write(PASSES, FAILS, UNDECIDED)
    written = settings_of(session, "--robust-seed", "4")
    assert written["schema_version"] == 1
    assert written["settings"] == {"preset": None, "samples": None, "seed": 4, "device": "cpu"}
    assert written["totals"] == {"pass": 1, "fail": 1, "undecided": 1, "done": 0, "written": 0}
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


def test_a_json_file_that_cannot_be_written_loses_no_summary(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(session.path / "summary.md"))
    session.write(PASSES + "    import pathlib; pathlib.Path('r.json').mkdir()\n")
    found = session.run("--robust-json", "r.json")
    found.stdout.fnmatch_lines(["--robust-json: cannot write *"])
    assert found.ret == pytest.ExitCode.TESTS_FAILED  # a file that was asked for is missing
    assert "test_passes" in (session.path / "summary.md").read_text()


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


# -- regression ---------------------------------------------------------------------------------------


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


def test_the_replay_of_what_is_undecided_fails_too(session: Session) -> None:
    session.write(UNDECIDED)
    session.run("--robust-fail-on-undecided").stdout.fnmatch_lines(["replay: *--robust-fail-on-undecided*"])


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


# -- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--robust-preset", "smok"], "*unknown preset 'smok'; did you mean 'smoke'*"),
        (["--robust-samples", "0"], "*--robust-samples: expected a positive integer, got '0'*"),
        (["--robust-samples", "²"], "*--robust-samples: expected a positive integer, got '²'*"),
        (["--robust-seed", "x"], "*--robust-seed: expected an integer >= 0, got 'x'*"),
        (["--robust-json", "."], "*--robust-json: expected a file that can be written*"),
    ],
)
def test_bad_options_stop_the_session(session: Session, arguments: list[str], text: str) -> None:
    session.write(PASSES)
    result = session.run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([text])
    assert "Traceback" not in result.stderr.str()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("robust_preset = smok", "*robust_preset in *: unknown preset 'smok'*"),
        ("robust_samples = many", "*robust_samples in *: expected a positive integer, got 'many'*"),
    ],
)
def test_a_bad_configuration_stops_the_session(session: Session, line: str, text: str) -> None:
    session.pytester.makeini(f"[pytest]\n{line}\n")
    session.write(PASSES)
    result = session.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([text])


CHECK = "def test_it(robust):\n    robust.check(Threshold(), samples(100, 0.5), {})\n"


@pytest.mark.parametrize(
    ("test", "text"),
    [
        ("@pytest.mark.robust(threat=EPS, at_least=45)\ndef test_it(robust): pass\n", "at_least: expected a fraction"),
        ("@pytest.mark.robust(threat=EPS, atleast=0.4)\ndef test_it(robust): pass\n", "marker robust: no option 'atleast'"),
        ("@pytest.mark.robust(EPS)\ndef test_it(robust): pass\n", "expected named options only, got 'linf:0.1'"),
        ("@pytest.mark.robust(threat=EPS, at_least=0.4)\ndef test_it(): pass\n", "the test does not use the fixture 'robust'"),
        ("@pytest.mark.robust(threat=EPS, at_least=0.4)\ndef test_it(robust): pass\n", "the test never called robust.check"),
        (CHECK.format("at_least=0.4"), "threat: expected one such as 'linf:8/255', got none"),
        (CHECK.format("threat=EPS"), "at_least: expected a fraction such as 0.45, got none"),
        (CHECK.format("threat='lp:1', at_least=0.4"), "expected one of linf, l2, l1, l0"),
        (CHECK.format("threat=EPS, at_least=1.5"), "at_least: expected a fraction within (0, 1) such as 0.45, got 1.5"),
        (CHECK.format("threat=EPS, at_least=0.4, sweet='quick'"), "no option 'sweet'"),
        (CHECK.format("threat=EPS, at_least=0.4, suite='quik'"), "did you mean 'quick'"),
        (CHECK.format("threat=EPS, at_least=0.4, max_samples=500"), "500 asked for, but the data has 100"),
        (CHECK.replace("Threshold()", "Threshold().to('meta')").format("threat=EPS, at_least=0.4"), "meta device"),
        (CHECK.replace("Threshold()", "print").format("threat=EPS, at_least=0.4"), "expected a torch.nn.Module"),
        (CHECK.replace("check", "evaluate").format("threat=EPS, at_least=0.4"), "evaluate: no option 'at_least'"),
    ],
)  # fmt: skip
def test_bad_input_fails_readably(session: Session, test: str, text: str) -> None:
    session.write(test)
    result = session.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert text in result.stdout.str()
    for sign in ("INTERNALERROR", "Traceback", "robust/gate"):
        assert sign not in result.stdout.str()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(session: Session) -> None:
    session.write(PASSES)
    session.run("--robust-device", "cuda").stdout.fnmatch_lines(["*this torch sees no CUDA device*"])


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


# -- surroundings -------------------------------------------------------------------------------------


def test_help_shows_the_group(session: Session) -> None:
    text = session.run("--help").stdout.str()
    assert "adversarial robustness:" in text
    for name in ("preset", "samples", "seed", "device", "skip", "only", "json", "baseline", "update-baseline", "fail-on-undecided"):  # fmt: skip
        assert f"--robust-{name}" in text
        assert f"robust_{name.replace('-', '_')}" in text
    session.run("--markers").stdout.fnmatch_lines(["@pytest.mark.robust(threat, suite, at_least*"])
    session.run("--fixtures").stdout.fnmatch_lines(["robust*"])


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


def test_loading_the_plugin_loads_no_torch() -> None:
    code = (
        "import sys, robust.pytest_plugin\n"
        "heavy = {'torch', 'numpy', 'scipy', 'pandas', 'pydantic', 'matplotlib', 'hypothesis'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_session_without_robust_tests_loads_no_torch(session: Session) -> None:
    session.pytester.makepyfile(
        test_plain="import sys\ndef test_it():\n    assert 'torch' not in sys.modules\n"
    )
    plugin = [] if INSTALLED else ["-p", "robust.pytest_plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, "test_plain.py"],
        cwd=session.path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_with_several_processes(session: Session) -> None:
    pytest.importorskip("xdist")
    threads = "def test_threads(robust):\n    import torch\n    assert torch.get_num_threads() <= THREADS\n"
    share = max(1, (os.cpu_count() or 1) // 2)
    session.write(PASSES, FAILS, UNDECIDED, REGRESSION, threads.replace("THREADS", str(share)))
    plugin = [] if INSTALLED else ["-p", "robust.pytest_plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, "-W", "error", "-n", "2", "--robust-device", "cpu",
         "--robust-json", "r.json", "--robust-update-baseline", "--junit-xml", "j.xml"],
        cwd=session.path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "1 failed, 3 passed, 1 undecided" in done.stdout, done.stdout
    assert done.stdout.count("test_it.py::test_passes") == 1
    assert "fail: robust accuracy is below 45.0%" in done.stdout
    written = json.loads((session.path / "r.json").read_text())
    assert written["totals"] == {"pass": 1, "fail": 1, "undecided": 1, "done": 1, "written": 1}
    assert (session.path / "robust-baselines" / "test_it.py_test_regression.json").is_file()
    assert "robust_outcome" in (session.path / "j.xml").read_text()
    session.run("--robust-json", "alone.json", "-p", "no:cacheprovider")
    alone = json.loads((session.path / "alone.json").read_text())
    shared_rows, rows = (
        {(r["test"], r["kind"]): found(r) for r in some["results"]} for some in (written, alone)
    )
    same = ("test_passes", "test_fails", "test_undecided")
    compared = [key for key in shared_rows if key[0].endswith(same)]
    assert len(compared) == 3
    assert [shared_rows[key] for key in compared] == [rows[key] for key in compared]


def found(result: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the machine's pace, or on where evidence went."""
    return {
        k: v for k, v in result.items() if k not in ("seconds", "device", "forwards", "backwards", "evidence")
    }
