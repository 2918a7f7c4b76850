"""Records and samples as parquet, and back.

One row per request with the field names of ``RequestRecord``; the server's own durations are columns
``server_...``. Samples are long: moment, source, name, value. Types are fixed, so that a column
that is absent throughout keeps its type.
"""

from __future__ import annotations

import io
import types
import typing
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ollamalab.errors import RunError
from ollamalab.records import RequestRecord, Sample, ServerTimings
from ollamalab.report.manifest import plain

_SERVER = "server_"
_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
#: Whole numbers and flags stay what they are when some are absent.
_PANDAS = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype(), pa.string(): pd.StringDtype()}
_SAMPLES = pa.schema(
    [("at_s", pa.float64()), ("source", pa.string()), ("name", pa.string()), ("value", pa.float64())]
)


def records_parquet(records: Iterable[RequestRecord]) -> bytes:
    """Return records as a parquet file, one row per request in the given order."""
    rows = []
    for record in records:
        row = msgspec.to_builtins(record, enc_hook=plain)
        server = row.pop("server") or {}
        rows.append(row | {f"{_SERVER}{name}": value for name, value in server.items()})
    return _parquet(rows, _record_schema())


def samples_parquet(samples: Iterable[Sample]) -> bytes:
    """Return samples as a parquet file, one row per value."""
    rows = [
        {"at_s": sample.at_s, "source": sample.source, "name": name, "value": value}
        for sample in samples
        for name, value in sample.values.items()
    ]
    return _parquet(rows, _SAMPLES)


def read_frame(path: Path) -> pd.DataFrame:
    """Return a saved parquet file as a frame; absent whole numbers and flags are ``pd.NA``.

    Raises:
        RunError: The file is missing or damaged.
    """
    return _read(path).to_pandas(types_mapper=_PANDAS.get, use_threads=False)


def read_records(path: Path) -> list[RequestRecord]:
    """Return the records of a saved parquet file, equal to those that were saved.

    Raises:
        RunError: The file is missing, damaged, or holds something else.
    """
    names = [field.name for field in fields(ServerTimings)]
    records = []
    for row in _read(path).to_pylist():
        server = {name: row.pop(f"{_SERVER}{name}", None) for name in names}
        row["server"] = server if any(value is not None for value in server.values()) else None
        try:
            records.append(msgspec.convert(row, RequestRecord))
        except msgspec.ValidationError as error:
            raise RunError(f"{path} does not hold requests: {error}") from error
    return records


def _record_schema() -> pa.Schema:
    columns = [*_columns(RequestRecord, ""), *_columns(ServerTimings, _SERVER)]
    return pa.schema([column for column in columns if column[0] != "server"])


def _columns(record: type[Any], prefix: str) -> list[tuple[str, pa.DataType]]:
    hints = typing.get_type_hints(record)
    return [(prefix + field.name, _arrow_type(hints[field.name])) for field in fields(record)]


def _arrow_type(hint: Any) -> pa.DataType:
    """Return the column type of a field; enumerations are strings, tuples are lists."""
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is tuple:
        return pa.list_(_arrow_type(typing.get_args(hint)[0]))
    return next((_ARROW[base] for base in hint.__mro__ if base in _ARROW), pa.null())


def _parquet(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def _read(path: Path) -> pa.Table:
    try:
        # Without threads: the files are small, and a pool that still starts one at exit aborts the process.
        return pq.read_table(io.BytesIO(path.read_bytes()), use_threads=False, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise RunError(
            f"{path} cannot be read: {error}; run its experiment again, or restore the file"
        ) from error
