"""A Ray Data actor pool over row numbers, its results in order and into Lance, whatever the catalogue's size.

write_rows(uri, encode_rows("embed", total, make, settings))  # make() -> (rows -> pa.Table), called in each actor
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from sidray.data.blocks import calm
from sidray.datasets import open_dataset, write_dataset
from sidray.embedding.settings import EmbeddingSettings
from sidray.errors import root_user_error
from sidray.metrics import counter, gauge
from sidray.progress import progress

Encoder = Callable[[Any], pa.Table]


class _Actor:
    """Builds its encoder once; every call encodes one batch of rows."""

    def __init__(self, make: Callable[[], Encoder], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.encode = make()

    def __call__(self, batch: pa.Table) -> pa.Table:
        import torch

        with torch.inference_mode():
            return self.encode(batch["row"].to_numpy())


def encode_rows(name: str, total: int, make: Callable[[], Encoder], settings: EmbeddingSettings) -> Iterator[pa.Table]:
    """Tables of the encoder for rows 0..total-1, in that order; `name` is what the progress shows.

    A UserError of an actor comes out as itself."""
    import ray.data
    from ray.exceptions import RayError

    blocks = max(1, -(-total // (4 * settings.batch_size)))
    rows = ray.data.from_arrow(pa.table({"row": np.arange(total)})).repartition(blocks)
    calm(rows)
    encoded = rows.map_batches(
        _Actor,
        fn_constructor_args=(make, max(1, int(settings.cpus))),
        batch_format="pyarrow",
        batch_size=settings.batch_size,
        num_cpus=settings.cpus,
        num_gpus=settings.gpus or None,
        compute=ray.data.ActorPoolStrategy(size=settings.actors),
        max_task_retries=3,  # of a batch: Ray's default repeats for ever one that needs more memory than there is
    )
    try:
        with progress(name, total) as advance, _counted(name, total) as count:
            tables: Any = encoded.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
            for table in tables:
                advance(table.num_rows)
                count(table.num_rows)
                yield table
    except RayError as error:
        raise (root_user_error(error) or error) from error


@contextmanager
def _counted(step: str, total: int) -> Iterator[Callable[[int], None]]:
    """Tells Ray's metrics what is done and what is left: nothing, however the block ends."""
    items, backlog, labels = counter("sidray_embedding_items"), gauge("sidray_embedding_backlog"), {"step": step}
    left = total

    def count(rows: int) -> None:
        nonlocal left
        left -= rows
        items.inc(rows, labels)
        backlog.set(left, labels)

    backlog.set(left, labels)
    try:
        yield count
    finally:
        backlog.set(0, labels)


def write_rows(uri: str, tables: Iterator[pa.Table]) -> int:
    """Streams the tables into a Lance dataset; returns the number of rows."""
    first = next(tables)
    count = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal count
        for table in _chain(first, tables):
            count += table.num_rows
            yield from table.to_batches()

    write_dataset(uri, pa.RecordBatchReader.from_batches(first.schema, batches()))
    return count


def _chain(first: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from rest


def vector_column(values: Any) -> pa.FixedSizeListArray:
    """A float array [n, d] as a column of fixed-size lists, without a copy of its rows."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])


def read_vectors(uri: str, column: str, rows: Any = None) -> Any:
    """Column of fixed-size lists of a Lance dataset as an array [n, d]."""
    dataset = open_dataset(uri)
    table = dataset.to_table(columns=[column]) if rows is None else dataset.take(rows, columns=[column])
    chunks = table[column].combine_chunks()
    flat = chunks.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(table.num_rows, -1)
