"""The folder of a sweep. Only the driver writes to it, each file at once or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from robust.diagnose import Finding
from robust.errors import StoreError
from robust.files import replacing, why, why_unwritten
from robust.leaderboard.artefacts import sha256
from robust.parts import Part
from robust.sweep.curves import CurvePart

_META = b"robust"


class Results:
    """What a sweep has found so far, and where.

    models/KEY/weights.safetensors and .json (their hash), cells/KEY.json (the record of a finished cell), parts/KEY/A-B.parquet
    and .safetensors (shards of a cell that is not finished), curves/KEY.json and .parquet, failures/KEY.txt, data/KEY
    (decoded samples), events.jsonl, and the records' own folders.

    Raises:
        StoreError: from every method that writes, where the folder cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def open(self) -> None:
        """Make the folder, or say at once why not."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            probe = self.out / f".{uuid4().hex}.partial"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise StoreError(
                f"out: cannot write to the folder {self.out}: {why(error)}; "
                "give one that can be made or written"
            ) from error

    def write(self, path: Path, content: bytes) -> None:
        """Write a file at once or not at all."""
        try:
            try:
                _replace(path, content)
            except FileNotFoundError:  # another sweep of the same plan has just dropped the folder
                _replace(path, content)
        except OSError as error:
            raise StoreError(
                f"out: cannot write {path}: {why_unwritten(error)}; what was finished is kept"
            ) from error

    def weights(self, key: str) -> Path:
        """Where a pair's trained weights are, or will be."""
        return self.out / "models" / key / "weights.safetensors"

    def keep_weights(self, key: str, content: bytes, sha256: str) -> Path:
        """Keep a pair's trained weights, and the hash of the model that they make; where they are."""
        path = self.weights(key)
        self.write(path, content)
        self.write(path.with_suffix(".json"), json.dumps({"sha256": sha256}).encode())
        return path

    def weights_sha256(self, key: str) -> str | None:
        """Hash of the model that the kept weights made; None where none were kept."""
        found = self._json(self.weights(key).with_suffix(".json"))
        return None if found is None or "sha256" not in found else str(found["sha256"])

    def record_of(self, key: str) -> str | None:
        """Id of the record of a finished cell."""
        found = self._json(self.out / "cells" / f"{key}.json")
        return None if found is None or "record" not in found else str(found["record"])

    def finish(self, key: str, title: str, record: str) -> None:
        """Note that a cell is finished; its shards go."""
        text = json.dumps({"record": record, "cell": title})
        self.write(self.out / "cells" / f"{key}.json", text.encode())
        self.drop_parts(key)

    def curve_of(self, key: str) -> dict[str, Any] | None:
        """A finished curve; None where its file or its table is gone or damaged."""
        path = self.curve_file(key)
        curve = self._json(path)
        try:
            table = path.with_suffix(".parquet").read_bytes()
        except OSError:
            return None
        return curve if curve is not None and curve.pop("sha256", None) == _seal(curve, table) else None

    def curve_file(self, key: str) -> Path:
        """Where a curve is, or will be."""
        return self.out / "curves" / f"{key}.json"

    def finish_curve(self, key: str, content: Mapping[str, Any], table: pd.DataFrame) -> None:
        """Keep a curve with its table; its shards go."""
        sink = BytesIO()
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False), sink)
        path, table_file = self.curve_file(key), sink.getvalue()
        self.write(path.with_suffix(".parquet"), table_file)
        text = json.dumps({**content, "sha256": _seal(content, table_file)}, indent=1, allow_nan=False)
        self.write(path, text.encode())
        self.drop_parts(key)

    def keep_part(self, key: str, part: Part | CurvePart, examples: bytes | None = None) -> None:
        """Keep a shard, and adversarial examples beside it, until its cell is finished."""
        path = self._part(key, part.rows)
        if examples is not None:
            self.write(path.with_suffix(".safetensors"), examples)
        self.write(path, _dump(part, None if examples is None else sha256(examples)))

    def part(self, key: str, rows: tuple[int, int]) -> tuple[Part | CurvePart, bytes | None] | None:
        """A shard that was kept, with its examples; None where there is none, or none that can be read."""
        path = self._part(key, rows)
        try:
            part, digest = _load(path.read_bytes())
            examples = None if digest is None else path.with_suffix(".safetensors").read_bytes()
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            return None
        return (part, examples) if examples is None or sha256(examples) == digest else None

    def drop_parts(self, key: str) -> None:
        """Forget the shards of a cell."""
        shutil.rmtree(self.out / "parts" / key, ignore_errors=True)

    def fail(self, key: str, title: str, trace: str) -> None:
        """Keep the traceback of a failure."""
        self.write(self.out / "failures" / f"{key}.txt", f"{title}\n{trace}".encode())

    def forgive(self, key: str) -> None:
        """What failed has succeeded since."""
        (self.out / "failures" / f"{key}.txt").unlink(missing_ok=True)

    def _part(self, key: str, rows: tuple[int, int]) -> Path:
        return self.out / "parts" / key / f"{rows[0]}-{rows[1]}.parquet"

    @staticmethod
    def _json(path: Path) -> dict[str, Any] | None:
        try:
            found: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


def _seal(curve: Mapping[str, Any], table: bytes) -> str:
    """Hash of a curve and its table."""
    return sha256(json.dumps(curve, sort_keys=True).encode() + table)


def _replace(path: Path, content: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content)


def _dump(part: Part | CurvePart, examples: str | None) -> bytes:
    """A shard as Parquet: its table, and the rest, with the hash of its examples, as JSON in the file's metadata."""
    table = part.verdicts if isinstance(part, Part) else part.table
    meta = {key: value for key, value in vars(part).items() if key not in ("verdicts", "table", "examples")}
    if isinstance(part, Part):
        meta["findings"] = [[rank, asdict(finding)] for rank, finding in part.findings]
    else:
        meta["findings"] = [asdict(finding) for finding in part.findings]
    meta["shown"] = examples
    content = pa.Table.from_pandas(table, preserve_index=False)
    known = content.schema.metadata or {}
    sink = BytesIO()
    pq.write_table(content.replace_schema_metadata({**known, _META: json.dumps(meta).encode()}), sink)
    return sink.getvalue()


def _load(content: bytes) -> tuple[Part | CurvePart, str | None]:
    # No thread of Arrow's is left with a Python object when the interpreter ends.
    table = pq.ParquetFile(BytesIO(content)).read(use_threads=False)
    meta = json.loads(table.schema.metadata[_META])
    meta["rows"], examples = tuple(meta["rows"]), meta.pop("shown")
    frame = table.to_pandas()
    if "attacks" in meta:
        meta["findings"] = [(rank, Finding(**finding)) for rank, finding in meta["findings"]]
        return Part(verdicts=frame, **meta), examples
    meta["findings"] = [Finding(**finding) for finding in meta["findings"]]
    return CurvePart(table=frame, **meta), examples
