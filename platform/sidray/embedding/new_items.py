"""New items through a finished run: vectors and SIDs of those that are new or changed, and word of all others.

    tables = encode_items(run, catalogue, rows, known)   # known: whose vectors are there, found by id and content hash

A row of the result for each row of the catalogue: item_id, content_hash, `place` (in `known`, else -1), `refused` (why
it cannot be encoded, else null), vector, sids, model_key; and for an item table title, partition, the text columns,
thumbnail. All but the first four are null where there is a place or a reason.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sidray.data.catalogue import Catalogue
from sidray.data.content import content_hash, thumbnail
from sidray.embedding.encoded import ServedModel, load_model
from sidray.embedding.kept import Kept
from sidray.embedding.pool import encode_rows, vector_column
from sidray.embedding.suspects import Guard, Suspects
from sidray.finished import RunFolder

Rows = npt.NDArray[np.int64]
Item = dict[str, Any]


def encode_items(
    run: RunFolder, catalogue: Catalogue, rows: Rows, known: Kept, for_table: bool = False
) -> Iterator[pa.Table]:
    """Tables for these catalogue rows, in order. `for_table`: with the further columns of an item table."""
    import ray

    job = _Job(run, catalogue, ray.put(known), Suspects.start(), for_table)
    return encode_rows("embed", rows, functools.partial(_NewItems, job), run.recipe.embedding, retries=-1)


@dataclass(frozen=True)
class _Job:
    """`known`: a reference to a Kept in Ray's object store."""

    run: RunFolder
    catalogue: Catalogue
    known: Any
    suspects: Suspects
    for_table: bool


class _NewItems:
    """An actor's part: hashes the items of a batch, and encodes those that `known` does not have."""

    def __init__(self, job: _Job) -> None:
        import ray

        self._catalogue, self._fields, self._for_table = job.catalogue, job.catalogue.text_fields, job.for_table
        self._guard = Guard(job.suspects, str(ray.get_runtime_context().get_actor_id()))
        self._known: Kept = ray.get(job.known)
        self._model: ServedModel = load_model(job.run)
        self._schema = _schema(self._model.dimension, self._fields if job.for_table else None)

    def __call__(self, rows: Rows) -> pa.Table:
        items: list[Item] = self._catalogue.items(rows, _READ + self._fields).to_pylist()
        ids, hashes = [item["item_id"] for item in items], [self._hash(item) for item in items]
        places = self._known.find(ids, hashes)
        item_of = dict(zip(rows.tolist(), items, strict=True))
        parts = self._guard.each(rows[places < 0], lambda own: self._encode([item_of[row] for row in own.tolist()]))
        encoded = [(own, found) for own, found in parts if isinstance(found, pa.Table)]
        reasons = {int(own[0]): found for own, found in parts if isinstance(found, str)}
        at = {row: n for n, row in enumerate(row for own, _ in encoded for row in own.tolist())}
        columns = pa.concat_tables([self._schema.empty_table(), *(found for _, found in encoded)])
        columns = columns.take(pa.array([at.get(row) for row in rows.tolist()], pa.int64()))
        refused = pa.array([reasons.get(row) for row in rows.tolist()], pa.string())
        own = {"item_id": ids, "content_hash": hashes, "place": places, "refused": refused}
        return pa.table(own | dict(zip(columns.column_names, columns.columns, strict=True)))

    def _hash(self, item: Item) -> str:
        texts = [item[name] or "" for name in self._fields]
        return content_hash(item["title"], texts, item["partition"], item["image"])

    def _encode(self, items: list[Item]) -> pa.Table:
        encoded = self._model.items(items)
        columns: dict[str, Any] = {
            "vector": vector_column(encoded.vectors),
            "sids": pa.array(encoded.sids, pa.list_(pa.int32())),
            "model_key": [self._model.model_key] * len(items),
        }
        if self._for_table:
            columns |= {name: [item[name] for item in items] for name in ("title", "partition", *self._fields)}
            columns["thumbnail"] = [thumbnail(item["image"]) for item in items]
        return pa.table(columns, schema=self._schema)


_READ = ["item_id", "title", "partition", "image"]


def _schema(dimension: int, text_columns: list[str] | None) -> pa.Schema:
    """Of what is encoded; `text_columns`: of an item table."""
    vector = {"vector": pa.list_(pa.float32(), dimension), "sids": pa.list_(pa.int32()), "model_key": pa.string()}
    if text_columns is None:
        return pa.schema(vector)
    texts = {name: pa.string() for name in ("title", "partition", *text_columns)}
    return pa.schema(vector | texts | {"thumbnail": pa.binary()})
