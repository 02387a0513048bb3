"""Lance datasets on any storage: opened and written with the retries of storage.py, and with its errors.

rows = open_dataset("s3://bucket/items.lance").take([3, 1]);  write_dataset(uri, reader)
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

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


def write_dataset(uri: str, rows: pa.Table | pa.RecordBatchReader, rows_per_file: int = 2**20) -> lance.LanceDataset:
    """Writes a new dataset from a table, or from a stream of batches, in one commit.

    What the stream raises comes out as itself. Raises StorageError for a full disk and all else that is not written."""
    import lance
    from lance.fragment import write_fragments

    uri = storage.absolute(uri)
    options = storage.lance_options(uri)
    with _written(uri, rows) as stream:
        made = write_fragments(
            stream,
            uri,
            mode="create",
            return_transaction=True,
            max_rows_per_file=rows_per_file,
            storage_options=options,
        )
        commit = functools.partial(lance.LanceDataset.commit, uri, made, storage_options=options)
        return storage.repeated(commit)  # twice is as good as once: it says what all the rows are


def append_rows(onto: lance.LanceDataset, rows: pa.RecordBatchReader, rows_per_file: int = 2**20) -> lance.LanceDataset:
    """Appends to an open dataset in one commit, with the errors of `write_dataset`. Where the connection is lost in the
    commit, the rows may be there all the same."""
    import lance

    options = storage.lance_options(onto.uri)
    with _written(onto.uri, rows) as stream:
        return lance.write_dataset(
            stream, onto, mode="append", max_rows_per_file=rows_per_file, storage_options=options
        )


@contextmanager
def _written(uri: str, rows: pa.Table | pa.RecordBatchReader) -> Iterator[pa.RecordBatchReader]:
    """The rows as the stream that the block writes, with its errors."""
    failed: list[Exception] = []  # Lance turns an error of the stream into text: the original is kept here
    reader = rows.to_reader() if isinstance(rows, pa.Table) else rows

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from reader
        except Exception as error:
            failed.append(error)
            raise

    try:
        with storage.write_errors(uri):
            yield pa.RecordBatchReader.from_batches(reader.schema, batches())
    except Exception:
        if failed:
            raise failed[0] from None
        raise
