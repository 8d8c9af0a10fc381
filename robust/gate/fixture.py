"""What the pytest fixture `robust` offers to a test."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import pytest

from robust.errors import InputError, RobustError
from robust.gate.options import Session, check_values
from robust.gate.summary import Record

if TYPE_CHECKING:
    from robust.gate.check import GateResult
    from robust.report import Report


@dataclass(frozen=True)
class Place:
    """Where a test stands, and where its evidence goes.

    Args:
        test: its node id.
        replay: the command that runs it again with the same settings.
        folder: makes and gives the folder for its evidence.
    """

    test: str
    replay: str
    folder: Callable[[], Path]


class Robustness:
    """Robustness checks of one test. What they find is recorded in `records` and as properties.

    Every error made on purpose fails the test with its message; an undecided gate skips it as
    "undecided", or fails it where the session says so.
    """

    def __init__(self, session: Session, marker: Mapping[str, Any], place: Place) -> None:
        self._session, self._marker, self._place = session, dict(marker), place
        self.records: list[Record] = []
        self.properties: list[tuple[str, str]] = []
        self._defaults = 0  # baselines of a name of their own
        self._told = 0  # records that a report of pytest's has taken along

    def check(self, model: Any, data: Any, **options: Any) -> GateResult:
        """Fail unless the model's robust accuracy is shown to be at least `at_least`.

        Args:
            model, data: as for `robust.evaluate`.
            options: threat, suite, at_least, confidence, max_samples, gate, require_trust, normalize,
                bounds, seed, device, batch_size, precision: as for `robust.gate.check.check`. They go
                before the marker's; the command line's go before both.
        """
        from robust.gate.check import check

        found = self._resolve(options)
        if "at_least" not in found:
            _fail("at_least: expected a fraction such as 0.45, got none; give it to the marker or to check()")
        try:
            result = check(model, data, **found)
        except RobustError as error:
            _fail(str(error))
        record = self._record("check", result.outcome, result.reason, result.report, interval=result.interval)
        record.update(
            at_least=result.at_least,
            confidence=result.confidence,
            gate=result.gate,
            complete=result.complete,
            population=result.population,
        )
        self._deliver(record)
        if result.outcome != "pass":
            self._tell(result)
        return result

    def evaluate(self, model: Any, data: Any, **options: Any) -> Report:
        """The report of `max_samples` samples, whatever it says; no gate.

        Args:
            model, data: as for `robust.evaluate`.
            options: as for `check`, without at_least, confidence, gate and require_trust.
        """
        from robust.gate.check import evaluate_some

        found = self._resolve(options)
        for name in ("at_least", "confidence", "gate", "require_trust"):
            if name in options:
                _fail(f"evaluate: no option {name!r}, it only measures; use check()")
            found.pop(name, None)
        try:
            report = evaluate_some(model, data, **found)
        except RobustError as error:
            _fail(str(error))
        record = self._record("evaluate", "done", "measured", report, interval=report.interval)
        self._deliver(record)
        return report

    def no_regression(
        self,
        report: Report | GateResult,
        *,
        baseline: str | Path | None = None,
        max_drop: float = 0.0,
        confidence: float = 0.95,
    ) -> None:
        """Fail if the model is worse than the baseline, sample by sample; see robust.gate.baseline.compare.

        Args:
            report: of `evaluate`.
            baseline: file, relative to the folder that --robust-baseline or the ini key names, or to the
                rootdir; by default a file named after the test. --robust-baseline FILE.json goes before.
            max_drop: the fall of robust accuracy that is accepted, a fraction.
            confidence: of the exact McNemar test.
        """
        from robust.gate.baseline import Baseline, compare
        from robust.report import Report

        measured = report if isinstance(report, Report) else getattr(report, "report", None)
        if not isinstance(measured, Report):
            _fail(f"no_regression: expected the report of evaluate(), got {type(report).__name__}")
        path = self._baseline_path(baseline)
        try:
            if measured.stopped:
                raise InputError(
                    "no_regression: the gate stopped this suite early; use the report of evaluate()"
                )
            if self._session.update_baseline:
                Baseline.of(measured).save(path)
                record = self._record("evaluate", "written", "baseline written", measured, measured.interval)
                self._deliver({**record, "baseline": self._shown(path)})
                return
            found = compare(
                measured,
                Baseline.load(path),
                max_drop=max_drop,
                confidence=confidence,
                name=self._shown(path),
            )
        except RobustError as error:
            _fail(str(error))
        record = self._record("regression", found.outcome, found.reason, measured, measured.interval)
        record.update(
            baseline=self._shown(path), max_drop=max_drop, before=found.before, after=found.after,
            lost=found.lost, won=found.won, p=found.p, n=found.n, same_model=found.same_model,
        )  # fmt: skip
        self._deliver(record)
        if found.outcome != "pass":
            lines = [f"{found.outcome}: {found.reason}; baseline {self._shown(path)}", *found.lines()]
            lines += [f"trust: {measured.trust}", f"replay: {self._place.replay}"]
            self._end("\n".join(lines), undecided=found.outcome == "undecided")

    def untold(self) -> list[Record]:
        """Records since the last call: a report for setup, call and teardown each takes along its own."""
        new, self._told = self.records[self._told :], len(self.records)
        return new

    def _resolve(self, options: Mapping[str, Any]) -> dict[str, Any]:
        try:
            found = self._session.resolve(self._marker, options)
            check_values(found)
        except InputError as error:
            _fail(str(error))
        return found

    def _baseline_path(self, baseline: str | Path | None) -> Path:
        home, root = self._session.baseline, self._session.root
        if home is not None and home.suffix == ".json":
            return root / home
        folder = root / (home if home is not None else Path())
        if baseline is not None:
            return folder / baseline
        default = folder if home is not None else folder / "robust-baselines"
        self._defaults += 1  # the second of a test has a file of its own
        number = f".{self._defaults}" if self._defaults > 1 else ""
        return default / f"{slug(self._place.test)}{number}.json"

    def _record(
        self, kind: str, outcome: str, reason: str, report: Report, interval: tuple[float, float]
    ) -> Record:
        return {
            "test": self._place.test,
            "kind": kind,
            "outcome": outcome,
            "reason": reason,
            "robust_accuracy": report.robust_accuracy,
            "interval": list(interval),
            "clean_accuracy": report.clean_accuracy,
            "n": report.n,
            "population": report.data.get("population", report.n),
            "statuses": report.statuses,
            "threat": str(report.threat),
            "suite": report.suite,
            "seed": report.seed,
            "trust": report.trust,
            "findings": report.findings,
            "attacks": [{key: e[key] for key in ("label", "attacked", "broke")} for e in report.attacks],
            "forwards": report.forwards,
            "backwards": report.backwards,
            "seconds": report.seconds,
            "device": report.device,
            "model_sha256": report.model["sha256"],
            "data_sha256": report.data.get("population_sha256", report.data["sha256"]),
            "replay": self._place.replay,
            "evidence": None,
        }

    def _deliver(self, record: Record) -> None:
        # Plain types only: with several processes, records travel between them.
        record = json.loads(json.dumps(record))
        self.records.append(record)
        for name in ("outcome", "robust_accuracy", "interval", "n", "threat", "suite", "seed", "trust"):
            self.properties.append((f"robust_{name.removeprefix('robust_')}", _text(record[name])))

    def _tell(self, result: GateResult) -> NoReturn:
        from robust.gate.evidence import message

        text = message(result, replay=self._place.replay, kept=self._keep(result))
        self._end(text, undecided=result.outcome == "undecided")

    def _keep(self, result: GateResult) -> str:
        from robust.gate.evidence import keep

        try:
            kept = str(keep(result.report, result.samples, self._place.folder()))
        except (RobustError, OSError) as error:  # the outcome matters more than its evidence
            return f"could not be written ({error})"
        self.records[-1]["evidence"] = kept
        self.properties.append(("robust_evidence", kept))
        return kept

    def _end(self, text: str, *, undecided: bool) -> NoReturn:
        if undecided and not self._session.fail_on_undecided:
            pytest.skip(text)
        _fail(text)

    def _shown(self, path: Path) -> str:
        root = self._session.root
        return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


_LONGEST: Final = 150  # characters of a file name


def slug(test: str) -> str:
    """A file name from a node id, with a digest where the name does not tell it from all others."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", test).strip("_.")
    if name == test.replace("::", "_").replace("/", "_") and len(name) <= _LONGEST:
        return name
    return f"{name[-_LONGEST:]}-{sha256(test.encode()).hexdigest()[:8]}"


def replay_command(test: str, options: Mapping[str, object]) -> str:
    """The command that runs one test with these options."""
    words = ["pytest", test]
    for name, value in options.items():
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            words += [name, str(value)]
    return shlex.join(words)


def share_threads(workers: int) -> None:
    """Leave torch this process' share of the cores, where several test processes run at once."""
    import torch

    if workers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _fail(text: str) -> NoReturn:
    told = text if text.startswith(("fail:", "undecided:", "error:")) else f"robust: {text}"
    raise pytest.fail.Exception(told, pytrace=False) from None  # one message, not the errors before it
