"""Files beside a record, as bytes that depend on their content alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from io import BytesIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import save
from torch import Tensor


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


def examples_bytes(examples: Mapping[str, Tensor]) -> bytes:
    """Adversarial examples (`Report.examples`: sample_id (K,), x_adv (K, ...)) as safetensors."""
    return bytes(save(dict(examples)))
