"""Writing the contract tables that a source makes: small ones at once, pictures through Ray Data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from sidray import storage
from sidray.data.blocks import in_order

BUFFER_BYTES = 256 * 2**20


def write_parquet(table: pa.Table, uri: str) -> None:
    with parquet_writer(uri, table.schema) as writer:
        writer.write_table(table)


@contextmanager
def parquet_writer(uri: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A writer of one Parquet file on any filesystem; its folder is made."""
    storage.make_folder(uri.rpartition("/")[0])
    filesystem, path = storage.open_uri(uri)
    with (
        storage.write_errors(uri),
        filesystem.open_output_stream(path) as stream,
        pq.ParquetWriter(stream, schema) as writer,
    ):
        yield writer


def write_drawn(rows: pa.Table, draw: Callable[[pa.Table], pa.Table], batch: int, uri: str) -> None:
    """Writes draw(rows) to one Parquet file, in the order of `rows`; each Ray task draws `batch` rows.

    rows: at least one; the last column is what draw replaces by the binary column image."""
    dataset = ray.data.from_arrow([rows.slice(start, batch).combine_chunks() for start in range(0, len(rows), batch)])
    in_order(dataset, BUFFER_BYTES)
    drawn = dataset.map_batches(draw, batch_format="pyarrow", batch_size=None, num_cpus=1)
    schema = rows.schema.remove(len(rows.schema) - 1).append(pa.field("image", pa.binary()))
    with parquet_writer(uri, schema) as writer:
        for block in drawn.iter_batches(batch_size=None, batch_format="pyarrow"):
            writer.write_table(pa.table(block).cast(schema))
