"""The leaderboard as a folder of static pages that need no server and no network."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from robust.errors import StoreError
from robust.files import why, why_unwritten
from robust.leaderboard.artefacts import read_verdicts
from robust.leaderboard.derive import by_class, confusion
from robust.leaderboard.layout import plain
from robust.leaderboard.rank import Survived
from robust.leaderboard.record import Record
from robust.leaderboard.reference import Reference
from robust.leaderboard.site import charts, pages
from robust.leaderboard.site.exports import badge, model_card
from robust.leaderboard.site.panels import panels
from robust.leaderboard.store import KINDS, Store
from robust.leaderboard.table import leaderboard_frame, render_frame
from robust.leaderboard.trust import objections

__all__ = ["publish"]

MANIFEST: Final = "site.json"  # the files of the last publication, so that the next can clear them away
_UNFINISHED: Final = "site.unfinished.txt"  # those of one that was stopped, a line each
_EXPORTS: Final = {"md": "markdown", "csv": "csv", "tex": "latex", "json": "json"}
_PAGES: Final = ("compare.html", "record.schema.json", *(f"leaderboard.{suffix}" for suffix in _EXPORTS))
_WRITERS: Final = 8
_STATUS: Final = {"misclassified": "m", "broken": "b", "survived": "s", "error": "e"}


def publish(store: Store, out: str | Path) -> list[str]:
    """Write the site of a store into a folder; the same store gives the same bytes.

    Files that an earlier publication left there go, those of one that was stopped too; others are left alone.

    Args:
        store: records, with their verdict tables, and references.
        out: folder, made if missing.

    Returns:
        The files, relative to `out`, in order.

    Raises:
        StoreError: nothing to publish, a damaged or missing file in the store, or a folder that cannot
            be written, is the store, or holds records, or files of the names of a site's, that were not
            published by this.
    """
    out = Path(out)
    if store.lies_in(out):
        raise StoreError(f"--out: {out} is the store itself; give a folder of its own for the site")
    site = _Site(store)
    before = _published(out)
    if strange := _records_of_others(out, before):
        raise StoreError(
            f"--out: {out} holds records that no publication put there, such as {strange}; give a new folder"
        )
    if others := [name for name in _PAGES if name not in before and (out / name).exists()]:
        raise StoreError(
            f"--out: {out} holds {others[0]}, which no publication put there; move it, or give a new folder"
        )
    try:
        written = _write(out, _noted(out, site.files()))
        for name in sorted(before - set(written)):
            (out / name).unlink(missing_ok=True)
        manifest = {"made_by": "robust leaderboard publish", "files": sorted(written)}
        (out / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8", newline="\n")
        (out / _UNFINISHED).unlink()
    except StoreError:  # of the store that is read, though it is an OSError as well
        raise
    except OSError as error:
        raise StoreError(f"--out: cannot write to {out}: {why_unwritten(error)}") from error
    return sorted(written)


def _noted(out: Path, files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """The files, each noted in the folder before it can be written there."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / _UNFINISHED).open("a", encoding="utf-8", newline="\n") as notes:
        for name, content in files:
            notes.write(f"{name}\n")
            notes.flush()
            yield name, content


def _write(out: Path, files: Iterable[tuple[str, bytes]]) -> list[str]:
    """Write files, several at a time, for the system takes longer over small ones than their making; -> names."""
    written: dict[str, None] = {}
    folders: set[Path] = set()
    pending: deque[Future[int]] = deque()
    with ThreadPoolExecutor(_WRITERS) as pool:
        for name, content in files:
            if name in written:  # a verdict table that records share
                continue
            path = out / name
            if path.parent not in folders:
                path.parent.mkdir(parents=True, exist_ok=True)
                folders.add(path.parent)
            pending.append(pool.submit(path.write_bytes, content))
            written[name] = None
            while len(pending) > 8 * _WRITERS:
                pending.popleft().result()
        for write in pending:
            write.result()
    return list(written)


def _published(out: Path) -> set[str]:
    """Files of the last publication, and of those stopped since; StoreError where an index page is somebody else's."""
    try:
        if not out.exists():
            return set()
        names = []
        if (stopped := out / _UNFINISHED).is_file():
            names += stopped.read_text(encoding="utf-8").splitlines()
        if (out / MANIFEST).is_file():
            names += json.loads((out / MANIFEST).read_text(encoding="utf-8"))["files"]
        elif not names and ((out / "index.html").exists() or not out.is_dir()):
            raise StoreError(f"--out: {out} holds something else; give a new folder")
        return {name for name in names if ".." not in Path(name).parts and not Path(name).is_absolute()}
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"--out: {out / MANIFEST} is not from a publication; give a new folder") from error
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"--out: cannot read {out}: {why(error)}") from error


def _records_of_others(out: Path, published: set[str]) -> str | None:
    """A record or reference in a folder that the last publication did not write there, if any."""
    found = (
        path.relative_to(out).as_posix() for kind in KINDS for path in sorted((out / kind).glob("*.json"))
    )
    return next((name for name in found if name not in published), None)


class _Site:
    """Everything that is on the pages, and the files that it becomes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.records, self.references = store.entries()
        self.verdict_files: dict[str, bytes] = {}  # by hash, for records may share one
        tables: dict[str, pd.DataFrame] = {}
        for record in self.records:
            digest = record.artefacts.verdicts_file_sha256
            if digest not in self.verdict_files:
                self.verdict_files[digest] = store.verdicts_file(record)
                tables[digest] = read_verdicts(self.verdict_files[digest], record.data.n)
            store.examples_file(record)  # damage is told before anything is written; held, all may not fit
        self.verdicts = {record.id: tables[record.artefacts.verdicts_file_sha256] for record in self.records}
        self.survived: Survived = {
            id_: table["status"].to_numpy(dtype=object) == "survived" for id_, table in self.verdicts.items()
        }
        self.frame = leaderboard_frame(self.records, references=self.references, survived=self.survived)
        self.by_id: dict[str, Record | Reference] = {}
        self.by_id.update((record.short_id, record) for record in self.records)
        self.by_id.update((reference.short_id, reference) for reference in self.references)
        self.boards = pages.make_boards(self.frame, self.by_id)
        self.curves = pages.siblings(self.records)
        self.environment = Environment(
            loader=PackageLoader("robust.leaderboard.site"),
            autoescape=select_autoescape(["html"]),
            undefined=StrictUndefined,
            finalize=lambda value: plain(value) if type(value) is str else value,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Name and content of every file."""
        yield from self._static()
        kinds = [
            ("Measured here", [b for b in self.boards if b.measured]),
            ("Reported elsewhere", [b for b in self.boards if not b.measured]),
        ]
        yield "index.html", self._page("index.html", "Robust accuracy", kinds=kinds)
        for board in self.boards:
            yield board.file, self._page("board.html", f"{board.threat}, {board.data}", board=board)
            for row in board.rows:
                yield from self._entry(board, row)
        yield from self._compare()
        yield from self._exports()

    def _static(self) -> Iterator[tuple[str, bytes]]:
        folder = files("robust.leaderboard.site") / "static"
        for file in sorted(folder.iterdir(), key=lambda file: file.name):
            yield f"static/{file.name}", file.read_bytes()

    def _page(self, template: str, title: str, *, root: str = "", **values: Any) -> bytes:
        counts = {"records": len(self.records), "references": len(self.references)}
        text = self.environment.get_template(template).render(title=title, root=root, **counts, **values)
        return text.encode()

    def _entry(self, board: pages.Board, row: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
        entry, page = self.by_id[row["id"]], f"entries/{row['id']}.html"
        if isinstance(entry, Reference):
            raw = [(key, str(value), None) for key, value in entry.raw.items()]
            said = pages.reference_facts(entry)
            yield (
                page,
                self._page(
                    "reference.html",
                    entry.name,
                    root="../",
                    board=board,
                    row=row,
                    reference=entry,
                    said=said,
                    raw=raw,
                ),
            )
            yield f"references/{entry.id}.json", entry.dumps().encode()
            return
        examples = self.store.examples_file(entry)
        yield page, self._record_page(board, row, entry, examples)
        yield f"data/{row['id']}.js", _script(row["id"], _paired_data(self.verdicts[entry.id]))
        yield f"badges/{row['id']}.json", badge(entry).encode()
        yield f"cards/{row['id']}.md", model_card(entry, self.environment).encode()
        yield f"records/{entry.id}.json", self.store.record_file(entry)
        digest = entry.artefacts.verdicts_file_sha256
        yield f"verdicts/{digest}.parquet", self.verdict_files[digest]
        if examples is not None:
            yield f"examples/{entry.artefacts.examples_sha256}.safetensors", examples

    def _record_page(
        self, board: pages.Board, row: dict[str, Any], record: Record, examples: bytes | None
    ) -> bytes:
        verdicts = self.verdicts[record.id]
        confused = confusion(verdicts)
        names = pages.class_names(record, confused.size)
        points = pages.curve_points(record, self.curves[pages.curve_key(record)], verdicts)
        return self._page(
            "entry.html",
            f"{record.model.name} + {record.defense.name}, {board.threat}",
            root="../",
            board=board,
            row=row,
            record=record,
            objections=objections(record),
            curve=charts.eps_curve(points) if points else "",
            curve_text=pages.curve_text(points),
            attacks=charts.attack_bars(record),
            classes=charts.group_bars(
                record.classes or by_class(verdicts), record.fairness.worst if record.fairness else None
            ),
            classes_text=pages.fairness_text(record),
            groups=charts.group_bars(record.groups) if record.groups else "",
            confusion=charts.confusion_table(confused, names),
            panels=panels(record, verdicts, examples, names),
            cost=pages.cost_facts(record),
            provenance=pages.provenance_facts(record),
        )

    def _compare(self) -> Iterator[tuple[str, bytes]]:
        yield "compare.html", self._page("compare.html", "Compare two entries")
        index, samples = [], {}
        for board in (board for board in self.boards if board.measured):
            for row in board.rows:
                record = self.by_id[row["id"]]
                assert isinstance(record, Record)
                table = self.verdicts[record.id]
                ids, labels = (table[name].to_numpy().astype("<i8") for name in ("sample_id", "label"))
                hashed = hashlib.sha256(record.data.sha256.encode() + ids.tobytes() + labels.tobytes())
                digest = hashed.hexdigest()[:16]
                if f"samples-{digest}" not in samples:
                    samples[f"samples-{digest}"] = {"ids": ids.tolist(), "labels": labels.tolist()}
                classes = {str(group.label): group.name for group in record.classes}
                index.append(
                    {"id": row["id"], "name": f"{row['name']} {row['robust']} %", "board": board.heading,
                     "trust": row["trust"], "samples": digest, "classes": classes}
                )  # fmt: skip
        yield "data/index.js", f"var robustIndex = {json.dumps(index)};\n".encode()
        for name, content in sorted(samples.items()):
            yield f"data/{name}.js", _script(name, content)

    def _exports(self) -> Iterator[tuple[str, bytes]]:
        for suffix, fmt in _EXPORTS.items():
            yield f"leaderboard.{suffix}", f"{render_frame(self.frame, fmt)}\n".encode()
        yield "record.schema.json", (json.dumps(Record.model_json_schema(), indent=1) + "\n").encode()


def _paired_data(verdicts: pd.DataFrame) -> dict[str, Any]:
    """Of each sample, in order: how it ended, and what it was taken for then (-1: unknown)."""
    status = verdicts["status"].to_numpy(dtype=object)
    taken = np.where(status == "broken", verdicts.get("prediction_adv", -1), verdicts["prediction"])
    return {"status": "".join(map(_STATUS.__getitem__, status)), "taken": taken.astype(int).tolist()}


def _script(name: str, content: dict[str, Any]) -> bytes:
    """Data for the compare page: a script, because a page opened from a folder may not fetch."""
    return f"robustData[{json.dumps(name)}] = {json.dumps(content, separators=(',', ':'))};\n".encode()
