"""The index: one memory-mapped array of unit vectors, sorted by partition, searched through FAISS.

    build(indexed(table_uri, version), folder, table_version=version, model_key="ab12")  # a job, never a replica
    index = PartitionedIndex.load(folder, threads=2)
    scores, rows = index.search(query_vecs, k=10, partitions=["Menswear"])
    index.fields(rows[0])  # item_id, title, partition, sids, and the text fields of the table

A partition is a contiguous range of the array, so a search inside it reads nothing else, its result is exact up to
`ivf_above` items (above: the lists of coarse.py), and all replicas on a node share the pages. An index is never
changed: a new one is built from a newer version of the item table. Files: vectors.npy, centroids.npy, lists.npy,
items.arrow, by_id.npy and, written last, manifest.json with the checksum of each. Nothing in it is a pickle, and a file
that is truncated or altered is refused when it is loaded.
"""

from __future__ import annotations

import bisect
import os
import tempfile
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from sidray import storage
from sidray.errors import UserError, nearest
from sidray.retrieval.coarse import KS, Lists, cut, search_range
from sidray.retrieval.exact import Floats, Ints, unit
from sidray.retrieval.spill import large
from sidray.retrieval.staging import Staged, sha256, stage

FORMAT = 3
IVF_ABOVE = 20_000  # items: a scan of so many 128-d vectors takes about 0.3 ms
_NO_FIELDS = ("vector", "model_key")
_MANIFEST, _VECTORS, _ITEMS, _BY_ID = "manifest.json", "vectors.npy", "items.arrow", "by_id.npy"
_CENTROIDS, _LISTS = "centroids.npy", "lists.npy"
_FILES = (_VECTORS, _CENTROIDS, _LISTS, _ITEMS, _BY_ID)
_REBUILD = "build the index again from the item table"
_BLOCK = 65_536  # rows normalised or moved at once

Span = tuple[int, int]  # of rows: the first, and the one behind the last


class _Format(BaseModel):
    """What every manifest has, whichever version wrote it."""

    format: int


class Manifest(BaseModel):
    """What an index is made of; `offsets[i]:offsets[i + 1]` are the rows of `partitions[i]`. `probes`: of the
    partitions that are cut into lists, how many of them to search for 10, 100 and 1000 neighbours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    table_version: int
    model_key: str
    metric: str  # cosine: the inner product of unit vectors
    dimension: int
    count: int
    partitions: list[str]
    offsets: list[int]
    probes: dict[str, Annotated[list[PositiveInt], Field(min_length=len(KS), max_length=len(KS))]]
    sha256: dict[str, str]  # of every file but this one


def build(
    table: pa.Table,
    folder: str,
    table_version: int,
    model_key: str,
    ivf_above: int = IVF_ABOVE,
    partitions: Iterable[str] = (),
) -> Manifest:
    """Writes the index of the current rows of an item table into `folder` (any URI); equal rows give equal bytes.

    table: item_id, title, partition, sids, vector, model_key; what else it has are fields of the items. A partition of
    more than `ivf_above` items is cut into lists (coarse.py), and a search there may miss some of the nearest.
    `partitions`: names that the index knows even where no item is left.

    Raises UserError for a row of another model, an item that occurs twice or a vector that is null or not finite."""
    _check_rows(table, model_key)
    local = storage.is_local(folder)
    if local:
        storage.make_folder(folder)
    with (
        storage.write_errors(folder),
        tempfile.TemporaryDirectory(dir=storage.absolute(folder) if local else None) as scratch,
    ):
        manifest = _write(table, Path(scratch), table_version, model_key, ivf_above, partitions)
        for name in (*_FILES, _MANIFEST):  # the manifest last: without it there is no index
            if local:
                os.replace(Path(scratch) / name, Path(storage.absolute(folder)) / name)
            else:
                storage.upload(Path(scratch) / name, storage.join(folder, name))
    return manifest


class PartitionedIndex:
    """A loaded index. Searching is safe from several threads: nothing is ever written."""

    def __init__(
        self, manifest: Manifest, vectors: Floats, lists: dict[Span, Lists], items: pa.Table, by_id: Ints, threads: int
    ) -> None:
        self.manifest = manifest
        self.threads = threads
        self.vectors = vectors  # [N, d], unit length, memory-mapped
        self._plain = np.asarray(vectors)  # the same pages: slicing a np.memmap takes 4 us
        self._lists = lists  # of the partitions that are cut into lists, by their rows
        self._items = items
        self._by_id = by_id  # [N], rows in the order of their item_id
        self._ranges = dict(zip(manifest.partitions, pairwise(manifest.offsets), strict=True))
        self._whole = self._joined(self._ranges.values())
        self._staged: Staged | None = None  # held as long as the index is used

    @classmethod
    def load(cls, folder: str, threads: int) -> PartitionedIndex:
        """Verifies the checksums and maps the files. `threads`: how many one search may use.

        An index on another filesystem is copied to the temporary folder first, once for all processes of a machine, and
        deleted there some time after the last of them has let it go.
        Raises UserError when a file is missing, truncated or altered."""
        staged = stage(folder, _FILES, _MANIFEST, Path(tempfile.gettempdir()) / "sidray-index")
        local = staged.folder
        manifest = read_manifest(str(local))
        for name, expected in manifest.sha256.items():
            if not (local / name).is_file() or sha256(local / name) != expected:
                raise UserError(f"index file {local / name} is missing, truncated or altered", _REBUILD)
        with pa.memory_map(str(local / _ITEMS)) as source:
            items = pa.ipc.open_file(source).read_all()
        vectors = np.load(local / _VECTORS, mmap_mode="r", allow_pickle=False)
        by_id = np.load(local / _BY_ID, mmap_mode="r", allow_pickle=False)
        known = set(manifest.probes) <= set(manifest.partitions)
        whole = vectors.shape == (manifest.count, manifest.dimension) and len(items) == len(by_id) == manifest.count
        if not (known and whole):
            raise UserError(f"the files of index {folder} disagree with its manifest", _REBUILD)
        index = cls(manifest, vectors, _read_lists(local, manifest), items, by_id, threads)
        index._staged = staged
        return index

    @property
    def partitions(self) -> list[str]:
        return self.manifest.partitions

    def has_partition(self, name: str) -> bool:
        return name in self._ranges

    def search(
        self,
        vectors: npt.NDArray[np.floating],
        k: int,
        partitions: Sequence[str] | None = None,
        exact: bool = False,
        spare: int = 0,
    ) -> tuple[Floats, Ints]:
        """The k items of highest cosine for each vector [Q, d], among these partitions (None: all of them): exact but
        in the partitions of `manifest.probes`, and there as well when `exact` asks for it. Then as many as `spare` says
        from where the k were looked for.

        Returns scores [Q, k + spare], descending, and rows; where there are fewer items, row -1 and score -inf.
        Raises UserError for an unknown partition, another dimension, or values that are not finite."""
        queries = self._check(vectors, k)
        # OpenMP keeps this number for each calling thread. FAISS shares out the queries, so that a thread without one
        # only gets in the way (measured on 2 cores, one query, 300,000 x 128: 7.6 ms with one thread, 40 ms with two).
        faiss.omp_set_num_threads(max(1, min(self.threads, len(queries))))
        found = [self._search_span(queries, span, k, spare, exact) for span in self._spans(partitions)]
        shape = len(queries), k + spare
        if len(found) == 1 and found[0][0].shape == shape:
            return found[0]
        scores = np.concatenate([np.full(shape, -np.inf, np.float32), *(pair[0] for pair in found)], axis=1)
        rows = np.concatenate([np.full(shape, -1), *(pair[1] for pair in found)], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : k + spare]
        return np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)

    def fields(self, rows: Sequence[int] | Ints) -> list[dict[str, Any]]:
        """item_id, title, partition, sids and the text fields of each row."""
        taken: list[dict[str, Any]] = self._items.take(pa.array(rows, pa.int64())).to_pylist()
        return taken

    def column(self, name: str, rows: Sequence[int] | Ints) -> list[Any]:
        """One field of each row; None for the row -1."""
        places = pa.array([row if row >= 0 else None for row in rows], pa.int64())
        values: list[Any] = self._items[name].take(places).to_pylist()
        return values

    def rows_of(self, item_ids: Sequence[str]) -> Ints:
        """The row of each item, -1 where it is not in the index: int64 [len(item_ids)]."""
        ids = self._items["item_id"].chunk(0) if self.manifest.count else pa.array([], pa.large_string())
        found = np.full(len(item_ids), -1, np.int64)
        for position, item_id in enumerate(item_ids):
            place = bisect.bisect_left(self._by_id, item_id, key=lambda row: ids[int(row)].as_py())
            if place < len(ids) and ids[int(self._by_id[place])].as_py() == item_id:
                found[position] = self._by_id[place]
        return found

    def _check(self, vectors: npt.NDArray[np.floating], k: int) -> Floats:
        if k < 1:
            raise UserError(f"k is {k}", "ask for at least one item")
        if vectors.ndim != 2 or vectors.shape[1] != self.manifest.dimension:
            shape, wanted = list(vectors.shape), self.manifest.dimension
            raise UserError(
                f"query vectors have shape {shape}, the index has dimension {wanted}", f"give [Q, {wanted}]"
            )
        if not np.isfinite(vectors).all():
            raise UserError("a query vector has NaN or infinite values", "embed the query again")
        return unit(vectors)

    def _spans(self, partitions: Sequence[str] | None) -> list[Span]:
        """The row ranges to search."""
        if partitions is None:
            return self._whole
        for name in partitions:
            if name not in self._ranges:
                known = ", ".join(self.partitions[:10]) + (", ..." if len(self.partitions) > 10 else "")
                raise UserError(f"no partition is called {name!r}{nearest(name, self.partitions)}", f"known: {known}")
        return self._joined(self._ranges[name] for name in partitions)

    def _joined(self, ranges: Iterable[Span]) -> list[Span]:
        """Each range once, ascending; neighbours that are searched exactly are joined."""
        spans: list[Span] = []
        for low, high in sorted({(low, high) for low, high in ranges if high > low}):
            if spans and spans[-1][1] == low and spans[-1] not in self._lists and (low, high) not in self._lists:
                spans[-1] = (spans[-1][0], high)
            else:
                spans.append((low, high))
        return spans

    def _search_span(self, queries: Floats, span: Span, k: int, spare: int, exact: bool) -> tuple[Floats, Ints]:
        """Scores and rows [Q, min(k + spare, n)] of one range of n rows."""
        if span in self._lists and not exact:
            return self._lists[span].search(queries, self._plain, k, spare)
        return search_range(queries, self._plain, *span, k + spare)


def _check_rows(table: pa.Table, model_key: str) -> None:
    other = table.filter(pc.fill_null(pc.not_equal(table["model_key"], model_key), True))
    if len(other):
        found = f"item {other['item_id'][0].as_py()!r} is of model {other['model_key'][0].as_py()!r}"
        raise UserError(f"{found}, the index is for {model_key!r}", "embed the catalogue with this model first")
    if table["vector"].null_count:
        item_id = table.filter(pc.is_null(table["vector"]))["item_id"][0].as_py()
        raise UserError(f"item {item_id!r} has no vector", "embed it, or leave it out")


def _write(
    table: pa.Table, folder: Path, table_version: int, model_key: str, ivf_above: int, known: Iterable[str]
) -> Manifest:
    """The files of an index in a local folder."""
    partition = pc.fill_null(table["partition"], "")
    table = table.set_column(table.schema.get_field_index("partition"), "partition", partition)
    order = pc.sort_indices(table, sort_keys=[("partition", "ascending"), ("item_id", "ascending")]).to_numpy()  # [N]
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))  # of every row of the table
    by_id = pc.sort_indices(table["item_id"]).to_numpy()
    _refuse_duplicates(table["item_id"], by_id)
    dimension = table.schema.field("vector").type.list_size
    _write_vectors(table, place, dimension, folder / _VECTORS)
    sizes = dict.fromkeys(known, 0) | {
        each["values"]: each["counts"] for each in pc.value_counts(table["partition"]).to_pylist()
    }
    partitions = sorted(sizes, key=str.encode)  # as the rows are
    offsets = [0, *np.cumsum([sizes[name] for name in partitions], dtype=np.int64).tolist()]
    listed, probes = _write_lists(folder, dict(zip(partitions, pairwise(offsets), strict=True)), ivf_above)
    _write_items(table, order[listed], folder / _ITEMS)
    np.save(folder / _BY_ID, np.argsort(listed)[place[by_id]], allow_pickle=False)
    manifest = Manifest(
        format=FORMAT,
        table_version=table_version,
        model_key=model_key,
        metric="cosine",
        dimension=dimension,
        count=len(table),
        partitions=partitions,
        offsets=offsets,
        probes=probes,
        sha256={name: sha256(folder / name) for name in _FILES},
    )
    (folder / _MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return manifest


def _write_items(table: pa.Table, order: Ints, path: Path) -> None:
    """The fields of the items in this order, as one batch."""
    fields = table.select([name for name in table.column_names if name not in _NO_FIELDS])
    fields = fields.cast(large(fields.schema)).take(order).combine_chunks()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, fields.schema) as writer:
        writer.write_table(fields)


def _write_vectors(table: pa.Table, place: Ints, dimension: int, path: Path) -> None:
    """Unit vectors [N, d], each written to its place, a block at a time."""
    target = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(place), dimension))
    start = 0
    for batch in table.select(["item_id", "vector"]).to_batches(max_chunksize=_BLOCK):
        vectors = batch.column("vector").flatten().to_numpy().reshape(-1, dimension)
        if not np.isfinite(vectors).all():
            item_id = batch.column("item_id")[int(np.argmin(np.isfinite(vectors).all(axis=1)))].as_py()
            raise UserError(f"the vector of item {item_id!r} has NaN or infinite values", "embed it again")
        target[place[start : start + len(vectors)]] = unit(vectors)
        start += len(vectors)
    target.flush()


def _write_lists(folder: Path, ranges: dict[str, Span], ivf_above: int) -> tuple[Ints, dict[str, list[int]]]:
    """Cuts the large partitions into lists and sorts their vectors by list. Returns the row that each row was before
    [N], and the manifest's `probes`."""
    vectors = np.load(folder / _VECTORS, mmap_mode="r", allow_pickle=False)
    order = np.arange(len(vectors))
    large = {name: (low, high) for name, (low, high) in ranges.items() if high - low > ivf_above}
    cuts = {name: cut(np.asarray(vectors[low:high])) for name, (low, high) in large.items()}
    for name, (low, high) in large.items():
        order[low:high] = low + cuts[name].order
    if cuts:
        _reorder(folder / _VECTORS, order)
    starts = [large[name][0] + each.starts for name, each in cuts.items()]
    np.save(folder / _LISTS, np.concatenate([np.empty(0, np.int64), *starts]), allow_pickle=False)
    centroids = [np.empty((0, vectors.shape[1]), np.float32), *(each.centroids for each in cuts.values())]
    np.save(folder / _CENTROIDS, np.concatenate(centroids), allow_pickle=False)
    return order, {name: each.probes for name, each in cuts.items()}


def _reorder(path: Path, order: Ints) -> None:
    """Row i becomes what row order[i] was, through a second file: memory holds one block."""
    source = np.load(path, mmap_mode="r", allow_pickle=False)
    moved = path.with_suffix(".moved")
    target = np.lib.format.open_memmap(moved, mode="w+", dtype=source.dtype, shape=source.shape)
    for start in range(0, len(order), _BLOCK):
        target[start : start + _BLOCK] = source[order[start : start + _BLOCK]]
    target.flush()
    os.replace(moved, path)


def _refuse_duplicates(ids: pa.ChunkedArray, ascending: Ints) -> None:
    """`ascending`: the places of the ids in their order."""
    for start in range(0, len(ids), _BLOCK):
        block = ids.take(pa.array(ascending[start : start + _BLOCK + 1]))  # one over, to meet the next block
        same = pc.equal(block.slice(1), block.slice(0, max(0, len(block) - 1)))
        if pc.any(same).as_py():
            item_id = block.slice(1).filter(same)[0].as_py()
            raise UserError(f"item {item_id!r} occurs twice", "give the current rows of the item table, one for each")


def read_manifest(folder: str) -> Manifest:
    """Raises UserError when it is missing, altered, or of another format."""
    path = storage.join(folder, _MANIFEST)
    if not storage.exists(path):
        raise UserError(f"there is no index in {folder}: {_MANIFEST} is missing", "build it with the index step")
    data = storage.read_bytes(path)
    try:
        found = _Format.model_validate_json(data).format
        if found != FORMAT:
            raise UserError(f"{path} has format {found}, this version reads {FORMAT}", _REBUILD)
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise UserError(f"{path} is truncated or altered: {error.errors()[0]['msg']}", _REBUILD) from error
    if set(manifest.sha256) != set(_FILES):
        raise UserError(f"{path} is altered: it is not about {', '.join(_FILES)}", _REBUILD)
    return manifest


def _read_lists(folder: Path, manifest: Manifest) -> dict[Span, Lists]:
    """The lists of each large partition: those whose first row is in its range."""
    starts, centroids = (np.load(folder / name, allow_pickle=False) for name in (_LISTS, _CENTROIDS))
    ranges = dict(zip(manifest.partitions, pairwise(manifest.offsets), strict=True))
    lists = {}
    for name, probes in manifest.probes.items():
        first, last = np.searchsorted(starts, ranges[name])
        lists[ranges[name]] = Lists(np.append(starts[first:last], ranges[name][1]), centroids[first:last], probes)
    return lists
