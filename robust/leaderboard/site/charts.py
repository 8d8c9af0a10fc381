"""Inline drawings, as SVG with a text for those who cannot see it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from robust.leaderboard.derive import Confusion
from robust.leaderboard.layout import percent, plain
from robust.leaderboard.record import Record
from robust.leaderboard.schema import Group, Rate

_WIDTH = 400  # little more than a phone's, so that text stays legible there
_ROW = 38  # pixels that a bar takes with its label above
_CHARACTERS = 32  # of a label
_CHARACTER = 8  # pixels that one takes
MANY = 40  # classes or groups above which only some are drawn


def range_bar(value: float, low: float, high: float) -> Markup:
    """A rate in [0, 1] with its interval, small enough for a cell."""
    x, a, b = (round(90 * part, 1) for part in (value, low, high))
    return Markup(
        '<svg class="range" width="90" height="10" aria-hidden="true"><rect class="track" y="4" width="90" height="2"/>'
        f'<rect class="bar" x="{a}" y="3" width="{round(max(b - a, 0.5), 1)}" height="4" opacity=".45"/>'
        f'<circle class="dot" cx="{x}" cy="5" r="3.5"/></svg>'
    )


def group_bars(groups: Sequence[Group], worst: int | None = None) -> Markup:
    """Robust accuracy per group as bars with 95 % intervals, clean accuracy as a mark; of many the lowest."""
    if len(groups) > MANY:
        groups = sorted(groups, key=lambda group: group.robust.value)[:MANY]
    rows = [
        (f"{plain(group.name)} (worst)" if group.label is not None and group.label == worst else plain(group.name),
         group.robust.value, group.robust, group.clean.value, f"{percent(group.robust.value)} of {percent(group.clean.value)}")
        for group in groups
    ]  # fmt: skip
    return _bars(rows, "Robust accuracy per group, with its 95 % interval; clean accuracy as an orange line.")


def attack_bars(record: Record) -> Markup:
    """What each attack left standing, of all samples."""
    rows, cascade = [], record.suite.cascade
    for attack, standing in zip(record.attacks, record.standing, strict=True):
        if not attack.attacked:
            continue
        rate = Rate.of(standing, record.data.n)
        shown = f"broke {attack.broke}" if cascade else percent(rate.value)
        rows.append((plain(attack.label), rate.value, None if cascade else rate, None, shown))
    return _bars(
        rows,
        "Samples left standing after each attack." if cascade else "Robust accuracy under each attack alone.",
    )


def _bars(rows: Sequence[tuple[str, float, Rate | None, float | None, str]], title: str) -> Markup:
    """A horizontal bar per (label, value, rate or none, mark or none, text)."""
    parts = []
    for place, (label, value, rate, mark, text) in enumerate(rows):
        y = place * _ROW
        short, said = (
            escape(label if len(label) <= _CHARACTERS else f"{label[: _CHARACTERS - 1]}…"),
            escape(text),
        )
        parts.append(
            f'<g><title>{escape(label)}: {said}</title><text x="0" y="{y + 13}">{short}</text>'
            f'<text class="soft" x="{_WIDTH}" y="{y + 13}" text-anchor="end">{said}</text>'
            f'<rect class="track" y="{y + 19}" width="{_WIDTH}" height="12"/>'
            f'<rect class="bar" y="{y + 19}" width="{_WIDTH * value:.1f}" height="12"/>'
        )
        if mark is not None:
            parts.append(f'<path class="clean" d="M{min(_WIDTH * mark, _WIDTH - 1):.1f} {y + 17}v16"/>')
        if rate is not None:
            low, high = (_WIDTH * end for end in (rate.low, rate.high))
            parts.append(
                f'<path class="whisker" d="M{low:.1f} {y + 25}H{high:.1f}M{low:.1f} {y + 22}v6M{high:.1f} {y + 22}v6"/>'
            )
        parts.append("</g>")
    return _svg(title, max(len(rows), 1) * _ROW + 2, parts)


def eps_curve(points: Sequence[tuple[float, str, Rate]]) -> Markup:
    """Accuracy against eps: (radius, eps as written, rate), radius 0 for clean accuracy, in order of radius."""
    left, top, width, height = 50, 12, 330, 200
    most = max(radius for radius, _, _ in points) or 1.0

    def at(radius: float, value: float) -> tuple[float, float]:
        return round(left + width * radius / most, 1), round(top + height * (1 - value), 1)

    parts = []
    for tenths in range(0, 11, 2):
        y = at(0, tenths / 10)[1]
        parts.append(
            f'<path class="grid" d="M{left} {y}h{width}"/>'
            f'<text class="soft" x="{left - 6}" y="{y + 4}" text-anchor="end">{10 * tenths} %</text>'
        )
    steps = "M" + "L".join("{} {}".format(*at(radius, rate.value)) for radius, _, rate in points)
    parts.append(f'<path class="curve" d="{steps}"/>')
    places = [(at(radius, 0)[0], eps) for radius, eps, _ in points]
    for (radius, eps, rate), legible in zip(points, _legible(places), strict=True):
        (x, y), low, high = at(radius, rate.value), at(0, rate.low)[1], at(0, rate.high)[1]
        shown, written = " ".join(_interval(rate)), escape(eps)
        below = (
            f'<text x="{x}" y="{top + height + 20}" text-anchor="middle">{written}</text>' if legible else ""
        )
        parts.append(
            f'<g><title>eps {written}: {shown}</title><path class="whisker" d="M{x} {low}V{high}"/>'
            f'<circle class="dot" cx="{x}" cy="{y}" r="5"/>{below}</g>'
        )
    return _svg("Accuracy against eps, with 95 % intervals.", top + height + 32, parts)


def _legible(places: Sequence[tuple[float, str]]) -> list[bool]:
    """Which of the labels, (middle, text) from left to right, find room beside the next one; the last always does."""
    kept, room = [], float("inf")
    for middle, text in reversed(places):
        half = len(text) * _CHARACTER / 2
        kept.append(middle + half <= room)
        room = middle - half - _CHARACTER if kept[-1] else room
    return kept[::-1]


def _interval(rate: Rate) -> tuple[str, str]:
    return f"{percent(rate.value)} %", f"[{percent(rate.low)}, {percent(rate.high)}]"


def confusion_table(found: Confusion, names: Sequence[str]) -> Markup:
    """Label against prediction as a table, darker where there are more of a row.

    Of many classes, the pairs that are confused most.
    """
    if len(names) > MANY:
        return _confused(found, names)
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    counts[found.label, found.taken] = found.count
    names = [str(escape(name)) for name in names]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = []
    for row, (name, taken) in enumerate(zip(names, counts.tolist(), strict=True)):
        total = max(sum(taken), 1)
        cells = []
        for column, count in enumerate(taken):
            diagonal, share = ' class="right"' if row == column else "", round(60 * count / total)
            cells.append(
                f'<td{diagonal} style="background:color-mix(in srgb,var(--bar-2) {share}%,transparent)">{count or ""}</td>'
            )
        body.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>')
    return Markup(
        '<table class="confusion"><caption>Rows: label; columns: what the worst case found was taken for. '
        f"The diagonal is robust.</caption><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def _confused(found: Confusion, names: Sequence[str]) -> Markup:
    """The pairs of label and prediction that occur most often, the diagonal left out."""
    off = (found.label != found.taken).nonzero()[0]
    most = off[np.argsort(-found.count[off], kind="stable")[:MANY]]
    body = "".join(
        f'<tr><th scope="row">{escape(names[found.label[pair]])}</th><td>{escape(names[found.taken[pair]])}</td>'
        f'<td class="n">{found.count[pair]} of {found.count[found.label == found.label[pair]].sum()}</td></tr>'
        for pair in most
    )
    return Markup(
        f"<table><caption>The {MANY} pairs that are confused most, of {len(names)} classes.</caption><thead><tr>"
        '<th scope="col">label</th><th scope="col">taken for</th><th scope="col" class="n">samples</th></tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _svg(title: str, height: int, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
