"""Rows on disk are the rows, and hold no memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pyarrow as pa
import pytest

from sidray.errors import StorageError
from sidray.retrieval.spill import spilled

SCHEMA = pa.schema([("item_id", pa.string()), ("vector", pa.list_(pa.float32(), 2)), ("sids", pa.list_(pa.int32()))])


def batches() -> Iterator[pa.RecordBatch]:
    for start in range(0, 50_000, 10_000):
        rows = range(start, start + 10_000)
        columns = [[f"i{n}" for n in rows], [[n, -n] for n in rows], [None if n % 2 else [n] for n in rows]]
        yield pa.RecordBatch.from_arrays(
            [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
        )


def test_rows_come_back_in_order_and_from_the_file() -> None:
    expected = pa.Table.from_batches(batches())
    size = expected.nbytes
    plain = expected.to_pylist()
    del expected
    before = pa.total_allocated_bytes()
    table = spilled(batches(), SCHEMA)
    assert pa.total_allocated_bytes() - before < size / 10
    assert table.schema.types == [pa.large_string(), pa.list_(pa.float32(), 2), pa.list_(pa.int32())]
    assert table.to_pylist() == plain


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "w+b"))  # noqa: SIM115
    with pytest.raises(StorageError, match=tempfile.gettempdir()):
        spilled(batches(), SCHEMA)


def test_no_rows_are_an_empty_table() -> None:
    assert spilled([], SCHEMA).num_rows == 0
