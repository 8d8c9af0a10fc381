"""RobustBench's entries as reference rows: its own folders, or a file with an entry a line."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from robust.errors import InputError, ThreatError
from robust.files import why
from robust.leaderboard.layout import plain
from robust.leaderboard.reference import Reference
from robust.threat import NORMS, Threat

_SCORES: Final = {  # key of an entry: what it is called here, in the order of preference for the rank
    "external": "external",
    "autoattack_acc": "autoattack",
    "corruptions_acc": "corruptions",
    "corruptions_acc_3d": "corruptions_3d",
    "reported": "reported",
}
_KEYS: Final = {*_SCORES, "clean_acc"}  # one of which every entry has


@dataclass
class Imported:
    """References in the order in which they came, and how often what was odd about them."""

    references: list[Reference] = field(default_factory=list)
    repeated: int = 0  # entries that came twice, in the same words

    @property
    def oddities(self) -> Counter[str]:
        """How many entries have which note, details left out."""
        return Counter(plain(note.partition(":")[0]) for ref in self.references for note in ref.notes)


def read_robustbench(path: str | Path) -> Imported:
    """Read a JSON Lines file (each with dataset_dir, threat and id), or RobustBench's model_info folder.

    In the folder's layout, DATASET/THREAT/ID.json, the place says what an entry is of.

    Raises:
        InputError: nothing there, or an entry (named) that cannot be read; then nothing is imported.
    """
    path = Path(path)
    found = Imported()
    seen: dict[tuple[str, ...], Reference] = {}
    for where, entry in _entries(path):
        reference = _reference(where, entry)
        key = reference.key
        if key not in seen:
            seen[key] = reference
            found.references.append(reference)
        elif seen[key] == reference:
            found.repeated += 1
        else:
            raise InputError(
                f"{where}: {'/'.join(key[1:])} comes twice with different content; keep one of them"
            )
    if not found.references:
        raise InputError(
            f"robustbench: no entries in {path}; expected a JSON Lines file or model_info's folder"
        )
    return found


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each entry stands, and the entry."""
    if path.is_dir():
        for file in sorted(path.rglob("*.json")):
            place = file.absolute().parts[-3:]
            if len(place) == 3:
                entry = _object(str(file), _text(file))
                if not _KEYS & entry.keys():
                    raise InputError(
                        f"{file}: no entry of RobustBench, which has one of {', '.join(sorted(_KEYS))}; "
                        "give the folder model_info, or take this file out of it"
                    )
                yield str(file), {**entry, "dataset_dir": place[0], "threat": place[1], "id": file.stem}
        return
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            entry = _object(where, line)
            if missing := [
                key
                for key in ("dataset_dir", "threat", "id")
                if not isinstance(entry.get(key), str) or not entry[key].strip()
            ]:
                raise InputError(f"{where}: expected text under {', '.join(missing)}")
            yield where, entry


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"robustbench: cannot read {path}: {why(error)}") from error


def _object(where: str, text: str) -> dict[str, Any]:
    try:
        entry = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected an object, got {type(entry).__name__}")
    return entry


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON; leave the key out, or give null")


def _reference(where: str, entry: dict[str, Any]) -> Reference:
    notes: list[str] = []
    norm = entry["threat"].lower()
    if entry.get("dataset", entry["dataset_dir"]) != entry["dataset_dir"]:
        notes.append(f"filed under another data set: dataset says {entry['dataset']!r}")
    scores = {}
    for key, name in _SCORES.items():
        if (value := _percent(key, entry, notes)) is not None:
            scores[name] = value
    clean = _percent("clean_acc", entry, notes)
    eps, radius = _eps(norm, entry.get("eps"), notes)
    ranked_by = next((name for name in _SCORES.values() if name in scores), None)
    if ranked_by is None:
        notes.append("no score to rank by")
    elif ranked_by == "reported" and norm in NORMS:
        notes.append("ranked by the authors' own figure")
    if not isinstance(entry.get("unreliable", False), bool):
        notes.append(f"unreliable is no truth value: {entry['unreliable']!r}")
    link = entry.get("link")
    url = link if isinstance(link, str) and link.startswith(("http://", "https://")) else None
    if link and url is None:
        notes.append(f"link is no web address: {str(link)[:100]!r}")
    try:
        return Reference(
            origin="RobustBench",
            name=entry["id"],
            architecture=str(entry.get("architecture") or "not given"),
            dataset=entry["dataset_dir"],
            norm=norm,
            eps=eps,
            radius=radius,
            clean=clean,
            robust=None if ranked_by is None else scores[ranked_by],
            ranked_by=ranked_by,
            scores=scores,
            unreliable=entry.get("unreliable") is True,
            extra_data=entry["additional_data"] if isinstance(entry.get("additional_data"), bool) else None,
            title=_said(entry, "name"),
            authors=_said(entry, "authors"),
            venue=_said(entry, "venue"),
            url=url,
            footnote=_said(entry, "footnote"),
            notes=notes,
            raw=entry,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _percent(key: str, entry: dict[str, Any], notes: list[str]) -> float | None:
    """A percentage, a number or text, as a fraction; what cannot be one is noted."""
    value = entry.get(key)
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 100:
        notes.append(f"{key} is no percentage: {str(value)[:100]!r}")
        return None
    return round(number / 100, 12)


def _eps(norm: str, value: Any, notes: list[str]) -> tuple[str | None, float | None]:
    """eps as written and as a number; only the norms have one."""
    if norm not in NORMS:
        if value is not None:
            notes.append(f"eps means nothing under {norm}: {str(value)[:100]!r}")
        return None, None
    if value is None:
        notes.append("no eps")
        return None, None
    try:
        return str(value), Threat(norm, str(value)).radius
    except ThreatError:
        notes.append(f"eps is no radius: {str(value)[:100]!r}")
        return str(value)[:300], None


def _said(entry: dict[str, Any], key: str) -> str | None:
    value = entry.get(key)
    return None if value in (None, "") else str(value)
