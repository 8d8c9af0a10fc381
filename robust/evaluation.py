"""From a model, data and a threat to a verdict per sample."""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import pandas as pd
import torch
from torch import Tensor, nn

import robust
from robust import diagnose
from robust.attacks import Attack
from robust.audit import audit
from robust.diagnose import Finding
from robust.errors import InputError, RobustError
from robust.losses import margin
from robust.oracle import Ledger, Oracle
from robust.report import STATUSES, Report
from robust.sources import Samples, as_samples, model_sha256
from robust.suites import resolve
from robust.target import Normalization, Target
from robust.threat import Threat

Suite = str | Attack | Mapping[str, Any] | Iterable[str | Attack | Mapping[str, Any]]
MISCLASSIFIED, BROKEN, SURVIVED, ERROR = range(4)
_WAVE: Final = (
    4  # micro-batches of rows an attack works on at once, so that its passes stay full as rows leave
)


@dataclass(frozen=True)
class Progress:
    """Where an evaluation stands."""

    stage: str  # label of the attack, or "clean"
    done: int  # samples of this stage
    total: int
    surviving: int  # samples that nothing has broken yet
    n: int


def evaluate(
    model: nn.Module | Target,
    data: Any,
    *,
    threat: str | Threat,
    suite: Suite = "standard",
    normalize: Normalization | None = None,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    batch_size: int | Literal["auto"] = "auto",
    precision: Literal["auto", "float32"] = "auto",
    cascade: bool = True,
    keep_examples: bool = False,
    model_spec: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Attack a classifier and say, sample by sample, what happened.

    A sample's verdict depends on the model, the sample, the threat, the suite and the seed; not on
    batch size, order or what else is in the data. Every break is re-measured on the plain model.

    Args:
        model: module giving logits (N, C), or a Target. It is handed back as it was.
        data: (x, y) with x float in `bounds` or uint8, (N, ...), and y integers (N,); a Samples, Dataset,
            DataLoader, or the name of a source.
        threat: "linf:8/255", or robust.Linf("8/255") and its kin.
        suite: suite or attack name, an attack, or a list of attacks.
        normalize: (mean, std) that the model expects, applied inside the Target.
        bounds: lowest and highest valid input value; (0, 1) unless the threat or target says otherwise.
        seed: of all random draws.
        device: "auto", "cpu", "cuda", "cuda:1".
        batch_size: rows a pass takes at most; "auto" measures.
        precision: of the search; judging is always float32.
        cascade: let each attack see only the survivors of those before it. Without, every attack sees
            every correctly classified sample, and the report has each one's robust accuracy alone.
        keep_examples: keep the audited adversarial examples in the report.
        model_spec: name of the model for the report.
        progress: called with a Progress as work is done.

    Raises:
        InputError and its kin: see robust.errors.
    """
    if precision not in ("auto", "float32"):
        raise InputError(f"precision: expected 'auto' or 'float32', got {precision!r}")
    if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size >= 1):
        raise InputError(f"batch_size: expected 'auto' or a positive integer, got {batch_size!r}")
    target = _as_target(model, threat, normalize, bounds, device)
    threat = Threat.parse(threat, target.bounds)
    name, attacks = resolve(suite, threat)
    samples = as_samples(data, bounds=threat.bounds)
    start = time.perf_counter()
    with target:
        run = _Run(
            target, samples, threat, seed, 0 if batch_size == "auto" else batch_size, keep_examples, progress
        )
        run.look()
        for attack in attacks:
            run.attack(attack, cascade=cascade)
    findings = [*run.findings, *diagnose.review(run.entries, run.correct, cascade=cascade)]
    return Report(
        threat=threat,
        suite=name,
        seed=seed,
        verdicts=run.table(),
        attacks=run.entries,
        trust=diagnose.verdict(findings),
        findings=[asdict(finding) for finding in findings],
        checks=run.checks,
        model=_describe(target.model, model_spec),
        data={"spec": samples.spec, "sha256": samples.sha256},
        device=_device_name(target.device),
        versions=_versions(),
        seconds=time.perf_counter() - start,
        cascade=cascade,
        failures=run.failures,
        examples=run.examples() if keep_examples else None,
    )


def assert_robust(
    model: nn.Module | Target, data: Any, *, threat: str | Threat, at_least: float, **options: Any
) -> Report:
    """Evaluate, and raise AssertionError with the evidence unless robust accuracy >= `at_least`.

    Args:
        at_least: fraction in [0, 1].
        options: as for `evaluate`.

    Returns:
        The report, when the assertion holds.
    """
    if not 0 <= at_least <= 1:
        raise InputError(f"at_least: expected a fraction in [0, 1], got {at_least!r}")
    report = evaluate(model, data, threat=threat, **options)
    if report.statuses["error"]:
        raise AssertionError(f"undecided: {report.statuses['error']} samples ended in an error\n{report}")
    if report.robust_accuracy < at_least:
        best = max(report.attacks, key=lambda entry: int(entry["broke"]))
        raise AssertionError(
            f"robust accuracy below {at_least:.1%}\n{report}\nbroke most: {best['label']} ({best['broke']} samples)"
        )
    return report


class _Run:
    """The verdicts of one evaluation while they are found. Per-sample tensors live on the CPU."""

    def __init__(
        self,
        target: Target,
        samples: Samples,
        threat: Threat,
        seed: int,
        micro_batch: int,
        keep_examples: bool,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        n = len(samples)
        self.target, self.samples, self.threat, self.seed = target, samples, threat, seed
        self.entries: list[dict[str, Any]] = []
        self.findings: list[Finding] = []
        self.failures: list[str] = []
        self.checks: dict[str, float] = {"forwards": 0, "backwards": 0, "seconds": 0.0}
        self.status = torch.full((n,), SURVIVED)
        self.prediction = torch.zeros(n, dtype=torch.int64)
        self.prediction_adv = torch.zeros(n, dtype=torch.int64)
        self.broken_by = torch.full((n,), -1)
        self.distance = torch.full((n,), torch.nan, dtype=torch.float64)
        self.margin = torch.full((n,), -torch.inf)
        self.forwards = torch.zeros(n, dtype=torch.int64)
        self.backwards = torch.zeros(n, dtype=torch.int64)
        self.correct = 0
        self._examples: dict[int, Tensor] = {}
        self._progress = progress
        self._micro_batch, self._keep_examples = micro_batch, keep_examples
        self._differentiable = True

    # -- before the attacks ---------------------------------------------------------------------

    def look(self) -> None:
        """Check the model, choose the micro-batch, classify the clean samples."""
        start = time.perf_counter()
        few = torch.arange(min(diagnose.PREFLIGHT_SAMPLES, len(self.samples)))
        seen = diagnose.preflight(self.target, *self._load(few)[:2])
        self.findings += seen.findings
        self.target.probabilities |= seen.probabilities
        self._differentiable = seen.differentiable
        self.checks = {
            "forwards": seen.forwards,
            "backwards": seen.backwards,
            "seconds": time.perf_counter() - start,
        }
        if not self._micro_batch:
            self._micro_batch = self.target.pick_micro_batch(
                lambda size: self._load(torch.arange(size) % len(self.samples))[0], len(self.samples)
            )
        self._classify()

    @torch.no_grad()
    def _classify(self) -> None:
        for rows in torch.arange(len(self.samples)).split(self._micro_batch):
            x, y, _ = self._load(rows)
            logits = self.target.logits(x)
            finite = logits.isfinite().all(1).cpu()
            self.prediction[rows] = logits.argmax(1).cpu()
            self.margin[rows] = margin(logits, y).cpu()
            wrong = self.prediction[rows] != self.samples.y[rows]
            self.status[rows[wrong]] = MISCLASSIFIED
            self.status[rows[~finite]] = ERROR
            self._tell("clean", int(rows[-1]) + 1, len(self.samples))
        self.forwards += 1
        self.prediction_adv = self.prediction.clone()
        self.correct = int((self.status == SURVIVED).sum())
        if bool((self.status == ERROR).any()):
            self._note_failure(
                "clean", f"non-finite logits on {int((self.status == ERROR).sum())} clean samples"
            )
            self._add_finding(
                diagnose.NON_FINITE, "the model gives NaN or infinity on clean samples; they count as errors"
            )

    # -- attacks --------------------------------------------------------------------------------

    def attack(self, attack: Attack, *, cascade: bool) -> None:
        """Run one attack over the samples that it is to see, nearest to the boundary first."""
        eligible = (self.status == SURVIVED) | ((self.status == BROKEN) & (not cascade))
        rows = eligible.nonzero().squeeze(1)
        if attack.access == "gradient" and not self._differentiable:
            rows = rows[:0]
        rows = rows[self.margin[rows].argsort(descending=True, stable=True)]
        entry: dict[str, Any] = {
            "name": attack.name, "label": attack.label, "parameters": attack.parameters, "attacked": len(rows),
            "broke": 0, "survived": 0, "rejected": 0, "errors": 0, "forwards": 0, "backwards": 0, "seconds": 0.0,
        }  # fmt: skip
        start, done = time.perf_counter(), 0
        while done < len(rows):
            wave = rows[done : done + _WAVE * self._micro_batch]
            try:
                self._attack_wave(attack, wave, entry)
            except torch.OutOfMemoryError:
                if self._micro_batch == 1:
                    raise
                self._micro_batch = max(1, self._micro_batch // 2)
                continue
            except RobustError:
                raise
            except Exception:  # a crash on some samples must not lose the others
                self._crash(attack, wave, entry)
            done += len(wave)
            self._tell(attack.label, done, len(rows))
        entry["survived"] = max(0, len(rows) - entry["broke"] - entry["errors"])
        entry["seconds"] = time.perf_counter() - start
        self.entries.append(entry)

    def _attack_wave(self, attack: Attack, rows: Tensor, entry: dict[str, Any]) -> None:
        x, y, ids = self._load(rows)
        oracle = Oracle(
            self.target, x, y, ids, self.threat,
            seed=self.seed, purpose=attack.label, access=attack.access, micro_batch=self._micro_batch,
        )  # fmt: skip
        attack(oracle)
        ledger = oracle.ledger
        checked = self._judge(rows, ledger, x, y, entry)
        for total, spent in ((self.forwards, ledger.forwards), (self.backwards, ledger.backwards)):
            total[rows] += spent.cpu()
        entry["forwards"] += int(ledger.forwards.sum()) + checked
        entry["backwards"] += int(ledger.backwards.sum())
        self.margin[rows] = self.margin[rows].fmax(ledger.margin.cpu())
        failed = (ledger.failed & ~ledger.broken).cpu()
        if bool(failed.any()):
            self.status[rows[failed]] = ERROR
            entry["errors"] += int(failed.sum())
            self._note_failure(attack.label, f"non-finite logits on {int(failed.sum())} samples")
            self._add_finding(
                diagnose.NON_FINITE, f"the model gives NaN or infinity under {attack.label}; see failures"
            )

    def _judge(self, rows: Tensor, ledger: Ledger, x: Tensor, y: Tensor, entry: dict[str, Any]) -> int:
        """Re-measure the claims on the plain model and write the verdicts; returns how many were checked."""
        claims = ledger.broken.nonzero().squeeze(1)
        for part in claims.split(self._micro_batch):
            found = audit(self.target, ledger.x_adv[part], x[part], y[part], self.threat)
            where = rows[part.cpu()]
            self.forwards[where] += 1
            valid = found.valid.cpu()
            entry["broke"] += int(valid.sum())
            entry["rejected"] += int((~valid).sum())
            fresh = valid & (self.status[where] == SURVIVED)
            new = where[fresh]
            self.status[new] = BROKEN
            self.broken_by[new] = len(self.entries)
            self.distance[new] = found.distance.cpu()[fresh]
            self.prediction_adv[new] = found.prediction.cpu()[fresh]
            if self._keep_examples:
                self._examples.update(zip(new.tolist(), ledger.x_adv[part].cpu()[fresh], strict=True))
        return len(claims)

    def _crash(self, attack: Attack, rows: Tensor, entry: dict[str, Any]) -> None:
        hurt = rows[self.status[rows] == SURVIVED]
        self.status[hurt] = ERROR
        entry["errors"] += len(hurt)
        self._note_failure(attack.label, f"crashed on {len(rows)} samples:\n{traceback.format_exc()}")
        self._add_finding(
            diagnose.CRASH, f"{attack.label} crashed; its samples count as errors; see failures"
        )

    # -- helpers --------------------------------------------------------------------------------

    def _load(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        device = self.target.device
        x = self.samples.rows(rows).to(device)
        return (
            x.clamp(*self.threat.bounds),
            self.samples.y[rows].to(device),
            self.samples.ids[rows].to(device),
        )

    def _note_failure(self, stage: str, text: str) -> None:
        self.failures.append(f"{stage}: {text}")

    def _add_finding(self, check: str, message: str) -> None:
        if check not in {finding.check for finding in self.findings}:
            self.findings.append(Finding(check, "unreliable", message))

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self._progress:
            surviving = int((self.status == SURVIVED).sum())
            self._progress(Progress(stage, done, total, surviving, len(self.samples)))

    def table(self) -> pd.DataFrame:
        """The verdicts; see Report."""
        names = [entry["label"] for entry in self.entries] + [""]
        return pd.DataFrame(
            {
                "sample_id": self.samples.ids.numpy(),
                "label": self.samples.y.numpy(),
                "prediction": self.prediction.numpy(),
                "status": [STATUSES[code] for code in self.status.tolist()],
                "attack": [names[index] for index in self.broken_by.tolist()],
                "distance": self.distance.numpy(),
                "margin": self.margin.numpy(),
                "prediction_adv": self.prediction_adv.numpy(),
                "forwards": self.forwards.numpy(),
                "backwards": self.backwards.numpy(),
            }
        )

    def examples(self) -> dict[str, Tensor]:
        """sample_id and x_adv of the broken samples, in sample order."""
        rows = sorted(self._examples)
        shape = self.samples.x.shape[1:]
        points = torch.stack([self._examples[row] for row in rows]) if rows else torch.empty((0, *shape))
        return {"sample_id": self.samples.ids[torch.tensor(rows, dtype=torch.int64)], "x_adv": points}


def _as_target(
    model: nn.Module | Target,
    threat: str | Threat,
    normalize: Normalization | None,
    bounds: tuple[float, float] | None,
    device: str | torch.device,
) -> Target:
    if isinstance(model, Target):
        if normalize is not None:
            raise InputError("normalize: the model is a Target, which has its own; give it there")
        return model
    if bounds is None:
        bounds = threat.bounds if isinstance(threat, Threat) else (0.0, 1.0)
    return Target(model, normalize=normalize, bounds=bounds, device=device)


def _describe(model: nn.Module, spec: str | None) -> dict[str, Any]:
    return {
        "spec": spec or "memory",
        "sha256": model_sha256(model),
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def _device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu ({torch.get_num_threads()} threads)"
    )


def _versions() -> dict[str, str]:
    return {"robust": robust.__version__, "torch": torch.__version__, "python": platform.python_version()}
