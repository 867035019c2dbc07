"""The rows of a sweep as they are, one line or record each, for other programs."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sweeper.core.errors import SweepError, unknown
from sweeper.core.rows import schema

FORMATS = ("csv", "json", "parquet")
"""What `encoded` writes."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What makes a formula of a text in a spreadsheet, where it comes first."""


def encoded(frame: pd.DataFrame, style: str) -> bytes:
    """Return rows with every column of `core.rows.schema`; rates and metrics are fractions.

    csv: a null is empty, and a text that a spreadsheet would take for a formula has a ' before it.
    json: one array of records; a null, and a number that is not finite, is null.

    Args:
        frame: From `results.frame`.
        style: One of `FORMATS`.

    Raises:
        SweepError: There is no such format.
    """
    if style not in FORMATS:
        raise SweepError(f"--format: {unknown('format', style, FORMATS)}")
    table = pa.Table.from_pandas(frame[schema().names], schema=schema(), preserve_index=False)
    table = table.replace_schema_metadata(None)
    if style == "parquet":
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd")
        return bytes(buffer.getvalue().to_pybytes())
    records = table.to_pylist()
    text = _csv(records) if style == "csv" else _json(records)
    return text.encode()


def _csv(records: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(schema().names)
    writer.writerows([_harmless(value) for value in record.values()] for record in records)
    return out.getvalue()


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _json(records: list[dict[str, Any]]) -> str:
    def finite(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    kept = [{name: finite(value) for name, value in record.items()} for record in records]
    return json.dumps(kept, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
