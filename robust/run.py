"""One evaluation: the model is looked at, the samples are classified and attacked, what attacks claim is judged."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import pandas as pd
import torch
from torch import Tensor

from robust import diagnose, engine, memory
from robust.attacks import Attack
from robust.audit import Audit, audit_twice
from robust.breaks import Breaks
from robust.diagnose import Check, Finding
from robust.entries import new_entry
from robust.errors import RobustError, told
from robust.failures import out_of_memory
from robust.ledger import Ledger, Prior
from robust.oracle import Oracle
from robust.rng import Streams
from robust.selection import meets
from robust.sources import Samples
from robust.sources.spool import Kept
from robust.suites import Stage
from robust.target import Target, in_parts
from robust.threat import Threat
from robust.timing import pick_micro_batch
from robust.verdicts import BROKEN, SURVIVED, Verdicts

Precision = Literal["auto", "float32", "bfloat16"]
# Micro-batches of rows an attack works on at once, so that its passes stay full as rows leave.
WAVE: Final = 4
_ROSE: Final = (
    1e-4  # of the margin before: what rises by less may have been rounded otherwise in another batch
)
_LONG: Final = 500  # queries from which a search shows its progress within a wave
_TELL_EVERY: Final = 0.2  # seconds


@dataclass(frozen=True)
class Progress:
    """Where an evaluation stands."""

    stage: str  # label of the attack, or "clean"
    done: int  # samples of this stage
    total: int
    surviving: int  # samples that nothing has broken yet
    n: int


@dataclass(frozen=True)
class Settings:
    """How to run, as `evaluate` was told."""

    seed: int = 0
    micro_batch: int | None = None  # None: by measurement
    precision: Precision = "auto"
    keep_examples: bool = False
    progress: Callable[[Progress], None] | None = None
    minimize: bool = False  # search each sample's nearest adversarial point, in or out of the threat


@dataclass(frozen=True)
class _Judged:
    """What an audit said of N claims."""

    rows: Tensor  # positions of their samples, (N,)
    points: Tensor  # that it is of, (N, ...)
    found: Audit
    inside: Tensor  # adversarial inside the threat, (N,) bool
    claimed: Tensor  # by the search to be so, (N,) bool


@dataclass(frozen=True)
class _Wave:
    """What an attack of N rows came to, judged and not yet written down."""

    rows: Tensor  # their positions, (N,)
    ledger: Ledger
    told: Tensor  # misclassified inside the threat in an earlier search, (N,) bool
    judged: Sequence[_Judged]


class Run:
    """One evaluation: first looks at the model, then attacks in waves whose claims are judged.

    Args:
        whole: the samples that `samples` are a part of: what is checked of the model is checked on the
            first of them, so that every part comes to the same. None: `samples` are all there are.
        near: an adversarial point beyond the threat of every sample, (n, ...), for searches to begin at.
        stages: that it will be told to attack with, in a cascade: what they begin at is kept.
    """

    def __init__(
        self,
        target: Target,
        samples: Samples,
        threat: Threat,
        settings: Settings,
        whole: Samples | None = None,
        near: Tensor | None = None,
        stages: Sequence[Stage] = (),
    ) -> None:
        self.target, self.samples, self.threat, self.settings = target, samples, threat, settings
        self.whole = samples if whole is None else whole
        self.near = near
        self.search, self.engine = target.searcher(), engine.PLAIN
        self.judge = target  # of what a faster copy claims, while an attack goes on
        self.entries: list[dict[str, Any]] = []
        self.findings: list[Finding] = []
        self.since: dict[str, int] = {}  # check -> attacks that were done when it fired
        self.failures: list[str] = []
        self.checks: dict[str, float] = {
            "forwards": 0,
            "backwards": 0,
            "seconds": 0.0,
            "asked": 0,
            "nearer": 0,
            "crossed": 0,
            "approached": 0,
            "standing": 0,
            "shrunk": 0,
            "flat": 0,
            "ascended": 0,
            "turned": 0,
            "seen": 0,
            "ahead": 0,
            "sampled": 0,
            "reached": 0,
        }
        self.verdicts = Verdicts(len(samples))
        self._breaks = Breaks.wanted_by(stages, samples)
        self.correct = 0
        self.interrupted = False
        self._from_caller: Exception | None = None  # what the function that shows progress raised
        self._examples = Kept("adversarial examples")
        self.micro_batch = settings.micro_batch or 0
        self.differentiable, self.drift, self.bend = True, 0.0, 1.0
        self._few_logits: Tensor | None = None
        self._held = memory.give_back(0)  # bytes that the process holds, without what waits to be used again

    # -- before the attacks ---------------------------------------------------------------------

    def look(self, known: Run | None = None) -> None:
        """Check the model, choose the micro-batch, classify the clean samples.

        `known` is a run of another part of the same whole: what it learnt of the model stays learnt.
        """
        if known is None:
            self._examine()
        else:
            self.differentiable, self.search, self.engine = known.differentiable, known.search, known.engine
            self.judge, self.drift, self.bend = known.judge, known.drift, known.bend
            if known.micro_batch < len(known.samples):
                self.micro_batch = known.micro_batch
        if not self.micro_batch:
            self.micro_batch = pick_micro_batch(
                self.search,
                lambda size: self.load(torch.arange(size) % len(self.samples))[0],
                len(self.samples),
            )
        self._classify()

    def _examine(self) -> None:
        start = time.perf_counter()
        seen, x, y = self._look_at_few(min(diagnose.PREFLIGHT_SAMPLES, len(self.whole)))
        self.findings += seen.findings
        if seen.probabilities:
            self.target.take_for_probabilities()
        self.differentiable, self.drift, self.bend = seen.differentiable, seen.drift, seen.bend
        self._few_logits = None if seen.probabilities else seen.logits
        self.checks |= {
            "forwards": seen.forwards,
            "backwards": seen.backwards,
            "seconds": time.perf_counter() - start,
        }
        self._choose_engine(x, y)
        if seen.blocked:
            self.search = engine.inward(self.search)
            self.engine = "inward" if self.engine == engine.PLAIN else f"{self.engine}, inward"

    def _look_at_few(self, few: int) -> tuple[diagnose.Preflight, Tensor, Tensor]:
        """What preflight says of the first samples of the whole, and these: fewer where memory is short."""
        x, y, _ = self.load(torch.arange(few), self.whole)
        try:
            highest = int(self.whole.y.max())
            return diagnose.preflight(self.target, x, y, self.threat, highest=highest), x, y
        except Exception as error:
            if not out_of_memory(error) or few == 1:
                raise
        return self._look_at_few(few // 2)

    def _choose_engine(self, x: Tensor, y: Tensor) -> None:
        """The copy of the model to search with, where one is asked for or wins."""
        if self.target.device.type == "cpu":
            memory.keep_freed_memory()
        if self.settings.precision == "bfloat16" and self.differentiable:
            self.search, self.engine = engine.half(self.search, x, y), "bfloat16"
        elif self.settings.precision == "auto" and self.differentiable and not self.findings:
            self.search, self.engine = engine.fastest(self.search, x, y, len(self.whole))
            if self.search.replay is not None and self.target.draws == 1:
                self.judge = engine.recorded(self.target, x)

    @torch.no_grad()
    def _classify(self) -> None:
        done = 0
        while done < len(self.samples):
            rows = torch.arange(done, min(done + self.micro_batch, len(self.samples)))
            x, y, _ = self.load(rows)
            try:
                logits = self.target.logits(x)
            except Exception as error:
                if not out_of_memory(error) or self.micro_batch == 1:
                    raise
                self.micro_batch //= 2
                continue
            if not done:
                self._compare_with_few(logits)
            self.verdicts.classify(rows, y, logits)
            done += len(rows)
            self.tell("clean", done, len(self.samples))
        self.verdicts.begin()
        self.verdicts.forwards += self.target.draws
        self.correct = self.verdicts.standing
        if errors := self.verdicts.errors:
            self.note_failure("clean", f"non-finite logits on {errors} clean samples")
            self.find(diagnose.NON_FINITE, "NaN or infinity on clean samples")

    def _compare_with_few(self, logits: Tensor) -> None:
        """Hold the first samples' logits, in a batch of the run's own size, against those that preflight saw."""
        if self._few_logits is None or self.samples.ids[0] != self.whole.ids[0]:
            return
        both = min(len(logits), len(self._few_logits))
        found = diagnose.in_company(self.target, logits[:both], self._few_logits[:both])
        if found and not self._found(diagnose.BATCH_DEPENDENT):
            self.findings.append(found)

    @torch.no_grad()
    def look_again(self) -> None:
        """After the attacks: is the model still what it was when it was first asked about the first samples of the whole?"""
        before = None if self.target.draws > 1 else self._few_logits
        if before is None or any(map(self._found, (diagnose.RANDOMIZED, diagnose.BATCH_DEPENDENT))):
            return
        parts = in_parts(torch.arange(len(before)), self.micro_batch)
        after = torch.cat([self.target.logits(self.load(rows, self.whole)[0]) for rows in parts])
        self.checks["forwards"] += len(before)
        found = diagnose.afterwards(self.target, after, before)
        if found:
            self.findings.append(found)

    # -- attacks --------------------------------------------------------------------------------

    def attack(self, stage: Stage, *, cascade: bool) -> None:
        """Run a stage of the suite over the samples that it is to see, nearest to the boundary first.

        Ctrl-C ends it early: `interrupted` says so, and its entry has what was done until then.
        """
        attack, v = stage.attack, self.verdicts
        rows = self._chosen(stage, cascade=cascade).nonzero().squeeze(1)
        if not self._can_do_anything(attack):
            rows = rows[:0]
        rows = rows[v.margin[rows].argsort(descending=True, stable=True)]
        before, reach, passes = v.margin, v.reach.clone(), v.forwards + v.backwards
        entry, start = new_entry(stage, len(rows)), time.perf_counter()
        try:
            self._attack_in_waves(attack, rows, entry, cascade=cascade)
            v.rose, v.closer = v.margin - before > _ROSE * before.abs(), v.reach < reach
            if attack.minimum_norm:
                v.spent = v.spent.maximum((v.forwards + v.backwards - passes) // self.target.draws)
        finally:  # verdicts name the attack by the number of its entry
            entry["survived"] = max(0, len(rows) - entry["broke"] - entry["errors"])
            entry["seconds"] = time.perf_counter() - start
            self.entries.append(entry)

    def _attack_in_waves(self, attack: Attack, rows: Tensor, entry: dict[str, Any], *, cascade: bool) -> None:
        done, told_of, most = 0, 0, len(rows)  # told_of: broken or in error, in the waves that are done
        crashes: list[str] = []
        try:
            while done < len(rows):
                wave = rows[done : done + min(most, self._wave(attack, len(rows) - done))]
                try:
                    tick = self._watch(attack, done, len(wave), len(rows))
                    found = self._attack_wave(attack, wave, tick, cascade=cascade)
                except Exception as error:
                    if error is self._from_caller:
                        raise
                    if isinstance(error, RobustError) and not (done or self.entries):
                        raise  # nothing was found yet that it could lose
                    if out_of_memory(error) and self.micro_batch > 1:
                        self.micro_batch //= 2
                        continue
                    if len(wave) > 1:  # whose crash it is they tell alone: it must not lose the others
                        most = len(wave) // 2
                        continue
                    crashes.append(f"{told(error)}\n{traceback.format_exc()}")
                    self.verdicts.fail(wave)
                    entry["errors"] += 1
                else:  # what fails here is no crash of the attack, and a second try would count twice
                    self._write(attack, found, entry)
                    most *= 2
                if self.interrupted:
                    break
                done, told_of = done + len(wave), entry["broke"] + entry["errors"]
                self._held = memory.give_back(self._held)
                self.tell(attack.label, done, len(rows))
        except KeyboardInterrupt:  # outside the attack itself
            self.interrupted = True
        if self.interrupted:
            entry["errors"] += len(rows) - done - (entry["broke"] + entry["errors"] - told_of)
        if crashes:
            self.note_failure(attack.label, f"crashed on {len(crashes)} samples: {crashes[0]}")
            self.find(diagnose.CRASH, f"{attack.label} crashed")

    def _wave(self, attack: Attack, left: int) -> int:
        """Rows to attack at once: as many as fill some micro-batches, in waves of about equal size."""
        most = WAVE * self.micro_batch
        most = min(most, attack.at_once or most)
        return -(-left // -(-left // most))

    def _can_do_anything(self, attack: Attack) -> bool:
        """Whether the model has the gradients and the classes that an attack takes."""
        gradients = self.differentiable or attack.access != "gradient"
        return gradients and self.verdicts.gaps.shape[1] >= attack.least_classes

    def _chosen(self, stage: Stage, *, cascade: bool) -> Tensor:
        """The samples that a stage is to see: (n,) bool."""
        status, again = self.verdicts.status, self.settings.minimize or not cascade
        eligible = (status == SURVIVED) | ((status == BROKEN) & again)
        return eligible & meets(stage, self.verdicts.known(self.threat.radius, self.bend), self._draw)

    def _draw(self) -> Tensor:
        """A random number in [0, 1) of each sample, whatever else is in the data: (n,)."""
        return Streams(self.settings.seed, self.samples.ids, ("probe",)).uniform((1,)).squeeze(1)

    def _watch(self, attack: Attack, done: int, wave: int, total: int) -> Callable[[int], None] | None:
        """What shows progress within a wave of a long search that states its queries."""
        queries = getattr(attack, "queries", 0)
        if not self.settings.progress or queries < _LONG:
            return None
        told = time.monotonic()

        def tick(spent: int) -> None:
            nonlocal told
            if time.monotonic() - told > _TELL_EVERY:
                told = time.monotonic()
                self.tell(attack.label, done + wave * min(spent, queries) // queries, total)

        return tick

    def forget_breaks(self) -> None:
        """After the last attack: let go of where searches begin."""
        self._breaks = None

    def stop(self) -> None:
        """After an interruption: samples that the whole suite did not pass over have no verdict."""
        text = f"{self.verdicts.standing} samples were not attacked to the end"
        self.verdicts.fail(torch.arange(len(self.samples)))
        self.note_failure("interrupted", text)
        self.find(diagnose.INTERRUPTED, text)

    def stop_checks(self) -> None:
        """After an interruption when all attacks were done: the verdicts stand, but not all was checked that should be."""
        self.interrupted = True
        self.note_failure("interrupted", "the verdicts are all there, the last checks are not")
        self.find(diagnose.INTERRUPTED, "the last checks were not made")

    def _attack_wave(
        self, attack: Attack, rows: Tensor, tick: Callable[[int], None] | None, *, cascade: bool
    ) -> _Wave:
        """Attack rows and judge what is claimed. Nothing is noted yet but passes that led to nothing."""
        x, y, ids = self.load(rows)
        v = self.verdicts
        known = (v.gaps if cascade else v.clean_gaps)[rows]  # alone, an attack starts from nothing
        near = self._near_of(attack, rows, x, cascade=cascade)
        prior = Prior(known.to(x.device), v.clean_margin[rows].to(x.device), near, self.bend)
        oracle = Oracle(
            self.search, x, y, ids, self.threat,
            seed=self.settings.seed, purpose=attack.label, access=attack.access, micro_batch=self.micro_batch,
            judge=None if self.search is self.target else self.judge,
            prior=prior, stays_inside=attack.stays_inside, minimize=self.settings.minimize, tick=tick,
        )  # fmt: skip
        told = oracle.ledger.margin > 0  # by an earlier attack, where all go on after a break
        try:
            self._search(attack, oracle)
            return _Wave(rows, oracle.ledger, told, self._judge(rows, oracle.ledger))
        except BaseException:  # Ctrl-C, or its rows are attacked again, fewer at a time
            self.checks["forwards"] += int(oracle.ledger.forwards.sum())
            self.checks["backwards"] += int(oracle.ledger.backwards.sum())
            raise

    def _write(self, attack: Attack, wave: _Wave, entry: dict[str, Any]) -> None:
        """Write down what an attack came to, once."""
        rows, ledger = wave.rows, wave.ledger
        entry["forwards"] += int(ledger.forwards.sum())
        entry["backwards"] += int(ledger.backwards.sum())
        self._settle(wave.judged, entry)
        self._keep_breaks(rows, ledger)
        self.verdicts.note(rows, ledger)
        stuck = int((ledger.stuck & ~ledger.broken).sum())
        if stuck:
            entry["unstarted"] += stuck
            self.find(diagnose.NO_START, f"{attack.label} found nowhere to begin")
        if not self.target.randomized:  # there the judge's draws are others than the search's, and more
            entry["silent"] += int(((ledger.margin > 0) & ~wave.told & ~ledger.broken & ~ledger.failed).sum())
        failed = (ledger.failed & ~ledger.broken).cpu()
        if bool(failed.any()):
            self.verdicts.fail(rows[failed])
            entry["errors"] += int(failed.sum())
            self._tell_non_finite(attack.label, int(failed.sum()), int(ledger.strayed.cpu()[failed].sum()))

    def _tell_non_finite(self, label: str, failed: int, strayed: int) -> None:
        """Note that so many samples failed, and on so many of them an attack itself went to NaN or infinity."""
        if strayed:
            self.note_failure(label, f"asked about points that are NaN or infinite on {strayed} samples")
        if failed > strayed:
            self.note_failure(label, f"non-finite logits on {failed - strayed} samples")
        own = f"{label} asked about points that are NaN or infinite"
        self.find(diagnose.NON_FINITE, own if failed == strayed else f"NaN or infinity under {label}")

    def _search(self, attack: Attack, oracle: Oracle) -> None:
        try:
            attack(oracle)
        except KeyboardInterrupt:  # what was found is kept
            self.interrupted = True

    def _near_of(self, attack: Attack, rows: Tensor, x: Tensor, *, cascade: bool) -> Tensor | None:
        """Where a search of these rows begins that begins at an adversarial point beyond the threat: (N, ...) or None."""
        if self.near is not None:
            return self.near[rows].to(x.device)
        if self._breaks is None or not (cascade and attack.begins_at_break):
            return None
        return self._breaks.of(rows, x)

    def _keep_breaks(self, rows: Tensor, ledger: Ledger) -> None:
        """Keep where the nearest adversarial points were, if a stage will begin there."""
        if self._breaks is None:
            return
        v, distance = self.verdicts, ledger.distance.cpu()
        nearer = ((distance < v.reach[rows]) & (v.status[rows] == SURVIVED)).nonzero().squeeze(1)
        self._breaks.note(rows[nearer], distance[nearer] / self.threat.radius, ledger.x_adv, nearer)

    def _judge(self, rows: Tensor, ledger: Ledger) -> list[_Judged]:
        """Re-measure the claims on the plain model.

        Clean samples and labels are read anew: an attack may have written into those that it was shown.
        """
        minimize = self.settings.minimize
        ball = self.threat.family is None
        anywhere = replace(self.threat, eps="1e9") if minimize and ball else self.threat
        claims = (ledger.distance.isfinite() if minimize else ledger.broken).nonzero().squeeze(1)
        judged = []
        for part in in_parts(claims, self.micro_batch):
            where = rows[part.cpu()]
            x, y, _ = self.load(where)
            found, points = self._audited(ledger.x_adv[part], x, y, anywhere if minimize else self.threat)
            inside = found.valid.cpu()
            if minimize:
                inside = inside & self.threat.contains(points.double(), x.double()).cpu()
            judged.append(_Judged(where, points, found, inside, ledger.broken[part].cpu()))
        return judged

    def _settle(self, judged: Sequence[_Judged], entry: dict[str, Any]) -> None:
        """Write the verdicts, and the passes that judging took."""
        for one in judged:
            self.verdicts.forwards[one.rows] += self.target.draws
            entry["forwards"] += len(one.rows) * self.target.draws
            entry["broke"] += int(one.inside.sum())
            entry["rejected"] += int((~one.inside & one.claimed).sum())
            fresh = self.verdicts.settle(
                one.rows, one.found, one.inside, len(self.entries), minimize=self.settings.minimize
            )
            if self.settings.keep_examples:
                self._examples.add(one.rows[fresh], one.points.cpu()[fresh])

    def _audited(self, points: Tensor, x: Tensor, y: Tensor, threat: Threat) -> tuple[Audit, Tensor]:
        """`audit`, and once more for what it denies by rounding; Ctrl-C waits for it."""
        try:
            return audit_twice(self.target, points, x, y, threat, drift=self.drift)
        except KeyboardInterrupt:
            self.interrupted = True
            return audit_twice(self.target, points, x, y, threat, drift=self.drift)

    # -- helpers --------------------------------------------------------------------------------

    def load(self, rows: Tensor, source: Samples | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x in the threat's box, y and ids of samples at these positions, on the model's device."""
        device, source = self.target.device, source or self.samples
        x = source.rows(rows).to(device)
        return x.clamp(*self.threat.bounds), source.y[rows].to(device), source.ids[rows].to(device)

    def note_failure(self, stage: str, text: str) -> None:
        """Note for the report what went wrong."""
        self.failures.append(f"{stage}: {text}")

    def find(self, check: Check, seen: str) -> None:
        """Note that a check fired, once."""
        if not self._found(check):
            self.since[check.name] = len(self.entries)
            self.findings.append(check.finding(seen))

    def _found(self, check: Check) -> bool:
        return check.name in {finding.check for finding in self.findings}

    def tell(self, stage: str, done: int, total: int) -> None:
        """Show progress. What the caller's function raises is not taken for the failure of an attack."""
        if not self.settings.progress:
            return
        try:
            self.settings.progress(Progress(stage, done, total, self.verdicts.standing, len(self.samples)))
        except Exception as error:
            self._from_caller = error
            raise

    def table(self) -> pd.DataFrame:
        """The verdicts; see Report."""
        return self.verdicts.table(self.samples, [entry["label"] for entry in self.entries])

    def examples(self) -> dict[str, Tensor]:
        """sample_id and x_adv of the broken samples, in sample order."""
        rows, points = self._examples.finish(tuple(self.samples.x.shape[1:]))
        return {"sample_id": self.samples.ids[rows], "x_adv": points}
