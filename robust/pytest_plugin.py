"""The pytest plugin: marker, fixture, options, and what a session tells of its robustness checks.

Hooks and fixtures only; the logic is in robust.gate. Nothing here, nor what it imports, loads torch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from robust.errors import RobustError
from robust.gate.options import PRESETS, Session, Source, check_marker

if TYPE_CHECKING:
    from robust.gate.fixture import Robustness
    from robust.gate.summary import Record

_MARKER: Final = (
    "robust(threat, suite, at_least, confidence, max_samples, gate, ...): robustness check; "
    "options of the fixture robust's check(), see docs/ci.md"
)
_INI: Final = {
    "preset": ("string", "how much to spend: smoke, standard or full"),
    "samples": ("string", "most samples a test may use"),
    "seed": ("string", "seed of all random draws"),
    "device": ("string", "auto, cpu, cuda or cuda:N"),
    "skip": ("bool", "skip robustness tests"),
    "only": ("bool", "run robustness tests only"),
    "json": ("string", "file to write all results to"),
    "baseline": ("string", "baseline file, or the folder of baseline files"),
    "update_baseline": ("bool", "write baselines instead of comparing with them"),
    "fail_on_undecided": ("bool", "fail tests that end undecided"),
}


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer >= 0, got {text!r}")
    return int(text)


def _preset(text: str) -> str:
    try:
        PRESETS[text]
    except RobustError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


_READ: Final = {"samples": _positive, "seed": _seed, "preset": _preset}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("robust", "adversarial robustness")
    add = group.addoption
    add("--robust-preset", type=_preset, metavar="NAME",
        help="smoke (suite quick, 100 samples), standard (standard, 1000; the default) or full (thorough, all); "
        "goes before what tests say")  # fmt: skip
    add("--robust-samples", type=_positive, metavar="N", help="most samples a test may use")
    add("--robust-seed", type=_seed, metavar="N", help="seed of the samples' order and of all attacks [0]")
    add("--robust-device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N [auto]")
    add("--robust-skip", action="store_true", default=None, help="skip the robustness tests")
    add("--robust-only", action="store_true", default=None, help="run only the robustness tests")
    add("--robust-json", metavar="FILE", help="write every result to FILE as JSON")
    add("--robust-baseline", metavar="PATH",
        help="folder of the baselines, or one baseline FILE.json for every comparison [robust-baselines]")  # fmt: skip
    add("--robust-update-baseline", action="store_true", default=None,
        help="write the baselines instead of comparing with them")  # fmt: skip
    add("--robust-fail-on-undecided", action="store_true", default=None,
        help="fail tests whose samples do not suffice for a decision; otherwise they count as undecided")  # fmt: skip
    for name, (kind, text) in _INI.items():
        parser.addini(f"robust_{name}", text, type=kind, default=None)  # type: ignore[arg-type]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)
    ini = {name: _read_ini(config, name) for name in _INI}
    given = {name: _given(config, name) for name in _INI}
    both = {name: given[name] if given[name] is not None else ini[name] for name in _INI}
    scope = ("preset", "samples", "seed", "device")
    session = Session(
        command_line=Source(**{name: given[name] for name in scope}),
        configuration=Source(**{name: ini[name] for name in scope}),
        baseline=_path(config, "baseline"),
        root=config.rootpath,
        update_baseline=bool(both["update_baseline"]),
        fail_on_undecided=bool(both["fail_on_undecided"]),
    )
    if both["skip"] and both["only"]:
        raise pytest.UsageError("--robust-skip, --robust-only: give one of them, not both")
    config.stash[_SESSION], config.stash[_SKIP], config.stash[_ONLY] = (
        session,
        bool(both["skip"]),
        bool(both["only"]),
    )
    if not hasattr(config, "workerinput"):  # with several processes, the one that starts them tells
        json_file = _path(config, "json")
        if json_file is not None and (json_file.is_dir() or not os.access(_existing(json_file), os.W_OK)):
            raise pytest.UsageError(f"--robust-json: expected a file that can be written, got {json_file}")
        settings = {name: both[name] for name in ("preset", "samples", "seed", "device")}
        config.pluginmanager.register(_Teller(json_file, settings), "robust-teller")


_LONGEST: Final = 300  # characters of a reason
_SESSION: Final = pytest.StashKey[Session]()
_SKIP: Final = pytest.StashKey[bool]()
_ONLY: Final = pytest.StashKey[bool]()
_FIXTURE: Final = pytest.StashKey["Robustness"]()


def _given(config: pytest.Config, name: str) -> Any:
    return config.getoption(f"robust_{name}")


def _read_ini(config: pytest.Config, name: str) -> Any:
    """A value of the configuration file, read as the option of the same name."""
    value = config.getini(f"robust_{name}")
    if isinstance(value, bool) or value is None or value == "":
        return None if value == "" else value
    try:
        return _READ[name](str(value)) if name in _READ else value
    except argparse.ArgumentTypeError as error:
        where = config.inipath or "-o"  # without a file it is an override of the command line
        raise pytest.UsageError(f"robust_{name} in {where}: {error}") from None


def _path(config: pytest.Config, name: str) -> Path | None:
    """A path as it was meant: of the command line from where pytest started, of the file from the rootdir."""
    if given := _given(config, name):
        return config.invocation_params.dir / given
    written = _read_ini(config, name)
    return config.rootpath / written if written else None


def _existing(path: Path) -> Path:
    """The nearest folder above that there is."""
    return next(folder for folder in path.parents if folder.exists())


# -- which tests --------------------------------------------------------------------------------------


def _is_robust(item: pytest.Item) -> bool:
    return item.get_closest_marker("robust") is not None or "robust" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.stash[_SKIP]:
        for item in filter(_is_robust, items):
            item.add_marker(pytest.mark.skip(reason="--robust-skip"))
    if config.stash[_ONLY]:
        others = [item for item in items if not _is_robust(item)]
        items[:] = [item for item in items if _is_robust(item)]
        if others:
            config.hook.pytest_deselected(items=others)


def _marked(item: pytest.Item) -> dict[str, Any]:
    """Options of all markers of a test; the nearest has the last word."""
    found: dict[str, Any] = {}
    for marker in reversed(list(item.iter_markers("robust"))):
        check_marker(marker.args, marker.kwargs)
        found.update(marker.kwargs)
    return found


def pytest_runtest_setup(item: pytest.Item) -> None:
    try:
        marked = _marked(item)
    except RobustError as error:
        raise pytest.fail.Exception(f"robust: {error}", pytrace=False) from None
    if marked and "robust" not in getattr(item, "fixturenames", ()):
        pytest.fail(
            "robust: the marker's options reach nobody, as the test does not use the fixture 'robust'; "
            "add it to the arguments and call robust.check(model, data)",
            pytrace=False,
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """A test that ended well has done what its marker asks. Methods of unittest.TestCase pass here, too."""
    yield
    fixture = item.stash.get(_FIXTURE, None)
    marked = {} if fixture is None else _marked(item)
    called = () if fixture is None else [record["kind"] for record in fixture.records]
    if "at_least" in marked and "check" not in called:
        pytest.fail(
            "robust: the marker asks for at_least, but the test never called robust.check(model, data)",
            pytrace=False,
        )
    lost = [] if fixture is None else [record for record in fixture.records if _lost(record)]
    if "at_least" in marked and lost:
        pytest.fail(
            f"robust: the marker asks for at_least, and a check ended as {lost[0]['outcome']!r} without ending the test: its "
            "exception was caught, or raised in another thread; let it out, or give the options to check() alone",
            pytrace=False,
        )
    if marked and not called:
        pytest.fail(
            "robust: the marker's options reach nobody, as the test never called robust.check(model, data) or "
            "robust.evaluate(model, data)",
            pytrace=False,
        )


def _lost(record: Record) -> bool:
    """Whether a record is of a check that should have ended its test."""
    return record["kind"] == "check" and record["outcome"] != "pass"


def _drop_old_evidence(item: pytest.Item, fixture: Robustness) -> None:
    """A test that passes leaves none of an earlier run, which a pipeline would upload; what this run kept stays."""
    kept = any(record["evidence"] for record in fixture.records)
    if kept or getattr(item.config, "cache", None) is None:
        return
    with suppress(OSError):
        shutil.rmtree(_evidence_of(item))


def _evidence_of(item: pytest.Item) -> Path:
    """The folder for a test's evidence; one of its own where nothing is kept from run to run."""
    from robust.gate.fixture import slug

    cache = getattr(item.config, "cache", None)
    home = cache.mkdir("robust") if cache is not None else Path(tempfile.mkdtemp(prefix="robust-"))
    return Path(home) / slug(item.nodeid)


# -- the fixture --------------------------------------------------------------------------------------


@pytest.fixture
def robust(request: pytest.FixtureRequest) -> Robustness:
    """Robustness checks: .check(model, data), .evaluate(model, data), .no_regression(report)."""
    from robust.gate.fixture import Place, Robustness, replay_command

    item, config = request.node, request.config
    _share_threads_once(config)
    session = config.stash[_SESSION]
    place = Place(item.nodeid, replay_command(_address(item), _replayed(config)), partial(_evidence_of, item))
    fixture = Robustness(session, _marked(item), place)
    fixture.properties = item.user_properties
    item.stash[_FIXTURE] = fixture
    return fixture


def _replayed(config: pytest.Config) -> dict[str, object]:
    """Options that a replay needs, beside what test and configuration file say."""
    names = ("preset", "samples", "seed", "device", "baseline", "fail_on_undecided")
    return {f"--robust-{name.replace('_', '-')}": _given(config, name) for name in names}


def _address(item: pytest.Item) -> str:
    """The test as one names it from the folder in which pytest was started."""
    file, _, rest = item.nodeid.partition("::")
    here = os.path.relpath(item.config.rootpath / file, item.config.invocation_params.dir)
    return f"{Path(here).as_posix()}::{rest}" if rest else here


_SHARED: Final = pytest.StashKey[bool]()


def _share_threads_once(config: pytest.Config) -> None:
    from robust.gate.fixture import share_threads

    if not config.stash.get(_SHARED, False):
        config.stash[_SHARED] = True
        share_threads(int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


# -- what is told -------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    fixture = item.stash.get(_FIXTURE, None)
    if fixture is not None and (untold := fixture.untold()):
        _note_expectation(report, untold)
        report.robust = untold  # type: ignore[attr-defined]
    if fixture is not None and report.when == "call" and report.passed:
        _drop_old_evidence(item, fixture)
    if report.failed and _is_robust(item) and not any(_told(record) for record in _records(report)):
        report.robust_failure = _reason(report)  # type: ignore[attr-defined]
    return report


def _note_expectation(report: pytest.TestReport, records: list[Record]) -> None:
    """Note under "xfail" what a test's xfail mark makes of its records: xfail, xpass, xpass(strict) or None."""
    strict = report.failed and str(report.longrepr).startswith("[XPASS(strict)]")
    marked = hasattr(report, "wasxfail")
    failing = "xfail" if marked and report.skipped else None
    passing = "xpass(strict)" if strict else "xpass" if marked and report.passed else None
    for record in records:
        record["xfail"] = failing if _told(record) else passing if record["outcome"] == "pass" else None


def _told(record: Record) -> bool:
    """Whether a record itself says why its test fails."""
    return record["outcome"] in ("fail", "undecided", "error")


def _reason(report: pytest.TestReport) -> str:
    """Why a test failed, in a line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash else report.longrepr).strip()
    return text.partition("\n")[0][:_LONGEST]


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: Any) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    undecided = any(r["outcome"] == "undecided" and not r["xfail"] for r in _records(report))
    if getattr(report, "skipped", False) and undecided:
        return "undecided", "u", ("UNDECIDED", {"yellow": True})
    return None


def _records(report: Any) -> list[Record]:
    records: list[Record] = getattr(report, "robust", None) or []
    return records


class _Teller:
    """Collects the records of all tests, and tells them at the end."""

    def __init__(self, json_file: Path | None, settings: dict[str, Any]) -> None:
        self.json_file, self.settings = json_file, settings
        self.records: list[Record] = []
        self.failures: list[dict[str, str]] = []  # of robustness tests, for other reasons than a record's
        self.troubles: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.records += _records(report)
        if reason := getattr(report, "robust_failure", None):
            self.failures.append({"test": report.nodeid, "reason": reason})

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        from robust.gate.summary import append_markdown, overwritten, write_json

        page = os.environ.get("GITHUB_STEP_SUMMARY")
        self.troubles += overwritten(self.records)
        if self.json_file is not None and not session.config.getoption("collectonly"):
            self._try(write_json, self.json_file, self.records, self.settings, self.failures)
        if self.troubles and session.exitstatus == pytest.ExitCode.OK:  # what was asked for is not there
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if page and (self.records or self.failures):
            self._try(append_markdown, Path(page), self.records, self.failures)

    def _try(self, write: Callable[..., None], *arguments: object) -> None:
        """Write a file; what cannot be written is told, and keeps no other from being written."""
        try:
            write(*arguments)
        except RobustError as error:
            self.troubles.append(str(error))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.records and not self.troubles:
            return
        from robust.gate.summary import lines

        terminalreporter.section("robustness")
        for line in [*lines(self.records), *self.troubles]:
            terminalreporter.write_line(line)
