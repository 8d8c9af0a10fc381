"""Inline drawings, as SVG with a text for those who cannot see it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from robust.leaderboard.layout import percent, plain
from robust.leaderboard.schema import AttackInfo, Group, Rate

_WIDTH = 640
_ROW = 24  # pixels a bar takes
_LABEL = 190


def range_bar(value: float, low: float, high: float) -> Markup:
    """A rate in [0, 1] with its interval, small enough for a cell."""
    x, a, b = (round(90 * part, 1) for part in (value, low, high))
    return Markup(
        '<svg class="range" width="90" height="10" aria-hidden="true"><rect class="track" y="4" width="90" height="2"/>'
        '<rect class="bar" x="{}" y="3" width="{}" height="4" opacity=".45"/><circle class="dot" cx="{}" cy="5" r="3.5"/></svg>'
    ).format(a, round(max(b - a, 0.5), 1), x)


def group_bars(groups: Sequence[Group], worst: int | None = None) -> Markup:
    """Robust accuracy per group as bars with 95 % intervals, clean accuracy as a mark."""
    rows = [
        (f"{plain(group.name)} (worst)" if group.label is not None and group.label == worst else plain(group.name),
         group.robust.value, group.robust, group.clean.value, f"{percent(group.robust.value)} of {percent(group.clean.value)}")
        for group in groups
    ]  # fmt: skip
    return _bars(rows, "Robust accuracy per group, with its 95 % interval; clean accuracy as an orange line.")


def attack_bars(attacks: Sequence[AttackInfo], n: int, *, cascade: bool) -> Markup:
    """What each attack left standing, of n samples."""
    rows = []
    for attack in (attack for attack in attacks if attack.attacked):
        rate = Rate.of(attack.survived, n)
        shown = f"broke {attack.broke}" if cascade else percent(rate.value)
        rows.append((plain(attack.label), rate.value, None if cascade else rate, None, shown))
    return _bars(
        rows,
        "Samples left standing after each attack." if cascade else "Robust accuracy under each attack alone.",
    )


def _bars(rows: Sequence[tuple[str, float, Rate | None, float | None, str]], title: str) -> Markup:
    """A horizontal bar per (label, value, rate or none, mark or none, text)."""
    span, parts = _WIDTH - _LABEL - 110, []
    for place, (label, value, rate, mark, text) in enumerate(rows):
        y = place * _ROW
        short = label if len(label) <= 26 else f"{label[:25]}…"
        parts.append(
            Markup(
                '<g><title>{}: {}</title><text x="{}" y="{}" text-anchor="end">{}</text>'
                '<rect class="bar" x="{}" y="{}" width="{:.1f}" height="14"/>'
            ).format(label, text, _LABEL - 8, y + 16, short, _LABEL, y + 5, span * value)
        )
        if mark is not None:
            x = _LABEL + span * mark
            parts.append(Markup('<path class="clean" d="M{:.1f} {}v18"/>').format(x, y + 3))
        if rate is not None:
            low, high = (_LABEL + span * end for end in (rate.low, rate.high))
            parts.append(
                Markup('<path class="whisker" d="M{:.1f} {}H{:.1f}M{:.1f} {}v6M{:.1f} {}v6"/>').format(
                    low, y + 12, high, low, y + 9, high, y + 9
                )
            )
        parts.append(
            Markup('<text class="soft" x="{}" y="{}">{}</text></g>').format(_WIDTH - 102, y + 16, text)
        )
    return _svg(title, max(len(rows), 1) * _ROW + 6, parts)


def eps_curve(points: Sequence[tuple[float, str, Rate]]) -> Markup:
    """Accuracy against eps: (radius, eps as written, rate), radius 0 for clean accuracy, in order of radius."""
    left, top, width, height = 52, 12, 540, 240
    most = max(radius for radius, _, _ in points) or 1.0

    def at(radius: float, value: float) -> tuple[float, float]:
        return round(left + width * radius / most, 1), round(top + height * (1 - value), 1)

    parts = []
    for tenths in range(0, 11, 2):
        y = at(0, tenths / 10)[1]
        parts.append(
            Markup(
                '<path class="grid" d="M{} {}h{}"/><text class="soft" x="{}" y="{}" text-anchor="end">{}</text>'
            ).format(left, y, width, left - 6, y + 4, f"{10 * tenths} %")
        )
    steps = "M" + "L".join("{} {}".format(*at(radius, rate.value)) for radius, _, rate in points)
    parts.append(Markup('<path class="curve" d="{}"/>').format(steps))
    for radius, written, rate in points:
        (x, y), low, high = at(radius, rate.value), at(0, rate.low)[1], at(0, rate.high)[1]
        parts.append(
            Markup(
                '<g><title>eps {}: {} % [{}, {}]</title><path class="whisker" d="M{} {}V{}"/><circle class="dot" cx="{}" cy="{}" r="5"/>'
                '<text x="{}" y="{}" text-anchor="middle">{}</text></g>'
            ).format(
                written,
                percent(rate.value),
                percent(rate.low),
                percent(rate.high),
                x,
                low,
                high,
                x,
                y,
                x,
                top + height + 20,
                written,
            )
        )
    return _svg("Accuracy against eps, with 95 % intervals.", top + height + 32, parts)


def confusion_table(counts: npt.NDArray[np.int64], names: Sequence[str]) -> Markup:
    """(C, C) counts of label against prediction as a table, darker where there are more of a row."""
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in names)
    body = []
    for row, name in enumerate(names):
        total = max(int(counts[row].sum()), 1)
        cells = []
        for column, count in enumerate(counts[row].tolist()):
            share = round(60 * count / total)
            cells.append(
                Markup(
                    '<td{} style="background:color-mix(in srgb,var(--bar-2) {}%,transparent)">{}</td>'
                ).format(Markup(' class="right"') if row == column else "", share, count or "")
            )
        body.append(Markup('<tr><th scope="row">{}</th>{}</tr>').format(name, Markup("").join(cells)))
    return Markup(
        '<table class="confusion"><caption>Rows: label; columns: what the worst case found was taken for. '
        "The diagonal is robust.</caption><thead><tr><td></td>{}</tr></thead><tbody>{}</tbody></table>"
    ).format(head, Markup("").join(body))


def _svg(title: str, height: int, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" aria-label="{2}">{3}</svg>'
    ).format(_WIDTH, height, escape(title), Markup("").join(parts))
