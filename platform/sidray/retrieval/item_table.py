"""The item table: an append-only Lance log, the source of truth of what is searchable.

    create(uri, batches, dimension=128, text_columns=["category"])  # streams record batches, memory bounded
    log = ItemLog(uri);  log.append(rows);  log.append(tombstones(["a1"]))  # one writer commits in groups
    current(uri)  # the row of each item with the highest seq, deleted items dropped

Appending needs no lookup and cannot lose an update between two writers, which merge_insert can (architecture, idea 5).
`seq` is max(last + 1, time_ns()), so it rises even when a clock is set back; of equal seqs the later row counts.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sidray import storage
from sidray.datasets import append_rows, open_dataset, write_dataset
from sidray.errors import UserError, nearest
from sidray.retrieval.shards import WHOLE, Shard
from sidray.retrieval.spill import spilled

Ints = npt.NDArray[np.int64]

POSITION = "position"  # a column that `current` can add

_REQUIRED = ("vector", "model_key")  # of every row that is not a tombstone
ROWS_PER_FILE = 262_144


def schema(dimension: int, text_columns: Sequence[str] = ()) -> pa.Schema:
    """The table's columns: those of the contract, the catalogue's own text columns, and a thumbnail."""
    fields = [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("deleted", pa.bool_(), nullable=False),
        pa.field("partition", pa.string()),
        pa.field("vector", pa.list_(pa.float32(), dimension)),
        pa.field("sids", pa.list_(pa.int32())),
        pa.field("title", pa.string()),
        pa.field("content_hash", pa.string()),
        pa.field("model_key", pa.string()),
        pa.field("updated_at", pa.timestamp("us", "UTC")),
    ]
    taken = {field.name for field in fields} | {"thumbnail"}
    if clash := [name for name in text_columns if name in taken]:
        raise UserError(f"text column {clash[0]!r} is a column of the item table", "rename it in the catalogue")
    return pa.schema([*fields, *(pa.field(name, pa.string()) for name in text_columns), ("thumbnail", pa.binary())])


def tombstones(item_ids: Sequence[str]) -> pa.Table:
    """Rows that delete these items when they are appended."""
    return pa.table({"item_id": pa.array(item_ids, pa.string()), "deleted": pa.array([True] * len(item_ids))})


def create(
    uri: str, batches: Iterable[pa.RecordBatch], dimension: int, text_columns: Sequence[str] = ()
) -> lance.LanceDataset:
    """Writes a new table from a stream of record batches; columns that a batch lacks are filled as in `append`.

    Raises UserError when the table exists or a batch does not fit."""
    uri = storage.absolute(uri)
    layout = schema(dimension, text_columns)
    if _open(uri) is not None:
        raise UserError(f"item table {uri} exists", "append to it, or choose another folder")
    return _write(uri, None, batches, layout, time.time_ns())


def append(uri: str, rows: pa.Table) -> int:
    """Appends rows once, as batch jobs do; returns the new version. A service keeps an `ItemLog` open instead."""
    return ItemLog(uri).append(rows)


class ItemLog:
    """A writer that remembers the highest seq it has seen, so that an append reads only what others added."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._dataset: Any = open_version(uri)
        self._seen: set[int] = set()  # ids of the fragments whose seqs are in _last
        self._last = 0

    def append(self, rows: pa.Table) -> int:
        """Commits the rows in one version and returns it. They are durable when this returns.

        Needed: item_id, and vector [d] float32 and model_key unless `deleted`. Absent: deleted = False, partition =
        "", updated_at = now, anything else null. Raises UserError for an unknown column or a missing value."""
        self._catch_up()
        if rows.num_rows == 0:
            return int(self._dataset.version)
        first, before = max(self._last + 1, time.time_ns()), self._dataset.version
        self._dataset = _write(self.uri, self._dataset, rows.to_batches(), self._dataset.schema, first)
        if self._dataset.version == before + 1:  # nothing came in between: there is no need to read what was written
            self._last = first + rows.num_rows - 1
            self._seen = {fragment.fragment_id for fragment in self._dataset.get_fragments()}
        return int(self._dataset.version)

    def _catch_up(self) -> None:
        """Moves to the latest version and takes the seqs of fragments that are new in it into account."""
        if self._dataset.version != self._dataset.latest_version:
            self._dataset.checkout_latest()
        fragments = self._dataset.get_fragments()
        if new := [fragment for fragment in fragments if fragment.fragment_id not in self._seen]:
            for batch in self._dataset.scanner(columns=["seq"], fragments=new).to_batches():
                self._last = max(self._last, pc.max(batch.column(0)).as_py() or 0)
        self._seen = {fragment.fragment_id for fragment in fragments}


def open_version(uri: str, version: int | None = None) -> lance.LanceDataset:
    """The table at a version (default: the latest). Raises UserError when either does not exist."""
    uri = storage.absolute(uri)
    dataset = _open(uri)
    if dataset is None:
        raise UserError(f"there is no item table at {uri}", "create it with the index step, or check the path")
    if version is None or version == dataset.version:
        return dataset
    try:
        return dataset.checkout_version(version)
    except (ValueError, OSError) as error:
        latest = f"the latest version is {dataset.version}; old ones may have been cleaned up"
        raise UserError(f"item table {uri} has no version {version}", latest) from error


def current(
    uri: str, version: int | None = None, columns: Sequence[str] | None = None, with_deleted: bool = False
) -> pa.Table:
    """What is searchable at a version: of each item the row with the highest seq, unless that row deletes it.

    In the log's order. `columns` (default: all) keeps memory small: thumbnails are most of the bytes; `with_deleted`:
    the rows that delete an item, too."""
    dataset = open_version(uri, version)
    fragments = dataset.get_fragments()
    winners = _winners(_keys(dataset, fragments), with_deleted)
    wanted = _columns(dataset, columns)
    return pa.Table.from_batches(_fetch(dataset, fragments, winners, wanted), schema=_layout(dataset, wanted))


def indexed(uri: str, version: int | None = None, shard: Shard = WHOLE) -> pa.Table:
    """`current` in the partitions of a shard, with what an index keeps: identity, place, SIDs, vector, the catalogue's
    own text columns, `seq`, and `position`: the row's number in the table at this version, by which its picture is
    fetched. Its rows are on disk (spill.py): vectors of millions of items are never all in memory."""
    dataset = open_version(uri, version)
    fragments = dataset.get_fragments()
    keys = _keys(dataset, fragments)
    winners = _winners(keys, with_deleted=False)
    if shard != WHOLE:
        winners = winners[_inside(keys["partition"], shard)[winners]]
    del keys
    own = [name for name in dataset.schema.names if name not in schema(1).names]
    columns = ["item_id", "title", "partition", "sids", *own, "seq", POSITION, "vector", "model_key"]
    return spilled(_fetch(dataset, fragments, winners, columns), _layout(dataset, columns))


def tag(uri: str, name: str, version: int) -> None:
    """Names a version, which cleaning up then spares; a name that was given before moves here."""
    tags = open_version(uri).tags
    if name in tags.list():
        tags.update(name, version)
    else:
        tags.create(name, version)


def untag_others(uri: str, names: Collection[str]) -> None:
    """Removes all tags but these."""
    tags = open_version(uri).tags
    for name in tags.list():
        if name not in names:
            tags.delete(name)


def restore(uri: str, version: int) -> None:
    """Makes an earlier version the latest: what was appended since is no longer in the table."""
    dataset: Any = open_version(uri, version)
    dataset.restore()


def compact(uri: str, until: int, rows_per_file: int = ROWS_PER_FILE) -> int:
    """Joins adjacent files of fewer rows that version `until` has, keeping every row; returns the latest version.

    What was appended later stays as it is: readers that know `until` need not read the joined rows again. Where another
    call has joined some of these files since, nothing is done; the next one joins what is left."""
    dataset: Any = open_version(uri, until)
    try:
        dataset.optimize.compact_files(target_rows_per_fragment=rows_per_file)
    except OSError as error:
        if "commit conflict" not in str(error):
            raise
    return int(dataset.latest_version)


def clean(uri: str, older_than: datetime.timedelta) -> None:
    """Removes versions of that age, but for the latest and those that have a tag, and the files that only they use."""
    open_version(uri).cleanup_old_versions(older_than=older_than, error_if_tagged_old_versions=False)


_KEY = ("item_id", "seq", "deleted", "partition")


def _open(uri: str) -> lance.LanceDataset | None:
    try:
        return open_dataset(uri)
    except ValueError as error:
        if "not found" in str(error).lower():
            return None
        raise


def _columns(dataset: lance.LanceDataset, columns: Sequence[str] | None) -> list[str]:
    names = list(dataset.schema.names)
    if columns is None:
        return names
    for name in columns:
        if name not in names:
            raise UserError(
                f"the item table has no column {name!r}{nearest(name, names)}", f"columns: {', '.join(names)}"
            )
    return list(columns)


def _layout(dataset: lance.LanceDataset, columns: Sequence[str]) -> pa.Schema:
    position = pa.field(POSITION, pa.int64())
    return pa.schema([position if name == POSITION else dataset.schema.field(name) for name in columns])


def _keys(dataset: lance.LanceDataset, fragments: list[Any]) -> pa.Table:
    """What decides which row of an item is current, in the order of the log."""
    if not fragments:
        return pa.schema([dataset.schema.field(name) for name in _KEY]).empty_table()
    scanner = dataset.scanner(columns=list(_KEY), fragments=fragments, scan_in_order=True)
    return scanner.to_table()


def _fetch(
    dataset: lance.LanceDataset, fragments: list[Any], positions: Ints, columns: list[str]
) -> Iterator[pa.RecordBatch]:
    """The rows at these ascending positions of the fragments; the rest is dropped batch by batch."""
    if not len(positions):
        return
    start, layout, stored = 0, _layout(dataset, columns), [name for name in columns if name != POSITION]
    for batch in dataset.scanner(columns=stored, fragments=fragments, scan_in_order=True).to_batches():
        low, high = np.searchsorted(positions, [start, start + batch.num_rows])
        if high > low:
            found = batch.take(pa.array(positions[low:high] - start))
            if POSITION in columns:
                found = found.append_column(POSITION, pa.array(positions[low:high]))
            yield found.select(layout.names)
        start += batch.num_rows


def _inside(partitions: pa.ChunkedArray, shard: Shard) -> npt.NDArray[np.bool_]:
    """Which rows are in the shard: [rows]."""
    codes = partitions.combine_chunks().fill_null("").dictionary_encode()
    own = np.array([shard.has(name) for name in codes.dictionary.to_pylist()], bool)
    return np.asarray(own[codes.indices.to_numpy()])


def _winners(keys: pa.Table, with_deleted: bool) -> Ints:
    """Ascending positions of the row with the highest (seq, position) of each item: [items]."""
    codes = keys["item_id"].combine_chunks().dictionary_encode()
    codes = codes.indices.to_numpy()  # [rows], one number per item
    order = np.argsort(keys["seq"].to_numpy(), kind="stable")
    best = np.zeros(int(codes.max(initial=-1)) + 1, np.int64)
    best[codes[order]] = order  # numpy keeps the last of repeated assignments: the highest seq
    if not with_deleted:
        best = best[~keys["deleted"].to_numpy()[best]]
    return np.sort(best)


def _write(
    uri: str, onto: Any, batches: Iterable[pa.RecordBatch], layout: pa.Schema, first_seq: int
) -> lance.LanceDataset:
    """Streams the completed batches into one commit, seqs counting from `first_seq`: a new table, or `onto` its end."""

    def completed() -> Iterator[pa.RecordBatch]:
        seq = first_seq
        for batch in batches:
            yield _complete(batch, layout, seq)
            seq += batch.num_rows

    reader = pa.RecordBatchReader.from_batches(layout, completed())
    if onto is None:
        return write_dataset(uri, reader, ROWS_PER_FILE)
    return append_rows(onto, reader, ROWS_PER_FILE)


def _complete(batch: pa.RecordBatch, layout: pa.Schema, first_seq: int) -> pa.RecordBatch:
    """The batch with every column of the layout, checked."""
    rows = batch.num_rows
    if unknown := [name for name in batch.schema.names if name not in layout.names or name == "seq"]:
        remedy = f"columns: {', '.join(layout.names)} (seq is assigned here)"
        raise UserError(f"the item table takes no column {unknown[0]!r}{nearest(unknown[0], layout.names)}", remedy)
    given = {name: batch.column(name) for name in batch.schema.names}
    filled = {
        "seq": pa.array(np.arange(first_seq, first_seq + rows)),
        "deleted": pa.array(np.zeros(rows, bool)),
        "partition": pa.array([""] * rows),
        "updated_at": pa.scalar(time.time_ns() // 1000, pa.timestamp("us", "UTC")),
    } | given
    for name, default in (("deleted", False), ("partition", "")):
        filled[name] = filled[name].fill_null(default)
    arrays = [_column(filled.get(field.name), field, rows) for field in layout]
    complete = pa.RecordBatch.from_arrays(arrays, schema=layout)
    _check_values(complete)
    return complete


def _column(values: Any, field: pa.Field, rows: int) -> pa.Array:
    if values is None:
        return pa.nulls(rows, field.type)
    if isinstance(values, pa.Scalar):
        return pa.repeat(values, rows)
    try:
        return values.cast(field.type)
    except pa.ArrowException as error:
        raise UserError(f"item table column {field.name!r} does not fit: {error}", f"it takes {field.type}") from error


def _check_values(batch: pa.RecordBatch) -> None:
    if batch.column("item_id").null_count:
        raise UserError("a row for the item table has no item_id", "fill it")
    for name in _REQUIRED:
        missing = pc.and_(pc.is_null(batch.column(name)), pc.invert(batch.column("deleted")))
        if pc.any(missing).as_py():
            item_id = batch.column("item_id").filter(missing)[0].as_py()
            raise UserError(f"item {item_id!r} has no {name}", "embed it first; only tombstones go without")
    vectors = batch.column("vector")
    finite = np.isfinite(vectors.fill_null([0.0] * vectors.type.list_size).flatten().to_numpy())
    if not finite.all():
        item_id = batch.column("item_id")[int(np.argmin(finite)) // vectors.type.list_size].as_py()
        raise UserError(f"the vector of item {item_id!r} has NaN or infinite values", "embed it again")
