"""A Ray Data actor pool over row numbers, its results in order and into Lance, whatever the catalogue's size.

write_rows(uri, encode_rows("embed", total, make, settings))  # make() -> (rows -> pa.Table), called in each actor
Cut(tables).take(100)                                         # the next 100 rows of such a stream
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sidray.data.blocks import calm
from sidray.datasets import open_dataset, write_dataset
from sidray.embedding.settings import EmbeddingSettings
from sidray.errors import UserError, root_user_error
from sidray.metrics import counter, gauge
from sidray.progress import progress

Rows = npt.NDArray[np.int64]
Encoder = Callable[[Any], pa.Table]


class _Actor:
    """Builds its encoder once; every call encodes one batch of rows. A UserError of building waits for the first call:
    of what a constructor raises Ray keeps the text alone."""

    def __init__(self, make: Callable[[], Encoder], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.encode = self._made(make)

    @staticmethod
    def _made(make: Callable[[], Encoder]) -> Encoder:
        try:
            return make()
        except UserError as error:
            mistake = error

            def refuse(rows: Rows) -> pa.Table:
                raise mistake

            return refuse

    def __call__(self, batch: pa.Table) -> pa.Table:
        import torch

        with torch.inference_mode():
            return self.encode(batch["row"].to_numpy())


def encode_rows(
    name: str, rows: int | Rows, make: Callable[[], Encoder], settings: EmbeddingSettings, retries: int = 3
) -> Iterator[pa.Table]:
    """Tables of the encoder for these rows (a number: 0..rows-1), in that order; `name` is what the progress shows.
    `retries` of a batch whose actor dies, -1 for any number: one that needs more memory than there is kills for ever.

    A UserError of an actor comes out as itself."""
    import ray.data
    from ray.exceptions import RayError

    chosen = np.arange(rows) if isinstance(rows, int) else rows
    total = len(chosen)
    blocks = max(1, -(-total // (4 * settings.batch_size)))
    dataset = ray.data.from_arrow(pa.table({"row": chosen})).repartition(blocks)
    calm(dataset)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`ray_remote_args`")  # it names no other way to these retries
        encoded = dataset.map_batches(
            _Actor,
            fn_constructor_args=(make, max(1, int(settings.cpus))),
            batch_format="pyarrow",
            batch_size=settings.batch_size,
            num_cpus=settings.cpus,
            num_gpus=settings.gpus or None,
            compute=ray.data.ActorPoolStrategy(size=settings.actors),
            max_task_retries=retries,
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


class Cut:
    """A stream of tables, taken a number of rows at a time."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self.tables = tables
        self.rest: pa.Table | None = None

    def take(self, count: int) -> Iterator[pa.Table]:
        while count:
            table = self.rest if self.rest is not None else next(self.tables)
            head, self.rest = table.slice(0, count), table.slice(count) if table.num_rows > count else None
            count -= head.num_rows
            yield head


def write_rows(uri: str, tables: Iterator[pa.Table]) -> int:
    """Streams the tables into a Lance dataset; returns the number of rows."""
    first = next(tables)
    count = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal count
        for table in itertools.chain((first,), tables):
            count += table.num_rows
            yield from table.to_batches()

    write_dataset(uri, pa.RecordBatchReader.from_batches(first.schema, batches()))
    return count


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
