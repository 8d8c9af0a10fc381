"""Ranks that say how sure they are: a range wherever a test cannot tell two records apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from robust.leaderboard.record import Record
from robust.leaderboard.store import Store
from robust.leaderboard.trust import shown_trust

# By record id, in the order of the verdict table, which is the data's: records of one board share its hash.
Survived = Mapping[str, npt.NDArray[np.bool_]]


def survivors(store: Store, records: Iterable[Record]) -> Survived:
    """Which samples survived, per record: what paired ranks need.

    Raises:
        StoreError: a verdict table that is missing, or altered.
    """
    return {record.id: (store.verdicts(record)["status"] == "survived").to_numpy() for record in records}


def ranks(group: Sequence[Record], survived: Survived | None = None) -> list[str]:
    """Rank of each record of a board, "2" or "2-4": between those surely better and those surely worse.

    Where it is known which samples survived, two records are told apart by exact McNemar tests at 5 % for
    all pairs of the board together (Holm); else where their 95 % intervals do not meet. Records
    that are unreliable, or whose stated trust does not hold (`objections`), have the rank "-".
    """
    ranked = [record for record in group if shown_trust(record) != "unreliable"]
    better = _paired(ranked, survived) if _pairable(ranked, survived) else _apart(ranked)
    spans = {}
    for place, record in enumerate(ranked):
        first, last = 1 + int(better[:, place].sum()), len(ranked) - int(better[place].sum())
        spans[id(record)] = str(first) if first == last else f"{first}-{last}"
    return [spans.get(id(record), "-") for record in group]


def _apart(ranked: Sequence[Record]) -> npt.NDArray[np.bool_]:
    """(R, R): whether the first one's interval lies above the second one's."""
    low = np.array([record.robust.low for record in ranked])
    high = np.array([record.robust.high for record in ranked])
    return np.asarray(low[:, None] > high[None, :])


def _pairable(ranked: Sequence[Record], survived: Survived | None) -> bool:
    return survived is not None and len({len(survived.get(r.id, ())) for r in ranked} | {0}) == 2


def _paired(ranked: Sequence[Record], survived: Survived | None) -> npt.NDArray[np.bool_]:
    """(R, R): whether the first one is surely better than the second one."""
    from scipy.stats import binom

    assert survived is not None
    flags = np.stack([survived[record.id] for record in ranked]).astype(np.float32)
    only = np.rint(flags @ (1 - flags).T).astype(np.int64)  # [a, b]: robust in a alone
    a, b = np.triu_indices(len(ranked), 1)
    fewer, differing = np.minimum(only[a, b], only[b, a]), only[a, b] + only[b, a]
    p = np.minimum(1.0, 2 * binom.cdf(fewer, differing, 0.5))
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    sure = adjusted < 0.05
    better = np.zeros(only.shape, dtype=bool)
    better[a, b] = sure & (only[a, b] > only[b, a])
    better[b, a] = sure & (only[b, a] > only[a, b])
    return better
