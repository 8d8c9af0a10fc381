"""What the checks that watch a run measure of honest models: what their thresholds are chosen by.

    python benchmarks/signals.py [--limit 128] [--results NAME] --case MODEL,WEIGHTS,DATA,THREAT [--case ...]

Of `standard`: samples that stand though every class came within a small share of the farthest (`shrinking-logits` is told from 5 %
of those classified correctly on); samples whose gradients turned, of those that a first ascent left (`turning-gradients`, over
half, in linf); of survivors seen broken outside those that searches inside are far ahead of (the same, over a fifth, in l2); what
small steps broke of those that they were shown (the same, 5 %, at least 3); what searches broke that follow no other class, of those
that they were shown (`hidden-boundary`, the same); the share of the points of an ascent where
the margin does not rise along its gradient (`masked-ascent`, over 10 %; "-" where too few stand), and the cosine of the slopes around
its end and those that gradients say (the same, under 0.9); survivors whose margin tells
nothing of a boundary that is near (`flat-margins`, over half of 5 and more); survivors that random search brought nearer, of those
asked about (`black-box-wins`, from a tenth on, at least 2). And what is told.
"""

from __future__ import annotations

import argparse
from itertools import takewhile
from typing import Any

from verdict import case_of, write_figures

import robust
from robust.report import Report

_HEADS = (
    "model and threat", "stand", "shrunk", "turned", "ahead", "by small steps", "past classes", "no rise", "alike", "flat", "nearer", "told",
)  # fmt: skip


def measured(case: str, limit: int) -> list[str]:
    """The row of one case."""
    name, model, samples, threat = case_of(case, limit)
    report = robust.evaluate(model, samples, threat=threat, suite="standard", device="cpu")
    seen = report.checks
    return [
        f"{name} {threat}",
        f"{report.statuses['survived']} of {report.clean_correct}",
        f"{seen['shrunk']:.0f}",
        f"{seen['turned']:.0f} of {seen['ascended']:.0f}" if threat.norm == "linf" else "-",
        f"{seen['ahead']:.0f} of {seen['seen']:.0f}" if threat.norm == "l2" else "-",
        _by_small_steps(report),
        _past_classes(report),
        *(f"{seen[key]:.3f}" if key in seen else "-" for key in ("ascent_level", "ascent_alike")),
        f"{seen['flat']:.0f} of {seen['approached']:.0f}",
        f"{seen['nearer']:.0f} of {seen['asked']:.0f}",
        ", ".join(finding["check"] for finding in report.findings) or "-",
    ]


def _by_small_steps(report: Report) -> str:
    """What these broke of what they were shown."""
    turns = [entry["selection"].get("turning") is not None for entry in report.attacks]
    if True not in turns:
        return "-"
    first, *rest = report.attacks[turns.index(True) :]
    after = takewhile(lambda entry: entry["selection"].get("follows"), rest)
    return f"{first['broke'] + sum(entry['broke'] for entry in after)} of {first['attacked']}"


def _past_classes(report: Report) -> str:
    """What steps on the label's logit and searches from far out broke of what they were shown."""
    past = [entry for entry in report.attacks if _follows_no_class(entry)]
    return f"{sum(entry['broke'] for entry in past)} of {past[0]['attacked']}"


def _follows_no_class(entry: dict[str, Any]) -> bool:
    return entry["name"] == "outer-boundary" or entry["parameters"].get("loss") == "logit"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", required=True, metavar="MODEL,WEIGHTS,DATA,THREAT")
    parser.add_argument("--limit", type=int, default=128, metavar="N")
    parser.add_argument("--results", metavar="NAME")
    options = parser.parse_args()
    rows = [measured(case, options.limit) for case in options.case]
    command = f"signals.py --limit {options.limit}"
    write_figures("What checks that watch a run measure", _HEADS, rows, command, options.results)


if __name__ == "__main__":
    main()
