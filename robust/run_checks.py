"""The checks that search, once a run's attacks are done. Their findings and cost go into the run."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor

from robust import diagnose
from robust.attacks import Attack, Square
from robust.failures import out_of_memory
from robust.oracle import Oracle
from robust.rng import Streams
from robust.run import WAVE, Run
from robust.suites import Stage
from robust.target import in_parts
from robust.verdicts import SURVIVED

_BOX_ROWS: Final = 8  # fewer say nothing about the box
_SECOND: Final = Square(queries=48, proposals=4)
_ASKED, _ASKED_SHARE = 16, 0.25  # survivors of the whole at least, and up to this share of it
_OF_PASSES: Final = 0.05  # of those spent on a survivor, what asking may cost beyond that, on average
_NEARER: Final = 0.1  # of the clean margin
_APPROACHED: Final = 2.0  # radii
_FLAT: Final = 0.95  # of the clean margin
_SHRUNK: Final = 0.15  # of the farthest clean gap
_SHRUNK_FEW, _FEW_CLASSES = 0.05, 4  # of so few all may honestly come near
# Cosine of successive gradients, in linf: in the other norms those of honest nets agree as little.
_ALIKE: Final = 0.5
_AHEAD: Final = 0.15  # of the clean margin, by which searches inside are ahead
_OF_FEATURES: Final = 4  # at most: of more, random points are not all over the threat
_SAMPLED: Final = 128  # of the whole, about
_FLAT_NORMS: Final = ("linf", "l2", "l1")  # in which there are ascents


def after_attacks(run: Run, stages: Sequence[Stage], *, whole: bool, first: bool, full: bool) -> int:
    """All of them, as far as they concern this run.

    Args:
        whole: every stage has passed over its samples.
        first: it is the run that begins the samples: it looks at the model as a whole, last.
        full: also with the checks that search at length.

    Returns:
        How many findings it had before the model as a whole was looked at.
    """
    if whole:
        second_opinion(run, stages)
    found = len(run.findings)
    if first:
        look_again(run)
    if whole:
        random_points(run, stages)
    if first:
        probe(run, stages, full=full)
    return found


def probe(run: Run, stages: Sequence[Stage], *, full: bool) -> None:
    """Look closer at few samples: by the brief checks, or by all where asked for."""
    full = full and run.threat.family is None  # they search norm balls
    few = diagnose.PROBED if full else min(diagnose.PREFLIGHT_SAMPLES, len(run.whole) // 8)
    rows = _first_correct(run, few)
    if len(rows) < (1 if full else _BOX_ROWS) or not run.differentiable:
        return
    start = time.perf_counter()
    mine = rows[rows < len(run.samples)]
    survived = torch.zeros(len(rows), dtype=torch.bool)
    survived[: len(mine)] = run.verdicts.status[mine] == SURVIVED
    subject = diagnose.Subject(
        run.target.searcher(), run.threat, *run.load(rows, run.whole), survived.to(run.target.device),
        [stage.attack for stage in stages], run.micro_batch, run.settings.seed,
    )  # fmt: skip

    def ask(check: Callable[[diagnose.Subject], diagnose.Finding | None]) -> None:
        subject.micro_batch = run.micro_batch
        found = check(subject)
        run.findings += [found] if found else []

    probes = diagnose.FULL if full else diagnose.BRIEF
    for done, check in enumerate(probes):
        run.tell("checks", done, len(probes))
        _without_crashing(run, check.__name__, partial(ask, check))
    run.tell("checks", len(probes), len(probes))
    run.checks |= subject.figures
    run.checks["forwards"] += subject.forwards
    run.checks["backwards"] += subject.backwards
    run.checks["seconds"] += time.perf_counter() - start


def look_again(run: Run) -> None:
    """Is the model still what it was before the attacks?"""
    _without_crashing(run, "look_again", run.look_again)


def second_opinion(run: Run, stages: Sequence[Stage]) -> None:
    """Do margins tell of boundaries that are near, and does random search on a few survivors come nearer than all gradients?

    Who is asked depends on the sample and the size of the whole alone: above all what much was spent on in vain.
    `diagnose.review` judges the counts.
    """
    ascents = [stage.attack for stage in stages if _ascends(stage.attack)]
    random = any(found.check == "randomized" for found in run.findings)
    if not ascents or random or run.threat.norm not in _FLAT_NORMS or not run.differentiable:
        return
    _count_margins(run, stages)
    if run.threat.norm not in _SECOND.norms or not any(attack.stays_inside for attack in ascents):
        return
    start = time.perf_counter()
    for part in in_parts(_doubtful(run), WAVE * run.micro_batch):
        if not _without_crashing(run, "second_opinion", partial(_search_blindly, run, part)):
            break
    run.checks["seconds"] += time.perf_counter() - start


def random_points(run: Run, stages: Sequence[Stage]) -> None:
    """Of few features: do random points of the threat, which are all over it, break what stands?"""
    changing = {diagnose.RANDOMIZED.name, diagnose.STATEFUL.name} & {found.check for found in run.findings}
    few = run.samples.x.shape[1:].numel() <= _OF_FEATURES
    ascents = any(_ascends(stage.attack) for stage in stages)
    if few and ascents and not changing and run.threat.norm in _FLAT_NORMS and run.differentiable:
        start = time.perf_counter()
        _without_crashing(run, "random_points", partial(_try_random_points, run))
        run.checks["seconds"] += time.perf_counter() - start


def _try_random_points(run: Run) -> None:
    """Counts what they break.

    Whose are drawn depends on the sample and the size of the whole alone. `diagnose.review` and `spared` judge the counts.
    """
    draw = Streams(run.settings.seed, run.samples.ids, ("random points",)).uniform((1,)).squeeze(1)
    drawn = (run.verdicts.status == SURVIVED) & (draw < _SAMPLED / len(run.whole))
    sampled = reached = 0
    for rows in in_parts(drawn.nonzero().squeeze(1), run.micro_batch):
        broken = diagnose.broken_at_random(run.target, run.threat, *run.load(rows), seed=run.settings.seed)
        sampled, reached = sampled + len(rows), reached + int(broken.sum())
    run.checks["sampled"], run.checks["reached"] = sampled, reached
    run.checks["forwards"] += diagnose.NOISE_DRAWS * sampled * run.target.draws


def _count_margins(run: Run, stages: Sequence[Stage]) -> None:
    """Survivors whose logits shrank; those broken near by, and those of them whose margin tells nothing of it.

    Of all samples that the first ascent left, those whose gradients turned from step to step; of survivors that were seen
    broken, those nearer by what searches inside show.
    """
    known, survived = run.verdicts.known(run.threat.radius, run.bend), run.verdicts.status == SURVIVED
    approached = survived & (known.distance <= _APPROACHED)
    most = _SHRUNK_FEW if run.verdicts.gaps.shape[1] <= _FEW_CLASSES else _SHRUNK
    run.checks["standing"] += int(survived.sum())
    run.checks["shrunk"] += int((survived & (known.farthest < most)).sum())
    run.checks["approached"] += int(approached.sum())
    run.checks["flat"] += int((approached & (known.share > _FLAT)).sum())
    if run.threat.norm == "l2" and any(stage.ahead is not None for stage in stages):  # has searches that tell
        seen = survived & known.distance.isfinite()
        run.checks["seen"] += int(seen.sum())
        run.checks["ahead"] += int((seen & (known.behind < -_AHEAD)).sum())
    if run.threat.norm == "linf":
        run.checks["ascended"] += int((~known.agreement.isnan()).sum())
        run.checks["turned"] += int((known.agreement < _ALIKE).sum())


def _ascends(attack: Attack) -> bool:
    """Whether it is an ascent of some length."""
    return attack.access == "gradient" and attack.ascends and getattr(attack, "steps", 0) >= 10


def _doubtful(run: Run) -> Tensor:
    """Positions of the survivors that random search is asked about."""
    draw = Streams(run.settings.seed, run.samples.ids, ("second opinion",)).uniform((1,)).squeeze(1)
    passes = (run.verdicts.forwards + run.verdicts.backwards) / run.target.draws
    share = (passes * (_OF_PASSES / _SECOND.queries)).clamp_min(min(_ASKED_SHARE, _ASKED / len(run.whole)))
    return ((run.verdicts.status == SURVIVED) & (draw < share)).nonzero().squeeze(1)


def _search_blindly(run: Run, rows: Tensor) -> None:
    oracle = Oracle(
        run.search, *run.load(rows), run.threat, seed=run.settings.seed, purpose="second opinion",
        access=_SECOND.access, micro_batch=run.micro_batch, judge=None if run.search is run.target else run.judge,
    )  # fmt: skip
    _SECOND(oracle)
    gain = oracle.ledger.margin.cpu() - run.verdicts.margin[rows]
    run.checks["asked"] += len(rows)
    run.checks["nearer"] += int((gain > _NEARER * -run.verdicts.clean_margin[rows]).sum())
    run.checks["crossed"] += int(oracle.ledger.broken.sum())
    run.checks["forwards"] += int(oracle.ledger.forwards.sum())


@torch.no_grad()
def _first_correct(run: Run, count: int) -> Tensor:
    """Positions of the first `count` correctly classified samples of the whole."""
    if run.whole is run.samples:
        return (run.verdicts.prediction == run.samples.y).nonzero().squeeze(1)[:count]
    found = torch.empty(0, dtype=torch.int64)
    for rows in torch.arange(len(run.whole)).split(run.micro_batch):
        if len(found) >= count:
            break
        x, y, _ = run.load(rows, run.whole)
        found = torch.cat([found, rows[(run.target.logits(x).argmax(1) == y).cpu()]])
    return found[:count]


def _without_crashing(run: Run, check: str, ask: Callable[[], None]) -> bool:
    """Whether it could be asked: a check must not lose the verdicts. Where memory is short, in smaller batches."""
    try:
        ask()
    except Exception as error:
        if not out_of_memory(error) or run.micro_batch == 1:
            run.note_failure(check, f"crashed:\n{traceback.format_exc()}")
            run.find(diagnose.CRASH, f"the check {check} crashed")
            return False
    else:
        return True
    run.micro_batch //= 2
    return _without_crashing(run, check, ask)
