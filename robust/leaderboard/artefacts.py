"""Files beside a record, as bytes that depend on their content alone, and hashes of that content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from io import BytesIO
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from robust.errors import DataError, StoreError
from robust.leaderboard.schema import MOST_CLASSES
from robust.report import STATUSES
from robust.sources import Samples


def sha256(content: bytes) -> str:
    """Hash of a file, 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def verdicts_bytes(verdicts: pd.DataFrame) -> bytes:
    """A verdict table as Parquet: the same bytes for the same table (under the same pyarrow).

    Index and pandas' own metadata are left out and text is of one type, so that a table read back
    gives its bytes again.
    """
    table = pa.Table.from_pandas(verdicts, preserve_index=False)
    fields = [
        pa.field(field.name, pa.string()) if pa.types.is_large_string(field.type) else field
        for field in table.schema
    ]
    sink = BytesIO()
    pq.write_table(table.cast(pa.schema(fields)), sink, compression="zstd", compression_level=3)
    return sink.getvalue()


def read_verdicts(content: bytes, rows: int) -> pd.DataFrame:
    """The verdict table in the bytes of a Parquet file: what it says of its size and columns is looked at first.

    Args:
        rows: that it must have, for a small file may stand for a table that fills the memory.

    Raises:
        StoreError: no Parquet file, another table than of verdicts on so many samples, or a larger one than is read.
    """
    try:
        about = pq.read_schema(BytesIO(content)).remove_metadata()
        texts = [field.name for field in about if _KINDS["text"](field.type)]
        # A text that many rows share is in the file once: unpacked, few bytes may fill the memory.
        file = pq.ParquetFile(BytesIO(content), read_dictionary=texts)
        if problem := _ill_formed(file, about, rows):
            raise StoreError(f"verdicts: {problem}; ask for the record's own file")
        table = file.read(use_threads=False)
        if problem := _odd_values(table):
            raise StoreError(f"verdicts: {problem}; ask for the record's own file")
        return table.cast(about).to_pandas(use_threads=False)
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"verdicts: no Parquet file that can be read: {error}") from error


def _ill_formed(file: pq.ParquetFile, schema: pa.Schema, rows: int) -> str:
    """What is wrong with a file as a table of verdicts on so many samples."""
    about = file.metadata
    if about.num_rows != rows:
        return f"expected {rows} rows, as many as the record has samples, got {about.num_rows}"
    if about.num_columns > _MOST_COLUMNS or len(set(schema.names)) != len(schema.names):
        return f"expected at most {_MOST_COLUMNS} columns, each once, got {about.num_columns}"
    if rows * about.num_columns > _MOST_VALUES:
        return f"expected at most {_MOST_VALUES:,} values, got {rows:,} rows of {about.num_columns} columns"
    size = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
    if problem := _oversized(size, rows):
        return problem
    if missing := [name for name in COLUMNS if name not in schema.names]:
        return f"columns missing: {', '.join(missing)}"
    for name, found in zip(schema.names, schema.types, strict=True):
        kind = (COLUMNS | _OPTIONAL).get(name)
        if not any(_KINDS[each](found) for each in ([kind] if kind else _KINDS)):
            return f"column {name}: expected {kind or 'numbers or text'}s, got {found}"
    return ""


def _oversized(size: int, rows: int) -> str:
    """What is wrong with so many bytes."""
    if size > _MOST_BYTES * (rows + _MOST_COLUMNS):
        return f"expected at most {_MOST_BYTES} bytes a row, got {size:,} bytes for {rows:,} rows"
    return f"expected at most {_MOST:,} bytes, got {size:,}" if size > _MOST else ""


def _odd_values(table: pa.Table) -> str:
    """What is wrong with the values of a table whose columns are right: gaps, no classes, unknown words, too much text."""
    for name in COLUMNS:
        if name != "distance" and (gaps := table[name].null_count):
            return f"column {name}: {gaps} values are missing"
    for name in ("label", "prediction", "prediction_adv"):
        values = table[name].to_numpy() if name in table.schema.names else np.zeros(0, np.int64)
        least = 0 if name == "label" else -1  # logits that are no numbers have no class
        if len(values) and not least <= values.min() <= values.max() < MOST_CLASSES:
            return f"column {name}: expected classes in [{least}, {MOST_CLASSES}), got {values.min()} to {values.max()}"
    texts = [
        table[name]
        for name, kind in zip(table.schema.names, table.schema.types, strict=True)
        if pa.types.is_dictionary(kind)
    ]
    return _oversized(sum(map(_unpacked, texts)), table.num_rows) or _odd_status(table)


def _unpacked(column: pa.ChunkedArray) -> int:
    """Bytes of a column of texts, with one for each row that has it."""
    lengths = (pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in column.chunks)
    return sum(pc.sum(each).as_py() or 0 for each in lengths)


def _odd_status(table: pa.Table) -> str:
    known = pc.is_in(table["status"].cast(pa.string()), value_set=pa.array(STATUSES))
    if (odd := known.index(False).as_py()) < 0:
        return ""
    got, sample = table["status"][odd].as_py(), table["sample_id"][odd]
    return f"column status: expected {', '.join(STATUSES[:-1])} or {STATUSES[-1]}, got {got[:40]!r} for sample {sample}"


COLUMNS: Final = {
    "sample_id": "integer", "label": "integer", "prediction": "integer", "status": "text", "attack": "text",
    "distance": "float", "forwards": "integer", "backwards": "integer",
}  # fmt: skip
_OPTIONAL: Final = {"prediction_adv": "integer", "nearest": "float", "margin": "float"}
_KINDS: Final = {
    "integer": pa.types.is_integer,
    "float": pa.types.is_floating,
    "text": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
}
_MOST_COLUMNS: Final = 100
_MOST_BYTES: Final = 10_000  # a row, once unpacked; names of attacks take some hundreds
_MOST_VALUES: Final = 50_000_000  # four million samples of as many columns as a report has
_MOST: Final = 1 << 30  # bytes once unpacked


def verdicts_sha256(verdicts: pd.DataFrame) -> str:
    """Hash of a verdict table's content: the same whoever wrote the file, and in whatever width of integer.

    Over the columns in order of name: integers as 64 bit, floats as 64 bit with one NaN, all little
    endian; text as JSON.
    """
    digest = hashlib.sha256()
    for name in sorted(map(str, verdicts.columns)):
        kind, content = _content(verdicts[name])
        digest.update(json.dumps([name, kind, len(verdicts), len(content)]).encode())
        digest.update(content)
    return digest.hexdigest()


def _content(column: pd.Series) -> tuple[str, bytes]:
    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_integer_dtype(column):
        return "integer", column.to_numpy().astype("<i8").tobytes()
    if pd.api.types.is_float_dtype(column):
        values = column.to_numpy().astype("<f8")
        return "float", np.where(np.isnan(values), np.nan, values).astype("<f8").tobytes()
    values = column.to_numpy(object)  # a column of text hands out its rows slowly, one by one
    texts = [None if text is None or text is pd.NA else str(text) for text in values]
    return "text", json.dumps(texts).encode()


def indices_sha256(verdicts: pd.DataFrame) -> str:
    """Hash of the sample ids in the order of the table, as 64 bit little endian integers."""
    return sha256(verdicts["sample_id"].to_numpy().astype("<i8").tobytes())


def examples_bytes(examples: Mapping[str, Tensor]) -> bytes:
    """Adversarial examples (`Report.examples`: sample_id (K,), x_adv (K, ...)) as safetensors.

    With the clean points x (K, ...) beside them, see `with_clean`, they can be audited and shown without
    the data set.
    """
    return bytes(save({name: tensor.contiguous() for name, tensor in examples.items()}))


def read_examples(content: bytes) -> dict[str, Tensor]:
    """The adversarial examples in the bytes of a safetensors file: see `examples_bytes`.

    Raises:
        StoreError: no safetensors file, or none that holds examples.
    """
    try:
        saved = load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise StoreError(f"examples: no safetensors file that can be read: {error}") from error
    if problem := _malformed(saved):
        raise StoreError(f"examples: {problem}; ask for the record's own file")
    return saved


def _malformed(saved: dict[str, Tensor]) -> str:
    """What is wrong with the form of saved examples: sample_id (K,) integers, x_adv and, if any, x (K, ...) floats."""
    if missing := [name for name in ("sample_id", "x_adv") if name not in saved]:
        return f"the file has no {missing[0]}"
    ids = saved["sample_id"]
    if ids.dtype not in (torch.int64, torch.int32) or ids.ndim != 1:
        return f"sample_id: expected integers of shape (K,), got {form(ids)}"
    for name in ("x_adv", "x"):
        points = saved.get(name)
        if points is None:
            continue
        if not points.is_floating_point() or points.ndim < 2 or len(points) != len(ids):
            return f"{name}: expected floats of shape ({len(ids)}, ...), got {form(points)}"
        if points.shape != saved["x_adv"].shape:
            return f"x: expected the shape of x_adv, {tuple(saved['x_adv'].shape)}, got {tuple(points.shape)}"
    return ""


def form(tensor: Tensor) -> str:
    """Type and shape of a tensor, for messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def with_clean(
    examples: Mapping[str, Tensor], samples: Samples, *, limit: int | None = None
) -> dict[str, Tensor]:
    """Examples with the clean points x that they were made from, the first `limit` of them.

    Raises:
        DataError: an example of a sample that is not among the samples.
    """
    ids = examples["sample_id"][:limit]
    places = {int(id_): place for place, id_ in enumerate(samples.ids.tolist())}
    if missing := [id_ for id_ in ids.tolist() if id_ not in places]:
        raise DataError(f"data: has no sample {missing[0]}, of which there is an adversarial example")
    rows = torch.tensor([places[id_] for id_ in ids.tolist()], dtype=torch.int64)
    return {"sample_id": ids, "x_adv": examples["x_adv"][:limit], "x": samples.rows(rows)}
