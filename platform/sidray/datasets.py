"""Lance datasets on any storage: opened and written with the retries of storage.py, and with its errors.

rows = open_dataset("s3://bucket/items.lance").take([3, 1]);  write_dataset(uri, reader)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sidray import storage
from sidray.failures import failure_of

if TYPE_CHECKING:
    import lance


def open_dataset(uri: str) -> lance.LanceDataset:
    """Raises ValueError where there is none, StorageError where the storage does not answer."""
    import lance  # half of a task's start-up time: only where it is needed

    uri = storage.absolute(uri)
    try:
        with storage.read_errors(uri):
            return lance.dataset(uri, storage_options=storage.lance_options(uri))
    except ValueError as error:  # of Lance, for all that goes wrong
        raise failure_of(error) or error from error


def write_dataset(
    uri: str, rows: pa.Table | pa.RecordBatchReader, onto: lance.LanceDataset | None = None, **options: Any
) -> lance.LanceDataset:
    """Writes a table, or a stream of batches, in one commit; `onto`: the open dataset that is at `uri`.

    What the stream raises comes out as itself. Raises StorageError for a full disk and all else that is not written."""
    import lance

    uri = storage.absolute(uri)
    failed: list[Exception] = []  # Lance turns an error of the stream into text: the original is kept here
    reader = rows.to_reader() if isinstance(rows, pa.Table) else rows

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from reader
        except Exception as error:
            failed.append(error)
            raise

    stream = pa.RecordBatchReader.from_batches(reader.schema, batches())
    options["storage_options"] = storage.lance_options(uri)
    try:
        with storage.write_errors(uri):
            return lance.write_dataset(stream, uri if onto is None else onto, schema=reader.schema, **options)
    except Exception:
        if failed:
            raise failed[0] from None
        raise
