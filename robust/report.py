"""What an evaluation found: the per-sample verdict table and what is derived from it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from robust.errors import InputError, StoreError, ThreatError
from robust.files import given_path, replacing, why, why_unwritten
from robust.stats import interval
from robust.threat import Threat

if TYPE_CHECKING:
    from robust.target import Target

SCHEMA_VERSION = 1
STATUSES = ("misclassified", "broken", "survived", "error")
Trust = Literal["trusted", "suspect", "unreliable"]
STOPPED = " (stopped)"  # after a suite's name: a gate failed before the last attack, and what still stood counts as survived


_KEPT: Final = (
    "suite", "seed", "attacks", "trust", "findings", "checks", "model", "data", "device", "versions", "seconds", "engine",
    "cascade", "failures",
)  # fmt: skip


@dataclass
class Report:
    """Result of `robust.evaluate`. Everything that is a rate is counted from `verdicts`.

    Attributes:
        verdicts: a row per sample: sample_id, label, prediction (-1: logits that are no numbers), status (misclassified | broken |
            survived | error), attack (label of the one that broke it, or empty), distance (of the
            audited adversarial example; NaN where none), margin (the highest seen: best other logit
            minus the label's), nearest (distance of the nearest audited adversarial point, in or out of
            the threat; 0 where misclassified, NaN where none was seen), prediction_adv, forwards, backwards;
            group, where the samples have groups.
        attacks: a dict per attack (`entries.new_entry`): name, label, parameters, selection (whom its suite shows it), access
            ("gradient", "score" or "decision"), source, minimum_norm, batch_dependent, notes, attacked, broke, survived, rejected
            (claims that the audit refused), silent (samples with a misclassified point in the search and no claim),
            unstarted (the attack found nowhere to begin), errors, forwards, backwards, seconds.
        suite_version: which version of the suite, where it has versions.
        cascade: each attack saw only what the ones before it left standing; otherwise each saw every
            correctly classified sample, and `survived` is its robust count alone.
        trust: "trusted", "suspect" or "unreliable", from `findings` [{check, severity, message}].
        minimize: every attack went on after its first success, for the nearest point: see `curve`.
        engine: the copy of the model that was searched with: "plain", or what was done to it, such as "folded, bfloat16".
        eot: {"samples", "vote"} where a randomised model was judged in expectation.
        data: spec and sha256 of the samples, class_names where their source names the classes.
        checks: passes and seconds spent on diagnostics.
        failures: what samples in error ended in: a traceback, or how many gave no numbers.
        examples: sample_id and x_adv of every broken sample, where kept.
    """

    threat: Threat
    suite: str
    seed: int
    verdicts: pd.DataFrame
    attacks: list[dict[str, Any]]
    trust: Trust
    findings: list[dict[str, str]]
    checks: dict[str, float]
    model: dict[str, Any]
    data: dict[str, Any]
    device: str
    versions: dict[str, str]
    seconds: float
    engine: str = "plain"
    suite_version: int | None = None
    cascade: bool = True
    minimize: bool = False
    eot: dict[str, Any] | None = None
    failures: list[str] = field(default_factory=list)
    examples: dict[str, torch.Tensor] | None = None

    @property
    def n(self) -> int:
        """Samples evaluated."""
        return len(self.verdicts)

    @property
    def stopped(self) -> bool:
        """Whether a gate ended the suite early: its robust accuracy is then more than the whole suite would leave."""
        return self.suite.endswith(STOPPED)

    @property
    def statuses(self) -> dict[str, int]:
        """Samples per status; they add up to n."""
        counts = self.verdicts["status"].value_counts()
        return {status: int(counts.get(status, 0)) for status in STATUSES}

    @property
    def clean_correct(self) -> int:
        """Samples classified correctly before any attack."""
        return int(
            (self.verdicts["prediction"] == self.verdicts["label"]).sum()
        )  # -1 where its logits are no numbers

    @property
    def clean_accuracy(self) -> float:
        """Share of the samples classified correctly."""
        return self.clean_correct / self.n

    @property
    def robust_accuracy(self) -> float:
        """Share of the samples classified correctly under every attack."""
        return self.statuses["survived"] / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the robust accuracy."""
        return interval(self.statuses["survived"], self.n)

    @property
    def classes(self) -> pd.DataFrame:
        """Accuracy per class that occurs: label, name, n, clean_accuracy, robust_accuracy and its 95 % interval."""
        table = self._shares("label")
        table.insert(1, "name", [self.class_name(label) for label in table["label"]])
        return table

    def class_name(self, label: int) -> str:
        """What the source of the data calls this class, else its number."""
        names = self.data.get("class_names") or []
        return str(names[label]) if 0 <= label < len(names) else str(label)

    @property
    def groups(self) -> pd.DataFrame:
        """Accuracy per group: group, n, clean_accuracy, robust_accuracy and its 95 % interval (low, high).

        Empty where the samples have no groups.
        """
        return self._shares("group")

    def _shares(self, column: str) -> pd.DataFrame:
        rows = []
        for value, members in self.verdicts.groupby(column) if column in self.verdicts else ():
            n, stands = len(members), int((members["status"] == "survived").sum())
            correct = int((members["prediction"] == members["label"]).sum())
            rows.append((value, n, correct / n, stands / n, *interval(stands, n)))
        return pd.DataFrame(rows, columns=[column, "n", "clean_accuracy", "robust_accuracy", "low", "high"])

    def curve(self, eps: Iterable[float | str]) -> pd.DataFrame:
        """Robust accuracy against eps, from each sample's nearest adversarial point: one run gives all.

        Args:
            eps: radii in the threat's norm, such as 0, 0.5 or "8/255".

        Returns:
            A row per eps: eps (as a number), robust_accuracy and its 95 % interval (low, high), all
            fractions. As every verdict by attack, an upper bound, and a looser one than an evaluation at that radius.

        Raises:
            InputError: the evaluation did not minimize, no attack searched at that radius (those that are no minimum-norm
                attacks do at the threat's alone), or the threat is no norm ball: its strengths are not nested, or not told
                by a distance.
        """
        if not self.minimize:
            raise InputError(
                "curve: expected a report of evaluate(..., minimize=True); here every search ended at its first "
                f"adversarial point inside {self.threat}"
            )
        unlimited = any(attack["minimum_norm"] for attack in self.attacks)
        radii = curve_radii(self.threat, eps, unlimited=unlimited)
        intact = self.verdicts["status"].isin(["survived", "broken"])
        rows = []
        for radius in radii:
            reached = self.verdicts["nearest"] <= self.threat.farthest(radius)
            k = int((intact & ~reached).sum())
            rows.append((radius, k / self.n, *interval(k, self.n)))
        return pd.DataFrame(rows, columns=["eps", "robust_accuracy", "low", "high"])

    @property
    def forwards(self) -> int:
        """Forward passes of one sample, all together: clean, attacks, audit, diagnostics."""
        return int(self.verdicts["forwards"].sum()) + int(self.checks["forwards"])

    @property
    def backwards(self) -> int:
        """Backward passes, all together."""
        return int(self.verdicts["backwards"].sum()) + int(self.checks["backwards"])

    def to_dict(self) -> dict[str, Any]:
        """The object that `--json` writes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "interval": list(self.interval),
            "n": self.n,
            "statuses": self.statuses,
            "classes": self.classes.to_dict("records"),
            "groups": self.groups.to_dict("records"),
            "forwards": self.forwards,
            "backwards": self.backwards,
            "seconds": self.seconds,
            "attacks": self.attacks,
            "cascade": self.cascade,
            "minimize": self.minimize,
            "trust": self.trust,
            "findings": self.findings,
            "checks": self.checks,
            "failures": self.failures,
            "threat": {
                "norm": self.threat.norm,
                "eps": self.threat.eps,
                "radius": self.threat.radius,
                "bounds": list(self.threat.bounds),
            },
            "suite": self.suite,
            "suite_version": self.suite_version,
            "seed": self.seed,
            "model": self.model,
            "data": self.data,
            "device": self.device,
            "engine": self.engine,
            "eot": self.eot,
            "versions": self.versions,
        }

    def plot(self, folder: str | Path, *, target: Target | None = None, samples: Any = None) -> list[Path]:
        """Draw the report as PNG and SVG files; see `robust.explain.explain`, which this calls."""
        from robust.explain import explain

        return explain(self, folder, target=target, samples=samples)

    def save(self, folder: str | Path) -> Path:
        """Write report.json, verdicts.parquet and, where kept, examples.safetensors; all of them or none.

        A report that was here before goes only once all files are written beside it. Its report.json goes first and the new
        one comes last: an interruption in between leaves no folder that loads with the files of two.

        Raises:
            StoreError: the folder cannot be written.
        """
        folder = Path(folder)
        try:
            text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
            with ExitStack() as files:  # put in place in the reverse order
                files.enter_context(replacing(folder / "report.json")).write_text(text, encoding="utf-8")
                # As bytes: pandas 2.2 takes "linf:0.1" in a path for a URI, even in that of an open file.
                table = files.enter_context(replacing(folder / "verdicts.parquet"))
                table.write_bytes(self.verdicts.to_parquet(index=False))
                if self.examples is not None:
                    save_file(self.examples, files.enter_context(replacing(folder / "examples.safetensors")))
                for name in ("report.json", "examples.safetensors"):
                    (folder / name).unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            raise StoreError(f"report: cannot write to {folder}: {why_unwritten(error)}") from error
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a report that `save` wrote.

        Raises:
            StoreError: missing, damaged, or of a newer schema.
            InputError: no path.
        """
        from robust.report_form import problem_of

        folder = given_path("report", "a folder", folder)
        examples = folder / "examples.safetensors"
        try:
            raw = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            # Opened here: of a path pandas takes "linf:0.1" for a URI.
            with (folder / "verdicts.parquet").open("rb") as table:
                verdicts = pd.read_parquet(table)
            kept_examples = load_file(examples) if examples.exists() else None
            if not isinstance(raw, dict):
                raise ValueError(f"report.json holds {type(raw).__name__}, not an object")
        except OSError as error:
            raise _unreadable(folder, f"{Path(error.filename or folder).name}: {why(error)}") from error
        except (ValueError, RecursionError, SafetensorError) as error:
            raise _unreadable(folder, str(error)) from error
        if not isinstance(raw.get("schema_version"), int):
            raise _unreadable(folder, "report.json states no schema version")
        if raw["schema_version"] != SCHEMA_VERSION:
            raise StoreError(
                f"report: {folder} has schema version {raw['schema_version']!r}, this program reads "
                f"{SCHEMA_VERSION}; upgrade robust-harness"
            )
        if problem := problem_of(raw):
            raise _unreadable(folder, f"report.json: {problem}")
        try:
            report = cls._of(raw, verdicts, kept_examples)
            ids = [] if kept_examples is None else kept_examples["sample_id"].tolist()
            strange = not set(ids) <= set(verdicts["sample_id"])
        except (LookupError, TypeError, ThreatError) as error:
            raise _unreadable(folder, f"{type(error).__name__}: {error}") from error
        if strange:
            raise StoreError(
                f"report: {examples} is of another run than the verdicts beside it; remove it, or run again"
            )
        return report

    @classmethod
    def _of(
        cls, raw: dict[str, Any], verdicts: pd.DataFrame, examples: dict[str, torch.Tensor] | None
    ) -> Self:
        """The report that `to_dict` made an object of, in which `problem_of` finds nothing wrong."""
        threat = raw["threat"]
        return cls(
            threat=Threat(threat["norm"], str(threat["eps"]), (threat["bounds"][0], threat["bounds"][1])),
            verdicts=verdicts,
            minimize=raw.get("minimize", False),
            examples=examples,
            eot=raw.get("eot"),
            suite_version=raw.get("suite_version"),
            **{key: raw[key] for key in _KEPT},
        )

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"Report({str(self.threat)!r}, {self.suite!r}, {self.n} samples, clean {self.clean_accuracy:.4f}, "
            f"robust {self.robust_accuracy:.4f}, interval [{low:.4f}, {high:.4f}], {self.trust!r})"
        )

    def __str__(self) -> str:
        low, high = self.interval
        lines = [
            f"robust accuracy {self.robust_accuracy:.1%} [{low:.1%}, {high:.1%}] under {self.threat} "
            f"(suite {self.suite}, {self.n} samples, seed {self.seed}); clean {self.clean_accuracy:.1%}",
            f"trust: {self.trust}" + "".join(f"\n  {f['check']}: {f['message']}" for f in self.findings),
        ]
        return "\n".join(lines)


def _unreadable(folder: Path, reason: str) -> StoreError:
    return StoreError(f"report: cannot read {folder}: {reason}; expected a folder that Report.save wrote")


def curve_radii(threat: Threat, eps: Iterable[float | str], *, unlimited: bool) -> list[float]:
    """The radii of a curve as numbers, 0 for clean accuracy.

    Args:
        threat: that is evaluated.
        eps: as the user gave them.
        unlimited: whether a minimum-norm attack searches at every radius, beyond the threat, too.

    Raises:
        InputError: a radius that is none, or that is not searched; a threat that is no norm ball.
    """
    if threat.family is not None:
        raise InputError(
            f"curve: expected a threat in linf, l2, l1 or l0, got {threat}; evaluate each strength by itself"
        )
    if isinstance(eps, str | float | int):
        raise InputError(f"curve: eps: expected a list of radii such as [0, {eps}], got {eps!r}")
    radii = [0.0 if str(e).strip() in ("0", "0.0") else replace(threat, eps=str(e)).radius for e in eps]
    unsearched = [] if unlimited else [radius for radius in radii if radius not in (0.0, threat.radius)]
    if unsearched:
        raise InputError(
            f"curve: eps: expected {threat.eps}, at which alone these attacks search, got {unsearched[0]:g}; "
            "add a minimum-norm attack such as fmn to them, or evaluate each radius by itself"
        )
    return radii
