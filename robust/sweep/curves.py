"""Robust accuracy over many radii of one norm, for one to two and a half times the dearest of them.

An adversarial example within a radius lies within every larger one: breaks carry upward. And who stands
at a radius is asked nothing at smaller ones. So a short minimum-norm attack first places every sample, then
the suite goes from the largest radius to the smallest, each time over the samples that fell at the radius
before and are not known to fall at this one: every sample pays for one survival, at its hardest radius. Searches
begin at the break of the radius before, moved into the ball, and are fewer for that (`resolve_below`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pandas as pd
import torch
from torch import Tensor

from robust.attacks import Attack, make_attack
from robust.audit import audit
from robust.diagnose import NON_FINITE, Finding
from robust.failures import naming_failures
from robust.oracle import Oracle
from robust.parts import Plan, attack_part
from robust.run import Progress, Settings
from robust.sources import Samples
from robust.stats import interval
from robust.suites import Stage, resolve, resolve_below
from robust.target import Target, in_parts
from robust.threat import Threat

_PLACER: Final = {
    "name": "fmn",
    "steps": 3,
    "step_size": 2.0,
    "targets": 0,
}  # more steps cost more than they save


@dataclass
class CurvePart:
    """What was found of the samples at `rows`.

    Attributes:
        table: a row per sample: sample_id, label, prediction (-1: logits that are no numbers), falls_at (index of the smallest radius at
            which it is broken, their number if none, -1 where misclassified, -2 where it ended in an
            error), distance (of the nearest audited adversarial example, NaN where none), forwards,
            backwards.
    """

    rows: tuple[int, int]
    table: pd.DataFrame
    findings: list[Finding]
    model: dict[str, Any]
    device: str
    seconds: float
    failures: list[str]


def attack_curve(
    target: Target,
    samples: Samples,
    threats: Sequence[Threat],
    suite: Any,
    settings: Settings,
    rows: range,
) -> CurvePart:
    """Find the smallest radius at which each sample falls.

    Args:
        threats: of one norm, by growing radius.
        suite: as for `robust.evaluate`.
        rows: positions of the samples to attack.
    """
    start = time.perf_counter()
    run = _Curve(target, samples.take(slice(rows.start, rows.stop)), threats, settings)
    with target:
        run.place()
        for index in reversed(range(len(threats))):
            run.descend(index, suite)
    return CurvePart(
        rows=(rows.start, rows.stop),
        table=run.table(),
        findings=run.findings,
        model=run.model,
        device=run.device,
        seconds=time.perf_counter() - start,
        failures=run.failures,
    )


class _Curve:
    """The radii at which samples fall, while they are found. Tensors live on the CPU."""

    def __init__(
        self, target: Target, samples: Samples, threats: Sequence[Threat], settings: Settings
    ) -> None:
        n, self.top = len(samples), len(threats)
        self.target, self.samples, self.threats, self.settings = target, samples, threats, settings
        self.rows = settings.micro_batch or 128
        self.falls_at = torch.full((n,), self.top)
        self.stands_at = torch.full((n,), -1)  # largest index at which it stood
        self.prediction = torch.zeros(n, dtype=torch.int64)
        self.distance = torch.full((n,), torch.inf, dtype=torch.float64)
        self.forwards = torch.zeros(n, dtype=torch.int64)
        self.backwards = torch.zeros(n, dtype=torch.int64)
        self.near = torch.empty(n, *samples.x.shape[1:])  # the nearest adversarial example of who has fallen
        self.findings: list[Finding] = []
        self.failures: list[str] = []
        self.model: dict[str, Any] = {}
        self.device = ""

    def place(self) -> None:
        """Classify the clean samples, and see with few steps how near their boundary is."""
        attack = make_attack(dict(_PLACER))
        for part in torch.arange(len(self.samples)).split(4 * self.rows):
            x, y, ids = self._load(part)
            with torch.no_grad(), naming_failures():
                logits = [self.target.logits(x[some]) for some in torch.arange(len(x)).split(self.rows)]
            self.forwards[part] += 1
            right = self._classify(part, torch.cat(logits).cpu())
            if len(right):
                here = right.to(x.device)
                self._place(attack, part[right], x[here], y[here], ids[here])
            if self.settings.progress:
                done, n = int(part[-1]) + 1, len(self.samples)
                self.settings.progress(
                    Progress("placing", done, n, int((self.falls_at == self.top).sum()), n)
                )

    def _classify(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Take in the logits, (N, C), of the clean samples at these rows; positions in them of those that are right."""
        finite = logits.isfinite().all(1)
        self.prediction[rows] = logits.argmax(1).where(finite, -1)
        right = self.prediction[rows] == self.samples.y[rows]
        self.falls_at[rows[~right]] = -1
        self.falls_at[rows[~finite]] = -2
        lost = int((~finite).sum())
        if lost:
            self.failures.append(f"clean: non-finite logits on {lost} clean samples")
            self._find([NON_FINITE.finding("NaN or infinity on clean samples")])
        return right.nonzero().squeeze(1)

    def _find(self, findings: Sequence[Finding]) -> None:
        """Note each check that fired, once."""
        known = {finding.check for finding in self.findings}
        self.findings += [finding for finding in findings if finding.check not in known]

    def _place(self, attack: Attack, rows: Tensor, x: Tensor, y: Tensor, ids: Tensor) -> None:
        oracle = Oracle(
            self.target, x, y, ids, self.threats[-1],
            seed=self.settings.seed, purpose=f"curve/{attack.label}", access=attack.access,
            micro_batch=self.rows, minimize=True, stays_inside=attack.stays_inside,
        )  # fmt: skip
        attack(oracle)
        ledger = oracle.ledger
        self.forwards[rows] += ledger.forwards.cpu()
        self.backwards[rows] += ledger.backwards.cpu()
        for claims in in_parts(ledger.broken.nonzero().squeeze(1), self.rows):
            found = audit(self.target, ledger.x_adv[claims], x[claims], y[claims], self.threats[-1])
            where = rows[claims.cpu()]
            self.forwards[where] += 1
            valid = found.valid.cpu()
            self._fell(where[valid], found.distance.cpu()[valid], ledger.x_adv[claims].cpu()[valid])

    def descend(self, index: int, suite: Any) -> None:
        """Attack at one radius whoever is not known to stand or to fall there."""
        asked = ((self.falls_at > index) & (self.stands_at < index)).nonzero().squeeze(1)
        if not len(asked):
            return
        threat = self.threats[index]
        name, stages = resolve(suite, threat)
        # Below the largest radius whoever is asked has fallen at a larger one: that break is where to begin.
        shorter = None if index == self.top - 1 else stages_below(suite, threat)
        plan = Plan(threat, name, stages if shorter is None else shorter)
        part = attack_part(
            self.target, self.samples.take(asked), plan, replace(self.settings, keep_examples=True),
            near=None if shorter is None else self.near[asked],
        )  # fmt: skip
        table = part.verdicts
        self.forwards[asked] += torch.from_numpy(table["forwards"].to_numpy().copy())
        self.backwards[asked] += torch.from_numpy(table["backwards"].to_numpy().copy())
        statuses = list(table["status"])
        broken, distance = _where(statuses, "broken", asked, table["distance"].to_numpy())
        assert part.examples is not None
        self._fell(broken, distance, part.examples["x_adv"])
        self.stands_at[asked[[s == "survived" for s in statuses]]] = index
        self.falls_at[asked[[s == "error" for s in statuses]]] = -2
        self._find([finding for _, finding in part.findings])
        self.failures += [f"{threat}: {failure}" for failure in part.failures]
        self.model, self.device = part.model, part.device

    def _fell(self, rows: Tensor, distance: Tensor, x_adv: Tensor) -> None:
        """These rows have these adversarial examples at these distances."""
        nearer = distance < self.distance[rows]
        self.near[rows[nearer]] = x_adv[nearer]
        self.distance[rows] = self.distance[rows].fmin(distance)
        farthest = [threat.farthest() for threat in self.threats]
        index = torch.searchsorted(torch.tensor(farthest, dtype=torch.float64), distance)
        self.falls_at[rows] = self.falls_at[rows].minimum(index)

    def _load(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        device, bounds = self.target.device, self.threats[-1].bounds
        x = self.samples.rows(rows).to(device).clamp(*bounds)
        return x, self.samples.y[rows].to(device), self.samples.ids[rows].to(device)

    def table(self) -> pd.DataFrame:
        """See CurvePart."""
        return pd.DataFrame(
            {
                "sample_id": self.samples.ids.numpy(),
                "label": self.samples.y.numpy(),
                "prediction": self.prediction.numpy(),
                "falls_at": self.falls_at.numpy(),
                "distance": self.distance.masked_fill(self.distance.isinf(), torch.nan).numpy(),
                "forwards": self.forwards.numpy(),
                "backwards": self.backwards.numpy(),
            }
        )


def stages_below(suite: Any, threat: Threat) -> list[Stage] | None:
    """Stages of a suite below the largest radius; None where they are those of every radius.

    Those that nothing came near are not probed at random as well: whoever is asked here fell at the next radius.
    """
    stages = resolve_below(suite, threat)
    return None if stages is None else [replace(stage, share=0.0) for stage in stages]


def _where(statuses: list[str], status: str, rows: Tensor, distance: Any) -> tuple[Tensor, Tensor]:
    chosen = [i for i, s in enumerate(statuses) if s == status]
    return rows[chosen], torch.from_numpy(distance[chosen].astype("float64"))


def points(table: pd.DataFrame, threats: Sequence[Threat]) -> list[dict[str, Any]]:
    """Robust accuracy with its 95 % Wilson interval at every radius, from the tables of all parts."""
    falls, found = table["falls_at"], []
    for index, threat in enumerate(threats):
        k, n = int((falls > index).sum()), len(table)
        low, high = interval(k, n)
        found.append(
            {
                "eps": threat.eps,
                "radius": threat.radius,
                "k": k,
                "n": n,
                "value": k / n,
                "low": low,
                "high": high,
            }
        )
    return found
